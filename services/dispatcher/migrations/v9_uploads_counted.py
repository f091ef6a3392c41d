"""What a holder of uploads has, in all and by node, is counted in an index, not in the messages."""

from alembic import op

revision = "v9"
down_revision = "v6"


def upgrade() -> None:
    op.create_index("upload_held", "upload", ["holder", "node_id", "size_bytes", "n"])
    op.drop_index("upload_holder", "upload")
