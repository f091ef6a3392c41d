"""An object's row has its apiVersion and kind, where its path does not say them; what is noted of a node is
found without its history."""

import sqlalchemy as sa
from alembic import op

revision = "v11"
down_revision = "v10"


def upgrade() -> None:
    # The index first: it may take long, and a column that is added keeps everybody out until the end.
    # Not CONCURRENTLY: it waits for all older snapshots, also those of replicas that wait for their turn to
    # migrate, and so for this one; and it cannot be in the transaction that the turn lasts for.
    op.create_index(
        "delivery_event_noted",
        "delivery_event",
        ["node_id", "event_id"],
        sqlite_where=sa.text("kind = 11"),
        postgresql_where=sa.text("kind = 11"),
    )
    op.add_column("delivery", sa.Column("type_meta", sa.Text(), nullable=False, server_default=sa.text("''")))
