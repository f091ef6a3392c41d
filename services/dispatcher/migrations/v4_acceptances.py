"""The end of a message may tell when it was accepted."""

import sqlalchemy as sa
from alembic import op

revision = "v4"
down_revision = "v3"


def upgrade() -> None:
    # Of what is there, every acceptance has a line of its own, as of ids that publishers chose.
    op.add_column("delivery", sa.Column("own_id", sa.Boolean(), nullable=False, server_default=sa.true()))
    op.add_column(
        "delivery_event",
        sa.Column("accepted_at_ms", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
    )
    told = sa.text("accepted_at_ms <> 0")
    op.create_index(
        "delivery_event_ended",
        "delivery_event",
        ["node_id", "message_id"],
        sqlite_where=told,
        postgresql_where=told,
    )
