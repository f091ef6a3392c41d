"""Tables of the dispatcher's database. Every key starts with the node id.

What changes here changes in `services/dispatcher/migrations` as well; a test compares the two.
"""

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    text,
    true,
)

from services.dispatcher.upstream.uploads import upload_table
from services.runtime.column_types import exact_text
from services.runtime.migrations import Schema

metadata = MetaData()
SCHEMA = Schema("dispatcher", metadata, Path(__file__).parents[1] / "migrations")
uploads = upload_table(metadata)

node = Table(
    "node",
    metadata,
    Column("node_id", exact_text(253), primary_key=True),
    Column("last_seq", BigInteger, nullable=False),
    Column("owner_epoch", BigInteger, nullable=False),
    Column("pending_rows", BigInteger, nullable=False),
    Column("pending_bytes", BigInteger, nullable=False),
    Column("known", Boolean, nullable=False),
    Column("last_ack_ms", BigInteger, nullable=False),
    # Raised by whatever changes rows of the node's objects where several processes write.
    Column("revision", BigInteger, nullable=False, server_default=text("0")),
    # Lines of its history that may go at the bound; never fewer than there are.
    Column("history_rows", BigInteger, nullable=False, server_default=text("0")),
    # Its rows in `delivery`, those of answers apart.
    Column("objects", BigInteger, nullable=False, server_default=text("0")),
)
_unknown = node.c.known.is_(False)
Index("node_unknown", node.c.node_id, sqlite_where=_unknown, postgresql_where=_unknown)

# One row per (node, object). On PostgreSQL no index holds what a message changes in it: it is updated within
# its page (HOT), and what is pending is found among the rows of its node.
# Versions are 20 digits of text: they compare exactly on every engine.
# `message` is the serialized cloudhub.v1.Message, dropped when the row is settled.
delivery = Table(
    "delivery",
    metadata,
    Column("node_id", exact_text(253), primary_key=True),
    Column("object_key", Text, primary_key=True),
    Column("path", Text, nullable=False),
    Column("uid", Text, nullable=False),
    Column("floor", String(20), nullable=False),
    Column("acknowledged", String(20)),
    Column("deleted", Boolean, nullable=False),
    Column("state", Integer, nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("version", String(20)),
    Column("operation", Text, nullable=False),
    Column("is_answer", Boolean, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("accepted_at_ms", BigInteger, nullable=False),
    Column("changed_at_ms", BigInteger, nullable=False),
    Column("expires_at_ms", BigInteger, nullable=False),
    Column("size_bytes", Integer, nullable=False),
    Column("traceparent", Text, nullable=False),
    # The publisher chose the message id: its acceptance has a line of history of its own.
    Column("own_id", Boolean, nullable=False, server_default=true()),
    # apiVersion and kind of the object as it was last published, where its path does not say them.
    Column("type_meta", Text, nullable=False, server_default=text("''")),
    Column("message", LargeBinary),
    postgresql_with={"fillfactor": 70},
)
Index("delivery_by_path", delivery.c.node_id, delivery.c.path)
# SQLite writes only what changes in an index, and looks through a node's rows far more slowly.
Index("delivery_pending", delivery.c.node_id, delivery.c.seq, sqlite_where=text("state <> 0")).ddl_if(
    dialect="sqlite"
)
_expiring = text("expires_at_ms <> 0")
Index("delivery_expiring", delivery.c.expires_at_ms, sqlite_where=_expiring, postgresql_where=_expiring)

# Nodes whose edge ended its last link with a message unanswered; gone when a caution over that has ended.
link_cuts = Table(
    "link_cuts",
    metadata,
    Column("node_id", exact_text(253), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("through_seq", BigInteger, nullable=False),
    Column("links", Integer, nullable=False),
    Column("parked", Integer, nullable=False),
)

# How far time was seen to pass, by what is done with it (`services.runtime.seen_time`).
seen_time = Table(
    "seen_time",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("at_ms", BigInteger, nullable=False),
)

# Append-only history with bounded retention. `event_id` grows with time within a node (`event_ids`).
delivery_event = Table(
    "delivery_event",
    metadata,
    Column("node_id", exact_text(253), primary_key=True),
    Column("event_id", BigInteger, primary_key=True, autoincrement=False),
    Column("kind", Integer, nullable=False),
    Column("at_ms", BigInteger, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("object_key", Text, nullable=False),
    Column("version", String(20)),
    Column("attempt", Integer, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("reason", Text, nullable=False),
    Column("sent_at_ms", BigInteger, nullable=False, server_default=text("0")),
    Column("accepted_at_ms", BigInteger, nullable=False, server_default=text("0")),
    # It stands for as many more that said the same, the last one at this time.
    Column("repeats", BigInteger, nullable=False, server_default=text("0")),
    Column("last_at_ms", BigInteger, nullable=False, server_default=text("0")),
)
_accepted = text("kind = 1")
Index(
    "delivery_event_accepted",
    delivery_event.c.node_id,
    delivery_event.c.message_id,
    sqlite_where=_accepted,
    postgresql_where=_accepted,
)
# Few of many: what is noted of the node itself.
_noted = text("kind = 11")
Index(
    "delivery_event_noted",
    delivery_event.c.node_id,
    delivery_event.c.event_id,
    sqlite_where=_noted,
    postgresql_where=_noted,
)
_ended = text("accepted_at_ms <> 0")
Index(
    "delivery_event_ended",
    delivery_event.c.node_id,
    delivery_event.c.message_id,
    sqlite_where=_ended,
    postgresql_where=_ended,
)
