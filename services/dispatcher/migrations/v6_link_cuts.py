"""Nodes whose edge ended link after link with a message unanswered."""

import sqlalchemy as sa
from alembic import op

revision = "v6"
down_revision = "v5"


def upgrade() -> None:
    op.create_table(
        "link_cuts",
        sa.Column(
            "node_id",
            sa.String(253).with_variant(sa.String(253, collation="C"), "postgresql"),
            primary_key=True,
        ),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("through_seq", sa.BigInteger(), nullable=False),
        sa.Column("links", sa.Integer(), nullable=False),
        sa.Column("parked", sa.Integer(), nullable=False),
    )
