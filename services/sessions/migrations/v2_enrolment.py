"""Join tokens, certificates of nodes, revocations."""

import sqlalchemy as sa
from alembic import op

revision = "v2"
down_revision = "v1"


def _exact(length: int) -> sa.String:
    return sa.String(length).with_variant(sa.String(length, collation="C"), "postgresql")


def upgrade() -> None:
    op.create_table(
        "enrolment_key",
        sa.Column("purpose", _exact(16), nullable=False),
        sa.Column("secret", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("purpose"),
    )
    op.create_table(
        "join_token",
        sa.Column("token_id", _exact(36), nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("node_pattern", sa.String(253), nullable=False),
        sa.Column("project_id", sa.String(63), nullable=False),
        sa.Column("uses", sa.Integer(), nullable=False),
        sa.Column("uses_left", sa.Integer(), sa.CheckConstraint("uses_left >= 0"), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("revoked", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("token_id"),
    )
    op.create_table(
        "enrolled_node",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("project_id", sa.String(63), nullable=False),
        sa.Column("revoked_at_ms", sa.BigInteger()),
        sa.PrimaryKeyConstraint("node_id"),
    )
    op.create_table(
        "node_certificate",
        sa.Column("node_id", _exact(253), nullable=False),
        sa.Column("serial", _exact(40), nullable=False),
        sa.Column("not_before_ms", sa.BigInteger(), nullable=False),
        sa.Column("not_after_ms", sa.BigInteger(), nullable=False),
        sa.Column("issued_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("token_id", sa.String(36), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("peer_address", sa.String(256), nullable=False),
        sa.PrimaryKeyConstraint("node_id", "serial"),
    )
