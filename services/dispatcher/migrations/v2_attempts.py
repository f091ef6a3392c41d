"""An acknowledgement may tell when what it answers was sent."""

import sqlalchemy as sa
from alembic import op

revision = "v2"
down_revision = "v1"


def upgrade() -> None:
    # Of what is there, every attempt has a line of its own.
    op.add_column(
        "delivery_event",
        sa.Column("sent_at_ms", sa.BigInteger(), nullable=False, server_default=sa.text("0")),
    )
