"""What operators see: releases and draining of processes, enrolment among them, and who was revoked."""

import sqlalchemy as sa
from alembic import op

revision = "v4"
down_revision = "v3"

REVOKED = sa.text("revoked_at_ms IS NOT NULL")


def upgrade() -> None:
    no = sa.text("false")
    op.add_column("node_session", sa.Column("revoked", sa.Boolean(), nullable=False, server_default=no))
    # Processes of the release before write rows without these.
    for table in ("dispatcher_lease", "sessions_replica"):
        op.add_column(table, sa.Column("version", sa.String(64), nullable=False, server_default=""))
    op.add_column("dispatcher_lease", sa.Column("draining", sa.Boolean(), nullable=False, server_default=no))
    op.add_column(
        "sessions_replica",
        sa.Column("service", sa.String(16), nullable=False, server_default="sessions"),
    )
    op.create_index(
        "enrolled_node_revoked",
        "enrolled_node",
        ["node_id"],
        sqlite_where=REVOKED,
        postgresql_where=REVOKED,
    )
