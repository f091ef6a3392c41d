"""The tables of the registry. Every key of a node's rows starts with its id.

What changes here changes in `services/sessions/migrations` as well; a test compares the two.
"""

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Index,
    Integer,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

from services.runtime.column_types import exact_text
from services.runtime.migrations import Schema
from services.runtime.names import MAX_VERSION_CHARS, MOST_NODE_ID_CHARS

metadata = MetaData()
SCHEMA = Schema("sessions", metadata, Path(__file__).parent / "migrations")

# Sessions that ended with their node: state CLOSED, reason NODE_DELETED. In words that match the index.
DELETED = text("state = 5 AND reason = 7")
REVOKED = text("revoked_at_ms IS NOT NULL")
_NO = text("false")

# A node's newest session, live or closed: the row stays, so that epochs go on growing.
node_session = Table(
    "node_session",
    metadata,
    Column("node_id", exact_text(MOST_NODE_ID_CHARS), primary_key=True),
    Column("project_id", String(63), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("state", SmallInteger, CheckConstraint("state BETWEEN 1 AND 5"), nullable=False),
    Column("reason", SmallInteger, CheckConstraint("reason BETWEEN 1 AND 12")),
    Column("announced", Boolean, nullable=False),
    Column("connector_id", String(128), nullable=False),
    Column("dispatcher_id", String(128), nullable=False),
    Column("link", BigInteger, nullable=False),
    Column("transport", String(16), nullable=False),
    Column("peer_address", String(256), nullable=False),
    Column("opened_at_ms", BigInteger, nullable=False),
    Column("closed_at_ms", BigInteger),
    # The number of the last transaction that changed it (`slot_count.last_change`).
    Column("change", BigInteger, nullable=False),
    # It was evicted since its node was revoked.
    Column("revoked", Boolean, nullable=False, server_default=_NO),
    Index("node_session_by_dispatcher", "dispatcher_id", "state"),
    Index("node_session_by_state", "state"),
    Index("node_session_by_change", "change", "node_id"),
    Index("node_session_deleted", "node_id", sqlite_where=DELETED, postgresql_where=DELETED),
)

# `connected` and `disconnected` events that no subscriber has acknowledged.
lifecycle_event = Table(
    "lifecycle_event",
    metadata,
    Column("node_id", exact_text(MOST_NODE_ID_CHARS), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("kind", SmallInteger, CheckConstraint("kind IN (1, 2)"), primary_key=True),
    Column("event_id", String(36), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("reason", SmallInteger, CheckConstraint("reason BETWEEN 1 AND 12")),
    Column("dispatcher_id", String(128), nullable=False),
    Column("handed", BigInteger, nullable=False),
    Index("lifecycle_event_by_id", "event_id"),
    Index("lifecycle_event_by_dispatcher", "dispatcher_id", "handed", "node_id"),
    Index("lifecycle_event_by_age", "at_ms"),
)

# Ends asked of dispatchers and not confirmed.
end_directive = Table(
    "end_directive",
    metadata,
    Column("node_id", exact_text(MOST_NODE_ID_CHARS), primary_key=True),
    Column("epoch", BigInteger, primary_key=True),
    Column("dispatcher_id", String(128), nullable=False),
    Column("reason", SmallInteger, CheckConstraint("reason BETWEEN 1 AND 13"), nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Index("end_directive_by_dispatcher", "dispatcher_id"),
    Index("end_directive_by_age", "at_ms"),
)

dispatcher_lease = Table(
    "dispatcher_lease",
    metadata,
    Column("dispatcher_id", String(128), primary_key=True),
    Column("name", String(253), nullable=False),
    Column("address", String(261), nullable=False),
    # The dispatcher's own count; one that did not grow renews nothing.
    Column("counter", BigInteger, nullable=False),
    Column("renewals", BigInteger, nullable=False),
    Column("sessions", Integer, nullable=False),
    # The connectors attached to it as JSON, for the listing of instances.
    Column("connectors", Text, nullable=False),
    Column("lost", Boolean, nullable=False),
    Column("version", String(MAX_VERSION_CHARS), nullable=False, server_default=""),
    Column("draining", Boolean, nullable=False, server_default=_NO),
)

# Processes of this service that share the database, and those of enrolment that report to it.
sessions_replica = Table(
    "sessions_replica",
    metadata,
    Column("replica_id", String(128), primary_key=True),
    Column("name", String(253), nullable=False),
    Column("address", String(261), nullable=False),
    Column("beats", BigInteger, nullable=False),
    Column("service", String(16), nullable=False, server_default="sessions"),
    Column("version", String(MAX_VERSION_CHARS), nullable=False, server_default=""),
)

# Nodes that hold a slot, changed in the transaction that opens or ends a session. The row of the total
# is locked by every transaction that changes a session, so the numbers it gives out grow in the order
# of the commits.
slot_count = Table(
    "slot_count",
    metadata,
    Column("scope", exact_text(16), primary_key=True),
    Column("place", exact_text(128), primary_key=True),
    Column("nodes", BigInteger, nullable=False),
    Column("last_change", BigInteger, nullable=False),
)

# Limits that were changed at run time; the others are the settings'.
limit_change = Table(
    "limit_change",
    metadata,
    Column("scope", exact_text(16), primary_key=True),
    Column("place", exact_text(128), primary_key=True),
    Column("nodes", BigInteger, nullable=False),
)

# What join tokens are signed with: one row, made by whoever needs it first.
enrolment_key = Table(
    "enrolment_key",
    metadata,
    Column("purpose", exact_text(16), primary_key=True),
    Column("secret", String(64), nullable=False),
)

# Join tokens without their secret: `digest` is SHA-256 of the whole JWT.
join_token = Table(
    "join_token",
    metadata,
    Column("token_id", exact_text(36), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("node_pattern", String(253), nullable=False),
    Column("project_id", String(63), nullable=False),
    Column("uses", Integer, nullable=False),
    Column("uses_left", Integer, CheckConstraint("uses_left >= 0"), nullable=False),
    Column("created_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("revoked", Boolean, nullable=False),
)

# Nodes that have enrolled or were revoked. It outlives a node's deletion: its certificates do too.
enrolled_node = Table(
    "enrolled_node",
    metadata,
    Column("node_id", exact_text(MOST_NODE_ID_CHARS), primary_key=True),
    # The only project that it may connect in; empty: any.
    Column("project_id", String(63), nullable=False),
    # Certificates issued up to then are refused.
    Column("revoked_at_ms", BigInteger),
    Index("enrolled_node_revoked", "node_id", sqlite_where=REVOKED, postgresql_where=REVOKED),
)

node_certificate = Table(
    "node_certificate",
    metadata,
    Column("node_id", exact_text(MOST_NODE_ID_CHARS), primary_key=True),
    Column("serial", exact_text(40), primary_key=True),
    Column("not_before_ms", BigInteger, nullable=False),
    Column("not_after_ms", BigInteger, nullable=False),
    # In the order of the transactions, also with clocks that differ: never up to a revocation before it.
    Column("issued_at_ms", BigInteger, nullable=False),
    # Empty: by the certificate before it.
    Column("token_id", String(36), nullable=False),
    Column("key_sha256", String(64), nullable=False),
    Column("peer_address", String(256), nullable=False),
    Index("node_certificate_by_age", "node_id", "issued_at_ms"),
)
