"""A node's own row counts the lines of its history; lines that say the same are one with a count."""

import sqlalchemy as sa
from alembic import op

revision = "v8"
down_revision = "v9"


def upgrade() -> None:
    # What is there is counted when it is cut for the first time, at the bound.
    op.add_column(
        "node", sa.Column("history_rows", sa.BigInteger(), nullable=False, server_default=sa.text("0"))
    )
    for name in ("repeats", "last_at_ms"):
        op.add_column(
            "delivery_event", sa.Column(name, sa.BigInteger(), nullable=False, server_default=sa.text("0"))
        )
    op.create_index(
        "node_unknown",
        "node",
        ["node_id"],
        sqlite_where=sa.text("known IS 0"),
        postgresql_where=sa.text("known IS false"),
    )
    op.create_table(
        "seen_time",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("at_ms", sa.BigInteger(), nullable=False),
    )
