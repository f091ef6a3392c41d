"""The first schema."""

import sqlalchemy as sa
from alembic import op

revision = "v1"
down_revision = None


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "delivery",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("uid", sa.Text(), nullable=False),
        sa.Column("floor", sa.String(20), nullable=False),
        sa.Column("acknowledged", sa.String(20)),
        sa.Column("deleted", sa.Boolean(), nullable=False),
        sa.Column("state", sa.Integer(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("version", sa.String(20)),
        sa.Column("operation", sa.Text(), nullable=False),
        sa.Column("is_answer", sa.Boolean(), nullable=False),
        sa.Column("priority", sa.Integer(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("accepted_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("changed_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("traceparent", sa.Text(), nullable=False),
        sa.Column("message", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("node_id", "object_key"),
    )
    op.create_index("delivery_by_path", "delivery", ["node_id", "path"])
    op.create_index(
        "delivery_expiring",
        "delivery",
        ["expires_at_ms"],
        sqlite_where=sa.text("expires_at_ms <> 0"),
        postgresql_where=sa.text("expires_at_ms <> 0"),
    )
    op.create_index(
        "delivery_pending",
        "delivery",
        ["node_id", "seq"],
        sqlite_where=sa.text("state <> 0"),
        postgresql_where=sa.text("state <> 0"),
    )
    op.create_table(
        "delivery_event",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("event_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("kind", sa.Integer(), nullable=False),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("object_key", sa.Text(), nullable=False),
        sa.Column("version", sa.String(20)),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "event_id"),
    )
    op.create_index(
        "delivery_event_accepted",
        "delivery_event",
        ["node_id", "message_id"],
        sqlite_where=sa.text("kind = 1"),
        postgresql_where=sa.text("kind = 1"),
    )
    op.create_table(
        "node",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("owner_epoch", sa.BigInteger(), nullable=False),
        sa.Column("pending_rows", sa.BigInteger(), nullable=False),
        sa.Column("pending_bytes", sa.BigInteger(), nullable=False),
        sa.Column("known", sa.Boolean(), nullable=False),
        sa.Column("last_ack_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("node_id"),
    )
    op.create_table(
        "upload",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("epoch", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("n", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("message_id", sa.Text(), nullable=False),
        sa.Column("holder", _exact(255), nullable=False),
        sa.Column("size_bytes", sa.Integer(), nullable=False),
        sa.Column("message", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "epoch", "n"),
        sa.UniqueConstraint("node_id", "message_id", name="upload_message_id"),
    )
    op.create_index("upload_holder", "upload", ["holder", "node_id"])
