"""A node's row counts the transactions that changed the node's rows."""

import sqlalchemy as sa
from alembic import op

revision = "v3"
down_revision = "v2"


def upgrade() -> None:
    op.add_column("node", sa.Column("revision", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
