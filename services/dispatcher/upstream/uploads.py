"""Durable uploads on SQL: stored before they are handed on, deleted when a subscriber is done.

A node's rows in order of (epoch, n) are in the order it sent them: each epoch is one dispatcher's, where
`n` grows with arrival and is about its time in microseconds. The two are one number, the row's place. Each
row has a holder, the dispatcher that hands it on; another one takes it over when the node has moved there, or
when the holder is gone.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    bindparam,
    delete,
    func,
    literal,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.shares import Amount
from services.runtime.column_types import exact_text
from services.runtime.errors import StoreRefused

# Of rows whose holder has stopped: whoever comes first takes them.
RELEASED = ""
_N_BITS = 63
_N_MASK = (1 << _N_BITS) - 1


def place_of(epoch: int, n: int) -> int:
    """Where a row stands among those of its node."""
    return epoch << _N_BITS | n


def epoch_and_n(place: int) -> tuple[int, int]:
    """What `place_of` was given."""
    return max(0, place) >> _N_BITS, max(0, place) & _N_MASK


@dataclass(frozen=True, slots=True)
class UploadRow:
    """One upload as it is stored. `epoch` is that of the session it came over, `holder` whose it is."""

    node_id: str
    n: int
    epoch: int
    size_bytes: int
    message: Message
    holder: str

    @property
    def place(self) -> int:
        """Where it stands among those of its node."""
        return place_of(self.epoch, self.n)


@dataclass(frozen=True, slots=True)
class TakenOver:
    """A node's rows that have a new holder: how many, none before `first`, none behind `last`."""

    node_id: str
    rows: int
    size_bytes: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class LoadWanted:
    """Rows of a node with a place above `after`: at most `limit`, ending once `most_bytes` are read."""

    node_id: str
    after: int
    limit: int
    most_bytes: int


@dataclass(slots=True)
class LoadedUploads:
    """Rows in order; `reached` is the last place looked at, `is_all` says that none came behind it.

    `unreadable` are the places of those whose content is no message; they stay where they are.
    """

    rows: list[UploadRow] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)
    reached: int = 0
    is_all: bool = True


def upload_table(metadata: MetaData) -> Table:
    """Declares the table `upload`. A node's message id is stored once, however often the edge repeats it."""
    table = Table(
        "upload",
        metadata,
        Column("node_id", exact_text(253), primary_key=True),
        Column("epoch", BigInteger, primary_key=True, autoincrement=False),
        Column("n", BigInteger, primary_key=True, autoincrement=False),
        Column("message_id", Text, nullable=False),
        Column("holder", exact_text(255), nullable=False),
        Column("size_bytes", Integer, nullable=False),
        Column("message", LargeBinary, nullable=False),
        UniqueConstraint("node_id", "message_id", name="upload_message_id"),
    )
    # Answers what a holder has without a look at the rows, which hold the messages.
    Index("upload_held", table.c.holder, table.c.node_id, table.c.size_bytes, table.c.n)
    return table


def store_uploads(connection: Connection, table: Table, rows: Sequence[UploadRow]) -> set[tuple[str, int]]:
    """Inserts rows and gives back the keys of those now stored; the others repeat a stored message id.

    May be run again after a commit whose outcome is unknown: rows of the first run count as stored.
    """
    if not rows:
        return set()
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    key = (table.c.node_id, table.c.epoch, table.c.n)
    statement = dialect.insert(table).on_conflict_do_nothing().returning(*key)
    values = [
        {
            "node_id": row.node_id,
            "epoch": row.epoch,
            "n": row.n,
            "message_id": row.message.id,
            "holder": row.holder,
            "size_bytes": row.size_bytes,
            "message": row.message.SerializeToString(),
        }
        # In one order, so that two dispatchers that store what a node repeats do not wait in a circle.
        for row in sorted(rows, key=lambda row: (row.node_id, row.message.id, row.n))
    ]
    stored = {(node_id, place_of(epoch, n)) for node_id, epoch, n in connection.execute(statement, values)}
    for row in rows:
        if (row.node_id, row.place) not in stored and _is_stored(connection, table, row):
            stored.add((row.node_id, row.place))
    return stored


def _is_stored(connection: Connection, table: Table, row: UploadRow) -> bool:
    query = select(table.c.message_id).where(
        table.c.node_id == row.node_id, table.c.epoch == row.epoch, table.c.n == row.n
    )
    found = connection.execute(query).scalar()
    if found is not None and found != row.message.id:
        raise StoreRefused(f"upload {row.n} of node {row.node_id} is another message")
    return found is not None


def delete_uploads(connection: Connection, table: Table, keys: Sequence[tuple[str, int]]) -> None:
    """Deletes the rows of these (node_id, place), whoever holds them; those that are gone are no error."""
    if keys:
        statement = delete(table).where(
            table.c.node_id == bindparam("settled_node"),
            table.c.epoch == bindparam("settled_epoch"),
            table.c.n == bindparam("settled_n"),
        )
        values = []
        for node_id, place in keys:
            epoch, n = epoch_and_n(place)
            values.append({"settled_node": node_id, "settled_epoch": epoch, "settled_n": n})
        connection.execute(statement, values)


def load_uploads(connection: Connection, table: Table, holder: str, wanted: LoadWanted) -> LoadedUploads:
    """What is wanted and the holder's, in order; at least one row if there is one."""
    epoch, n = epoch_and_n(wanted.after)
    query = (
        select(table.c.epoch, table.c.n, table.c.size_bytes, table.c.message)
        .where(
            table.c.node_id == wanted.node_id,
            tuple_(table.c.epoch, table.c.n) > tuple_(literal(epoch, BigInteger), literal(n, BigInteger)),
            table.c.holder == holder,
        )
        .order_by(table.c.epoch, table.c.n)
        .limit(wanted.limit)
    )
    loaded = LoadedUploads(reached=wanted.after)
    left, size = wanted.limit, 0
    with connection.execute(query) as result:
        for epoch, n, size_bytes, content in result:
            loaded.reached = place_of(epoch, n)
            try:
                message = Message.FromString(content)
            except DecodeError:
                loaded.unreadable.append(loaded.reached)
            else:
                loaded.rows.append(UploadRow(wanted.node_id, n, epoch, size_bytes, message, holder))
            left -= 1
            size += size_bytes
            if not left or size >= wanted.most_bytes:
                loaded.is_all = False
                break
    return loaded


def stored_ids(
    connection: Connection, table: Table, wanted: Sequence[tuple[str, str]]
) -> set[tuple[str, str]]:
    """Those of these (node_id, message_id) that are stored, whoever holds them."""
    found: set[tuple[str, str]] = set()
    for node_id in dict.fromkeys(node_id for node_id, _ in wanted):
        ids = [message_id for node, message_id in wanted if node == node_id]
        query = select(table.c.message_id).where(table.c.node_id == node_id, table.c.message_id.in_(ids))
        found.update((node_id, row[0]) for row in connection.execute(query))
    return found


def _amount(table: Table) -> tuple[ColumnElement[int], ColumnElement[int]]:
    return func.count(), func.coalesce(func.sum(table.c.size_bytes), 0)


def count_nodes(connection: Connection, table: Table, nodes: Sequence[str]) -> dict[str, Amount]:
    """What these nodes have in the store, whoever holds it; those with nothing too."""
    query = (
        select(table.c.node_id, *_amount(table)).where(table.c.node_id.in_(nodes)).group_by(table.c.node_id)
    )
    found = {node_id: Amount(int(rows), int(size)) for node_id, rows, size in connection.execute(query)}
    return {node_id: found.get(node_id, Amount()) for node_id in nodes}


def count_held(connection: Connection, table: Table, holder: str) -> dict[str, Amount]:
    """What the holder has, by node. The index on holders answers it."""
    query = select(table.c.node_id, *_amount(table)).where(table.c.holder == holder).group_by(table.c.node_id)
    return {node_id: Amount(int(rows), int(size)) for node_id, rows, size in connection.execute(query)}


def count_elsewhere(connection: Connection, table: Table, holder: str) -> Amount:
    """What all others have. The index on holders answers it."""
    rows, size = connection.execute(select(*_amount(table)).where(table.c.holder != holder)).one()
    return Amount(int(rows), int(size))


def oldest_n(connection: Connection, table: Table, holder: str) -> int:
    """The lowest `n` of the holder's rows, which is when it came, in microseconds; 0 if it has none."""
    query = select(func.min(table.c.n)).where(table.c.holder == holder)
    return int(connection.execute(query).scalar() or 0)


def other_holders(connection: Connection, table: Table, holder: str) -> list[str]:
    """Everybody else who holds rows: a step per holder along the index, however many rows there are."""
    found: list[str] = []
    last: str | None = None
    while True:
        query = select(func.min(table.c.holder))
        if last is not None:
            query = query.where(table.c.holder > last)
        last = connection.execute(query).scalar()
        if last is None:
            return found
        if last != holder:
            found.append(last)


def nodes_of(connection: Connection, table: Table, holder: str, limit: int) -> list[str]:
    """Some of the nodes that a holder has rows of."""
    query = (
        select(table.c.node_id)
        .where(table.c.holder == holder)
        .group_by(table.c.node_id)
        .order_by(table.c.node_id)
        .limit(limit)
    )
    return [row[0] for row in connection.execute(query)]


def take_over(
    connection: Connection, table: Table, holder: str, *, nodes: Sequence[str] = (), former: str | None = None
) -> list[TakenOver]:
    """Makes rows the holder's: those of `nodes` that one former holder has, or anybody else; without
    either, all rows there are. Of several that try at once one gets a row; the others find it changed."""
    chosen: list[ColumnElement[bool]] = []
    if nodes:
        chosen = [table.c.node_id.in_(nodes), table.c.holder != holder]
    if former is not None:
        chosen.append(table.c.holder == former)
    statement = update(table).where(*chosen).values(holder=holder)
    found: dict[str, list[tuple[int, int]]] = {}
    changed: Any = connection.execute(
        statement.returning(table.c.node_id, table.c.epoch, table.c.n, table.c.size_bytes)
    )
    for node_id, epoch, n, size_bytes in changed:
        found.setdefault(node_id, []).append((place_of(epoch, n), size_bytes))
    return [
        TakenOver(node, len(rows), sum(size for _, size in rows), min(rows)[0], max(rows)[0])
        for node, rows in sorted(found.items())
    ]


def release(connection: Connection, table: Table, holder: str) -> None:
    """The holder stops: its rows are anybody's."""
    connection.execute(update(table).where(table.c.holder == holder).values(holder=RELEASED))
