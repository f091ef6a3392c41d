"""PostgreSQL updates a delivery in its place: no index changes with it, and its page keeps room."""

from alembic import op

revision = "v5"
down_revision = "v4"


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.drop_index("delivery_pending", "delivery")
        op.execute("ALTER TABLE delivery SET (fillfactor = 70)")
