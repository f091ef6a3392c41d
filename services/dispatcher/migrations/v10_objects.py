"""A node's row counts the objects on record."""

import sqlalchemy as sa
from alembic import op

revision = "v10"
down_revision = "v8"


def upgrade() -> None:
    op.add_column("node", sa.Column("objects", sa.BigInteger(), nullable=False, server_default=sa.text("0")))
    op.execute(
        "UPDATE node SET objects = (SELECT count(*) FROM delivery"
        " WHERE delivery.node_id = node.node_id AND NOT delivery.is_answer)"
    )
