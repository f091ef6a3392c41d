"""Durable uploads on SQL: stored before they are handed on, deleted when a subscriber is done.

A row's `n` grows with arrival, so a node's rows in order of `n` are in the order it sent them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from google.protobuf.message import DecodeError
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    func,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from cloudhub.v1.message_pb2 import Message
from services.runtime.column_types import exact_text
from services.runtime.errors import StoreRefused


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One upload as it is stored. `epoch` is that of the session it came over."""

    node_id: str
    n: int
    epoch: int
    size_bytes: int
    message: Message


@dataclass(frozen=True, slots=True)
class StoredUploads:
    """What a database holds at start: the number of rows, the highest `n`, and the highest per node."""

    rows: int
    last_n: int
    last_by_node: dict[str, int]


@dataclass(frozen=True, slots=True)
class LoadWanted:
    """Rows of a node with an `n` above `after`: at most `limit`, ending once `most_bytes` are read."""

    node_id: str
    after: int
    limit: int
    most_bytes: int


@dataclass(slots=True)
class LoadedUploads:
    """Rows in order of `n`; `reached` is the last `n` looked at, `is_all` says that none came behind it.

    `unreadable` are those whose content is no message; they stay where they are.
    """

    rows: list[UploadRow] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    reached: int = 0
    is_all: bool = True


def upload_table(metadata: MetaData) -> Table:
    """Declares the table `upload`. A node's message id is stored once, however often the edge repeats it."""
    return Table(
        "upload",
        metadata,
        Column("node_id", exact_text(253), primary_key=True),
        Column("n", BigInteger, primary_key=True, autoincrement=False),
        Column("message_id", Text, nullable=False),
        Column("epoch", BigInteger, nullable=False),
        Column("size_bytes", Integer, nullable=False),
        Column("message", LargeBinary, nullable=False),
        UniqueConstraint("node_id", "message_id", name="upload_message_id"),
    )


def store_uploads(connection: Connection, table: Table, rows: Sequence[UploadRow]) -> set[tuple[str, int]]:
    """Inserts rows and gives back the keys of those now stored; the others repeat a stored message id.

    May be run again after a commit whose outcome is unknown: rows of the first run count as stored.
    """
    if not rows:
        return set()
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing().returning(table.c.node_id, table.c.n)
    values = [
        {
            "node_id": row.node_id,
            "n": row.n,
            "message_id": row.message.id,
            "epoch": row.epoch,
            "size_bytes": row.size_bytes,
            "message": row.message.SerializeToString(),
        }
        # In one order, so that two dispatchers that store what a node repeats do not wait in a circle.
        for row in sorted(rows, key=lambda row: (row.node_id, row.message.id, row.n))
    ]
    stored = {(node_id, n) for node_id, n in connection.execute(statement, values)}
    for row in rows:
        key = (row.node_id, row.n)
        if key not in stored and _is_stored(connection, table, row):
            stored.add(key)
    return stored


def _is_stored(connection: Connection, table: Table, row: UploadRow) -> bool:
    query = select(table.c.message_id).where(table.c.node_id == row.node_id, table.c.n == row.n)
    found = connection.execute(query).scalar()
    if found is not None and found != row.message.id:
        raise StoreRefused(f"upload {row.n} of node {row.node_id} is another message")
    return found is not None


def delete_uploads(connection: Connection, table: Table, keys: Sequence[tuple[str, int]]) -> None:
    """Deletes the rows of these (node_id, n); those that are gone already are no error."""
    if keys:
        statement = delete(table).where(
            table.c.node_id == bindparam("settled_node"), table.c.n == bindparam("settled_n")
        )
        connection.execute(statement, [{"settled_node": node_id, "settled_n": n} for node_id, n in keys])


def load_uploads(connection: Connection, table: Table, wanted: LoadWanted) -> LoadedUploads:
    """What is wanted, in order of `n`; at least one row if there is one."""
    query = (
        select(table.c.n, table.c.epoch, table.c.size_bytes, table.c.message)
        .where(table.c.node_id == wanted.node_id, table.c.n > wanted.after)
        .order_by(table.c.n)
        .limit(wanted.limit)
    )
    loaded = LoadedUploads(reached=wanted.after)
    left, size = wanted.limit, 0
    with connection.execute(query) as result:
        for n, epoch, size_bytes, content in result:
            loaded.reached = n
            try:
                message = Message.FromString(content)
            except DecodeError:
                loaded.unreadable.append(n)
            else:
                loaded.rows.append(UploadRow(wanted.node_id, n, epoch, size_bytes, message))
            left -= 1
            size += size_bytes
            if not left or size >= wanted.most_bytes:
                loaded.is_all = False
                break
    return loaded


def stored_uploads(connection: Connection, table: Table) -> StoredUploads:
    """Counts what is stored."""
    query = select(table.c.node_id, func.count(), func.max(table.c.n)).group_by(table.c.node_id)
    rows, last_by_node = 0, {}
    for node_id, count, last in connection.execute(query):
        rows += count
        last_by_node[node_id] = last
    return StoredUploads(rows, max(last_by_node.values(), default=0), last_by_node)
