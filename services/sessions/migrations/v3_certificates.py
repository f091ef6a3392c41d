"""Of each node the newest certificates alone, found by age."""

import sqlalchemy as sa
from alembic import op

revision = "v3"
down_revision = "v2"

MOST_PER_NODE = 16


def upgrade() -> None:
    op.create_index("node_certificate_by_age", "node_certificate", ["node_id", "issued_at_ms"])
    op.get_bind().execute(
        sa.text(
            "DELETE FROM node_certificate WHERE (node_id, serial) IN (SELECT node_id, serial FROM ("
            "SELECT node_id, serial, row_number() OVER "
            "(PARTITION BY node_id ORDER BY issued_at_ms DESC, serial DESC) AS place FROM node_certificate"
            ") AS aged WHERE place > :most)"
        ),
        {"most": MOST_PER_NODE},
    )
