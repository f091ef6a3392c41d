"""The outbox on SQL."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

from google.protobuf.message import DecodeError
from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    or_,
    select,
    true,
    union_all,
)

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox.ages import Ages, first_pending
from services.dispatcher.outbox.contract import Mended, NodeFilter, NodeSummary, SweepPlace, Swept
from services.dispatcher.outbox.event_ids import EventIds, first_id_of
from services.dispatcher.outbox.history import Cuts, History, HistoryCounts
from services.dispatcher.outbox.known_rows import Known, KnownRows
from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.mending import mend, next_nodes
from services.dispatcher.outbox.needs import Needs
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import (
    Deleted,
    Event,
    EventKind,
    ForgetNode,
    ObjectRow,
    Op,
    Result,
    RowState,
    Withheld,
    unfolded,
)
from services.dispatcher.outbox.repetitions import OpenLines
from services.dispatcher.outbox.retention import revised, swept
from services.dispatcher.outbox.revised_rows import RevisedRows
from services.dispatcher.outbox.rows import event_of, node_row, object_row
from services.dispatcher.outbox.schema import delivery, delivery_event, node, seen_time
from services.dispatcher.outbox.transaction import (
    DELIVERY_COLUMNS,
    apply_ops,
    load_ledger,
    lock_free_nodes,
    write_ledger,
)
from services.dispatcher.sizes import MAX_BODY_BYTES, too_large
from services.runtime.errors import RowDamaged, StoreBusy, StoreRefused, StoreUnavailable
from services.runtime.logs import get_log
from services.runtime.rowsets import RowQuery
from services.runtime.statements import insert_rows
from services.runtime.store import Store

T = TypeVar("T")

_log = get_log(__name__)

_EVENT_COLUMNS = [
    delivery_event.c[name]
    for name in (
        "node_id",
        "kind",
        "at_ms",
        "message_id",
        "object_key",
        "version",
        "attempt",
        "epoch",
        "reason",
        "sent_at_ms",
        "accepted_at_ms",
        "repeats",
        "last_at_ms",
    )
]
_SUMMARY_COLUMNS = list(node.c)
# Of the bodies that one reading brings; at least one comes.
MAX_LOADED_BYTES = 32 * 1024 * 1024
# A value that the driver cannot take, such as a number too large, or a row that somebody else wrote.
_BAD_VALUES = (ValueError, TypeError, OverflowError)


_sizes_by_key = RowQuery(
    ["node_id", "object_key"],
    lambda wanted: select(
        delivery.c.node_id, delivery.c.object_key, delivery.c.seq, func.length(delivery.c.message)
    ).join_from(
        wanted,
        delivery,
        and_(delivery.c.node_id == wanted.c.node_id, delivery.c.object_key == wanted.c.object_key),
    ),
)
_bodies_by_key = RowQuery(
    ["node_id", "object_key"],
    lambda wanted: select(
        delivery.c.node_id, delivery.c.object_key, delivery.c.seq, delivery.c.message
    ).join_from(
        wanted,
        delivery,
        and_(delivery.c.node_id == wanted.c.node_id, delivery.c.object_key == wanted.c.object_key),
    ),
)
_last_seqs_by_node = RowQuery(
    ["node_id"],
    lambda wanted: select(node.c.node_id, node.c.last_seq).join_from(
        wanted, node, node.c.node_id == wanted.c.node_id
    ),
)


def _objects_by(column: str) -> RowQuery:
    return RowQuery(
        ["node_id", column],
        lambda wanted: select(*DELIVERY_COLUMNS).join_from(
            wanted,
            delivery,
            and_(
                delivery.c.node_id == wanted.c.node_id,
                delivery.c[column] == wanted.c[column],
                delivery.c.is_answer.is_(False),
            ),
        ),
    )


_objects_by_key, _objects_by_path = _objects_by("object_key"), _objects_by("path")
_latest_event = (
    select(func.max(delivery_event.c.event_id))
    .where(delivery_event.c.node_id == node.c.node_id)
    .scalar_subquery()
)

_by_message_id = (
    (delivery_event.c.object_key, delivery_event.c, delivery_event.c.kind == 1),
    (delivery_event.c.object_key, delivery_event.c, delivery_event.c.accepted_at_ms != 0),
    (delivery.c.object_key, delivery.c, delivery.c.state != 0),
)
# The history has an index for each part; for what is pending the node's rows are looked through.
_key_of_message = union_all(
    *(
        select(key).where(
            columns.node_id == bindparam("node_id"), columns.message_id == bindparam("message_id"), told
        )
        for key, columns, told in _by_message_id
    )
).limit(1)


# As the index of notes says it: a parameter is not known when the query is planned.
_is_note = delivery_event.c.kind == literal_column(str(int(EventKind.NOTED)))
_is_unknown = node.c.known.is_(False)
_totals = union_all(
    *(
        select(
            func.coalesce(func.sum(node.c.pending_rows), 0),
            func.coalesce(func.sum(node.c.pending_bytes), 0),
            func.count(),
        ).where(which)
        for which in (true(), _is_unknown)
    )
)
_spent_unknown = (
    select(node.c.node_id)
    .where(
        _is_unknown,
        node.c.pending_rows == 0,
        ~select(delivery.c.node_id)
        .where(delivery.c.node_id == node.c.node_id, delivery.c.changed_at_ms >= bindparam("before"))
        .exists(),
    )
    .order_by(node.c.node_id)
    .limit(bindparam("limit"))
)


_RETENTION = "retention"
_seen_ms = select(seen_time.c.at_ms).where(seen_time.c.name == _RETENTION)
_note_seen = insert_rows(seen_time, overwrite=["at_ms"])


def _behind(after: str, prefix: str) -> list[ColumnElement[bool]]:
    """Which nodes have an id above one, that begins so."""
    conditions: list[ColumnElement[bool]] = [node.c.node_id > after]
    if prefix:
        # Not LIKE, which folds capitals on SQLite.
        conditions.append(node.c.node_id >= prefix)
        conditions.append(func.substr(node.c.node_id, 1, len(prefix)) == prefix)
    return conditions


def _newest_events(node_id: str, which: ColumnElement[bool], limit: int) -> Select[Any]:
    """Of a node's history, newest first."""
    return (
        select(*_EVENT_COLUMNS)
        .where(delivery_event.c.node_id == node_id, which)
        .order_by(delivery_event.c.event_id.desc())
        .limit(limit)
    )


def notes_query(node_id: str, limit: int) -> Select[Any]:
    """What is noted of a node, newest first."""
    return _newest_events(node_id, _is_note, limit)


def _read_totals(connection: Connection) -> Totals:
    of_all, of_unknown = ([int(value) for value in row] for row in connection.execute(_totals))
    return Totals(*of_all[:2], *of_unknown)


class _Work(NamedTuple):
    """What one transaction counts, knows and tells."""

    totals: Totals
    known: Known
    history: History


def _loadable(
    wanted: Sequence[tuple[str, str, int]], sizes: dict[tuple[str, str, int], int]
) -> tuple[list[tuple[str, str]], dict[tuple[str, str, int], bytes | Withheld]]:
    """The objects whose bodies are loaded, and those whose are not."""
    loaded: list[tuple[str, str]] = []
    withheld: dict[tuple[str, str, int], bytes | Withheld] = {}
    total_bytes = 0
    for place in wanted:
        size_bytes = sizes.get(place)
        if size_bytes is None:
            continue
        if size_bytes > MAX_BODY_BYTES:
            withheld[place] = Withheld(size_bytes, too_large(size_bytes))
        elif loaded and total_bytes + size_bytes > MAX_LOADED_BYTES:
            withheld[place] = Withheld(size_bytes)
        else:
            loaded.append(place[:2])
            total_bytes += size_bytes
    return loaded, withheld


@dataclass(slots=True)
class SqlOutbox:
    """Implements `contract.Outbox` over a Store. `open` must be awaited before use."""

    store: Store
    quotas: Quotas
    totals: Totals = field(default_factory=Totals)
    history_counts: HistoryCounts = field(default_factory=HistoryCounts)
    _event_ids: EventIds = field(default_factory=EventIds)
    _lines: OpenLines = field(default_factory=OpenLines)
    _cuts: Cuts = field(default_factory=Cuts)
    _known: KnownRows | None = None  # where no other process writes; else `_revised`
    _revised: RevisedRows = field(default_factory=RevisedRows)

    async def open(self) -> None:
        """Reads the totals that the quotas are held against, and where the history goes on: a clock that
        stepped back while the process was away must not give an event's id twice."""

        def read(connection: Connection) -> tuple[Totals, int]:
            # The end of each node's history stands in the index; all of it would be a long read.
            last_event = connection.execute(select(func.max(_latest_event)).select_from(node)).scalar()
            return _read_totals(connection), int(last_event or 0)

        self.totals, last_event = await self.store.read(read)
        self._event_ids = EventIds(last_event)
        self._known = None if self.store.is_shared else KnownRows()

    async def refresh(self) -> None:
        """Reads the totals again where other processes change them too."""
        if self.store.is_shared:
            self.totals = await self.store.read(_read_totals)

    async def commit(self, ops: Sequence[Op]) -> list[Result | Exception]:
        """See `contract.Outbox.commit`."""
        whole: Sequence[Result | Exception] | StoreUnavailable
        try:
            whole = await self._try(ops)
        except StoreBusy as busy:
            if len(ops) == 1:
                return [busy]
            whole = await self._try_unlocked(ops)
        if not isinstance(whole, StoreUnavailable):
            return list(whole)
        if len(ops) == 1:
            return [whole]
        self._forget()  # what stands there may not be what was written
        # Whoever waits for a good one waits for some further transactions, not for one per operation.
        half = len(ops) // 2
        return [*await self.commit(ops[:half]), *await self.commit(ops[half:])]

    async def _try(self, ops: Sequence[Op]) -> list[Result] | StoreUnavailable:
        """The results, or what the database or its content has against one of the operations."""
        try:
            return await self._write(
                lambda c, work: apply_ops(c, ops, self.quotas, work.totals, work.history, work.known)
            )
        except (StoreRefused, RowDamaged) as error:
            return error
        except _BAD_VALUES as error:
            return StoreRefused(f"a value cannot be stored, or a stored one not be read: {error}")

    async def _try_unlocked(self, ops: Sequence[Op]) -> list[Result | StoreBusy] | StoreUnavailable:
        """Leaves out the nodes that somebody else holds, so that they hold up nobody but themselves."""

        def run(connection: Connection, work: _Work) -> list[Result | StoreBusy]:
            held = lock_free_nodes(connection, {op.node_id for op in ops})
            free = [op for op in ops if op.node_id not in held]
            results = iter(apply_ops(connection, free, self.quotas, work.totals, work.history, work.known))
            return [
                StoreBusy(f"node {op.node_id} is locked by another transaction")
                if op.node_id in held
                else next(results)
                for op in ops
            ]

        try:
            return await self._write(run)
        except (StoreRefused, StoreBusy, RowDamaged) as error:
            return error
        except _BAD_VALUES as error:
            return StoreRefused(f"a value cannot be stored, or a stored one not be read: {error}")

    async def _write(self, run: Callable[[Connection, _Work], T]) -> T:
        """One transaction, which counts on a copy of the totals; it may be run more than once, and others
        may end while it runs."""

        def counted(connection: Connection) -> tuple[T, Totals, HistoryCounts, Callable[[], None]]:
            known, confirm = self._begin()
            before = self.totals
            lines = self._lines.begin()
            work = _Work(copy(before), known, History(self._event_ids, lines, self._cuts))
            result = run(connection, work)

            def confirmed() -> None:
                confirm()
                lines.confirm()

            return result, work.totals - before, work.history.counts, confirmed

        result, grown, counts, confirm = await self.store.write(counted)
        confirm()
        self.totals += grown
        self.history_counts.add(counts)
        return result

    def _begin(self) -> tuple[Known, Callable[[], None]]:
        """What a transaction knows, and what to call when it is durable."""
        if self._known is None:
            transaction = self._revised.begin()
            return transaction, transaction.confirm
        number = self._known.begin()
        return self._known, partial(self._known.confirm, number)

    def _forget(self) -> None:
        """Rows are about to be changed past the ledger."""
        if self._known:
            self._known.forget()
        self._revised = RevisedRows()

    async def bodies(
        self, wanted: Sequence[tuple[str, str, int]]
    ) -> dict[tuple[str, str, int], bytes | Withheld]:
        """See `contract.Outbox.bodies`."""

        def read(connection: Connection) -> dict[tuple[str, str, int], bytes | Withheld]:
            # Not what the rows say of themselves: a former release counted the content alone.
            rows = _sizes_by_key.execute(connection, [place[:2] for place in wanted])
            sizes = {(row[0], row[1], row[2]): int(row[3]) for row in rows if row[3] is not None}
            loaded, found = _loadable(wanted, sizes)
            for node_id, key, seq, body in _bodies_by_key.execute(connection, loaded) if loaded else ():
                try:
                    Message.FromString(body)  # a row that somebody spoilt must not reach the link
                    found[node_id, key, seq] = body
                except DecodeError:
                    _log.error("outbox.body_unreadable", node=node_id, object_key=key, seq=seq)
                    found[node_id, key, seq] = Withheld(len(body), "what is stored of it cannot be read")
            return found

        found = await self.store.read(read)
        return {place: found[place] for place in wanted if place in found}

    async def last_seqs(self, node_ids: Sequence[str]) -> dict[str, int]:
        """See `contract.Outbox.last_seqs`."""
        wanted = [(node_id,) for node_id in node_ids]
        return await self.store.read(
            lambda c: {row[0]: int(row[1]) for row in _last_seqs_by_node.execute(c, wanted)}
        )

    async def list_nodes(self, after: str, limit: int, only: NodeFilter) -> list[NodeSummary]:
        """See `contract.Outbox.list_nodes`."""
        conditions = _behind(after, only.prefix)
        return await self.store.read(lambda c: self._summaries(c, conditions, limit, only))

    async def summary(self, node_id: str) -> NodeSummary | None:
        """See `contract.Outbox.summary`."""
        only = NodeFilter()
        found = await self.store.read(lambda c: self._summaries(c, [node.c.node_id == node_id], 1, only))
        return found[0] if found else None

    @staticmethod
    def _summaries(
        connection: Connection, conditions: list[ColumnElement[bool]], limit: int, only: NodeFilter
    ) -> list[NodeSummary]:
        parked = func.coalesce(func.sum(case((delivery.c.state == int(RowState.PARKED), 1), else_=0)), 0)
        oldest = func.coalesce(func.min(delivery.c.accepted_at_ms), 0)
        query = (
            select(*_SUMMARY_COLUMNS, parked, oldest)
            .join_from(
                node,
                delivery,
                and_(delivery.c.node_id == node.c.node_id, delivery.c.state != int(RowState.SETTLED)),
                isouter=True,
            )
            .where(*conditions)
            .group_by(*_SUMMARY_COLUMNS)
            .order_by(node.c.node_id)
            .limit(limit)
        )
        if only.only_parked or only.older_than_ms:
            query = query.where(node.c.pending_rows > 0)  # else every object of the fleet would be read
        if only.only_parked:
            query = query.having(parked > 0)
        if only.older_than_ms:
            query = query.having(and_(oldest > 0, oldest < only.older_than_ms))
        return [NodeSummary(node_row(row), int(row[-2]), int(row[-1])) for row in connection.execute(query)]

    async def pending(self, node_id: str, after_seq: int, limit: int) -> list[ObjectRow]:
        """See `contract.Outbox.pending`."""
        query = (
            select(*DELIVERY_COLUMNS)
            .where(delivery.c.node_id == node_id, delivery.c.state != 0, delivery.c.seq > after_seq)
            .order_by(delivery.c.seq)
            .limit(limit)
        )
        return await self.store.read(lambda c: [object_row(row) for row in c.execute(query)])

    async def objects_of(self, node_id: str, after_key: str, limit: int) -> list[ObjectRow]:
        """See `contract.Outbox.objects_of`."""
        query = (
            select(*DELIVERY_COLUMNS)
            .where(
                delivery.c.node_id == node_id,
                delivery.c.object_key > after_key,
                delivery.c.is_answer.is_(False),
            )
            .order_by(delivery.c.object_key)
            .limit(limit)
        )
        return await self.store.read(lambda c: [object_row(row) for row in c.execute(query)])

    async def find(self, node_id: str, message_id: str, name: str) -> ObjectRow | None:
        """See `contract.Outbox.find`."""

        def read(connection: Connection) -> ObjectRow | None:
            wanted: Any = name
            if not name:
                named = {"node_id": node_id, "message_id": message_id}
                wanted = connection.execute(_key_of_message, named).scalar()
            of_node = select(*DELIVERY_COLUMNS).where(delivery.c.node_id == node_id)
            row = connection.execute(of_node.where(delivery.c.object_key == wanted)).one_or_none()
            if row is None and name:
                by_path = of_node.where(delivery.c.path == name).order_by(delivery.c.seq.desc()).limit(1)
                row = connection.execute(by_path).one_or_none()
            return object_row(row) if row else None

        return await self.store.read(read)

    async def on_nodes(
        self, name: str, after: str, limit: int, prefix: str
    ) -> list[tuple[str, ObjectRow | None]]:
        """See `contract.Outbox.on_nodes`. A page of nodes first, then their rows by either index."""
        nodes = select(node.c.node_id).where(*_behind(after, prefix)).order_by(node.c.node_id).limit(limit)

        def read(connection: Connection) -> list[tuple[str, ObjectRow | None]]:
            node_ids = list(connection.execute(nodes).scalars())
            wanted = [(node_id, name) for node_id in node_ids]
            found: dict[str, ObjectRow] = {}
            for query in (_objects_by_path, _objects_by_key) if wanted else ():
                for row in map(object_row, query.execute(connection, wanted)):
                    other = found.get(row.node_id)
                    if other is None or row.seq > other.seq:  # of those that had the path the last
                        found[row.node_id] = row
            return [(node_id, found.get(node_id)) for node_id in node_ids]

        return await self.store.read(read)

    async def history(self, node_id: str, message_id: str, key: str, limit: int) -> list[Event]:
        """See `contract.Outbox.history`."""
        query = _newest_events(
            node_id,
            delivery_event.c.message_id == message_id if message_id else delivery_event.c.object_key == key,
            limit,
        )
        # What is pending has not told of its acceptance, unless its publisher chose its id.
        of_pending = delivery.c.message_id == message_id if message_id else delivery.c.object_key == key
        untold = select(*DELIVERY_COLUMNS).where(
            delivery.c.node_id == node_id, of_pending, delivery.c.state != 0, delivery.c.own_id.is_(False)
        )

        def read(connection: Connection) -> list[Event]:
            events = [event_of(row) for row in connection.execute(query)]
            pending = [object_row(row) for row in connection.execute(untold)]
            return unfolded(reversed(events), pending)[-limit:]

        return await self.store.read(read)

    async def notes(self, node_id: str, limit: int) -> list[Event]:
        """See `contract.Outbox.notes`."""
        query = notes_query(node_id, limit)
        return await self.store.read(lambda c: [event_of(row) for row in c.execute(query)][::-1])

    async def redeliver(self, node_id: str, key: str, at_ms: int) -> int:
        """See `contract.Outbox.redeliver`."""

        def unpark(ledger: Ledger, row: ObjectRow) -> None:
            ledger.unpark(ledger.nodes[node_id], row, at_ms)

        return await self._each_pending(node_id, key, unpark, only=RowState.PARKED)

    async def purge(self, node_id: str, key: str, at_ms: int) -> int:
        """See `contract.Outbox.purge`."""
        return await self._each_pending(node_id, key, lambda ledger, row: ledger.purge(row, at_ms))

    async def _each_pending(self, node_id: str, key: str, change: Any, only: RowState | None = None) -> int:
        def run(connection: Connection, work: _Work) -> int:
            needs = Needs({node_id}, {}, set(), {node_id})
            ledger = load_ledger(connection, needs, self.quotas, work.totals, work.known)
            rows = sorted(ledger.objects.get(node_id, {}).values(), key=lambda row: row.seq)
            named = [row for row in rows if row.key == key] or [row for row in rows if row.path == key]
            chosen = [row for row in (named if key else rows) if only is None or row.state == only]
            for row in chosen:
                change(ledger, row)
            write_ledger(connection, ledger, work.history, work.known)
            return len(chosen)

        return await self._write(run)

    async def resync(self, node_id: str, at_ms: int) -> int:
        """See `contract.Outbox.resync`."""
        statement = (
            delivery.update()
            .where(
                delivery.c.node_id == node_id,
                delivery.c.acknowledged.is_not(None),
                delivery.c.deleted.is_(False),
            )
            .values(acknowledged=None, changed_at_ms=at_ms)
        )

        def work(connection: Connection) -> int:
            connection.execute(revised([node_id]))
            self._forget()
            return connection.execute(statement).rowcount

        return await self.store.write(work)

    async def expire(
        self, at_ms: int, limit: int, *, stepped_at_ms: int = 0, former_at_ms: int = 0
    ) -> list[ObjectRow]:
        """See `contract.Outbox.expire`."""
        due = (
            select(delivery.c.node_id, delivery.c.object_key)
            .where(
                delivery.c.expires_at_ms != 0,
                delivery.c.expires_at_ms <= at_ms,
                or_(delivery.c.accepted_at_ms >= stepped_at_ms, delivery.c.expires_at_ms <= former_at_ms),
            )
            .limit(limit)
        )

        def is_due(row: ObjectRow) -> bool:
            by_ms = at_ms if row.accepted_at_ms >= stepped_at_ms else min(at_ms, former_at_ms)
            return row.state != RowState.SETTLED and 0 < row.expires_at_ms <= by_ms

        def run(connection: Connection, work: _Work) -> list[ObjectRow]:
            keys = {(row[0], row[1]) for row in connection.execute(due)}
            needs = Needs({node_id for node_id, _ in keys}, dict.fromkeys(keys, ""), set(), set())
            ledger = load_ledger(connection, needs, self.quotas, work.totals, work.known)
            rows = [row for rows in ledger.objects.values() for row in rows.values()]
            # Looked at again now that they are locked.
            ended = [row for row in rows if is_due(row)]
            for row in ended:
                ledger.end(row, "expired", at_ms)
            write_ledger(connection, ledger, work.history, work.known)
            return ended

        return await self._write(run)

    async def seen_ms(self) -> int:
        """How far time was seen to pass by whoever swept last; 0: nobody has."""
        found = await self.store.read(lambda c: c.execute(_seen_ms).scalar())
        return int(found or 0)

    async def note_seen(self, at_ms: int) -> None:
        """Keeps it for `seen_ms`."""
        await self.store.write(lambda c: _note_seen.execute(c, [(_RETENTION, at_ms)]))

    async def forget_unknown(self, before_ms: int, limit: int) -> int:
        """See `contract.Outbox.forget_unknown`."""

        def run(connection: Connection, work: _Work) -> int:
            found = connection.execute(_spent_unknown, {"before": before_ms, "limit": limit}).scalars()
            # Looked at again now that they are locked.
            ops: list[Op] = [ForgetNode(node_id, 0) for node_id in found]
            results = apply_ops(connection, ops, self.quotas, work.totals, work.history, work.known)
            return sum(isinstance(result, Deleted) for result in results)

        return await self._write(run)

    async def sweep(
        self, events_before_ms: int, tombstones_before_ms: int, limit: int, place: SweepPlace
    ) -> Swept:
        """See `contract.Outbox.sweep`."""
        swept_rows = await self.store.write(
            lambda connection: swept(
                connection, events_before_ms, tombstones_before_ms, limit, place, self._forget
            )
        )
        self._lines.close_before(first_id_of(events_before_ms))
        return swept_rows

    async def first_pending(self, after: str) -> Ages:
        """Since when the next nodes after one have had their first pending message."""
        return await self.store.read(lambda connection: first_pending(connection, after))

    async def mend(self, after: str, at_ms: int) -> Mended:
        """See `contract.Outbox.mend`."""
        following, node_ids = await self.store.read(lambda connection: next_nodes(connection, after))

        try:
            return Mended(await self._mend(node_ids, at_ms), following)
        except RowDamaged:
            ended = 0
            for node_id in node_ids:
                try:
                    ended += await self._mend([node_id], at_ms)
                except RowDamaged as error:
                    _log.error("outbox.row_damaged", node=node_id, error=str(error))
            return Mended(ended, following)

    async def _mend(self, node_ids: list[str], at_ms: int) -> int:
        def run(connection: Connection, work: _Work) -> int:
            needs = Needs(set(node_ids), {}, set(), set())
            ledger = load_ledger(connection, needs, self.quotas, work.totals, work.known)
            ended = mend(connection, ledger, at_ms)
            write_ledger(connection, ledger, work.history, work.known)
            return ended

        return await self._write(run) if node_ids else 0
