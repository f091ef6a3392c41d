"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "v1"
down_revision = None


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "dispatcher_lease",
        sa.Column("dispatcher_id", sa.String(128), nullable=False),
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("address", sa.String(261), nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("renewals", sa.BigInteger(), nullable=False),
        sa.Column("sessions", sa.Integer(), nullable=False),
        sa.Column("connectors", sa.Text(), nullable=False),
        sa.Column("lost", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("dispatcher_id"),
    )
    op.create_table(
        "end_directive",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("dispatcher_id", sa.String(128), nullable=False),
        sa.Column("reason", sa.SmallInteger(), sa.CheckConstraint("reason BETWEEN 1 AND 13"), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "epoch"),
    )
    op.create_index("end_directive_by_age", "end_directive", ["at_ms"])
    op.create_index("end_directive_by_dispatcher", "end_directive", ["dispatcher_id"])
    op.create_table(
        "lifecycle_event",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.SmallInteger(), sa.CheckConstraint("kind IN (1, 2)"), nullable=False),
        sa.Column("event_id", sa.String(36), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.SmallInteger(), sa.CheckConstraint("reason BETWEEN 1 AND 12")),
        sa.Column("dispatcher_id", sa.String(128), nullable=False),
        sa.Column("handed", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "epoch", "kind"),
    )
    op.create_index("lifecycle_event_by_age", "lifecycle_event", ["at_ms"])
    op.create_index(
        "lifecycle_event_by_dispatcher", "lifecycle_event", ["dispatcher_id", "handed", "node_id"]
    )
    op.create_index("lifecycle_event_by_id", "lifecycle_event", ["event_id"])
    op.create_table(
        "limit_change",
        sa.Column("scope", _exact(16), nullable=False),
        sa.Column("place", _exact(128), nullable=False),
        sa.Column("nodes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "place"),
    )
    op.create_table(
        "node_session",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("project_id", sa.String(63), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.SmallInteger(), sa.CheckConstraint("state BETWEEN 1 AND 5"), nullable=False),
        sa.Column("reason", sa.SmallInteger(), sa.CheckConstraint("reason BETWEEN 1 AND 12")),
        sa.Column("announced", sa.Boolean(), nullable=False),
        sa.Column("connector_id", sa.String(128), nullable=False),
        sa.Column("dispatcher_id", sa.String(128), nullable=False),
        sa.Column("link", sa.BigInteger(), nullable=False),
        sa.Column("transport", sa.String(16), nullable=False),
        sa.Column("peer_address", sa.String(256), nullable=False),
        sa.Column("opened_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("closed_at_ms", sa.BigInteger()),
        sa.Column("change", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id"),
    )
    op.create_index("node_session_by_change", "node_session", ["change", "node_id"])
    op.create_index("node_session_by_dispatcher", "node_session", ["dispatcher_id", "state"])
    op.create_index("node_session_by_state", "node_session", ["state"])
    deleted = sa.text("state = 5 AND reason = 7")
    op.create_index(
        "node_session_deleted", "node_session", ["node_id"], sqlite_where=deleted, postgresql_where=deleted
    )
    op.create_table(
        "sessions_replica",
        sa.Column("replica_id", sa.String(128), nullable=False),
        sa.Column("name", sa.String(253), nullable=False),
        sa.Column("address", sa.String(261), nullable=False),
        sa.Column("beats", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("replica_id"),
    )
    op.create_table(
        "slot_count",
        sa.Column("scope", _exact(16), nullable=False),
        sa.Column("place", _exact(128), nullable=False),
        sa.Column("nodes", sa.BigInteger(), nullable=False),
        sa.Column("last_change", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("scope", "place"),
    )
