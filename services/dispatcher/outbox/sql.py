"""The outbox on SQL."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import DecodeError
from sqlalchemy import ColumnElement, Connection, and_, case, delete, func, select
from sqlalchemy.exc import DataError, IntegrityError, InterfaceError, ProgrammingError

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox.contract import NodeFilter, NodeSummary
from services.dispatcher.outbox.ledger import Ledger, Needs, Quotas, Totals
from services.dispatcher.outbox.records import Event, ObjectRow, Op, Result, RowState
from services.dispatcher.outbox.rows import event_of, node_row, object_row
from services.dispatcher.outbox.schema import delivery, delivery_event, node
from services.dispatcher.outbox.transaction import (
    DELIVERY_COLUMNS,
    EventIds,
    apply_ops,
    load_ledger,
    write_ledger,
)
from services.runtime.errors import StoreUnavailable
from services.runtime.logs import get_log
from services.runtime.rowsets import row_parameters, wanted_rows
from services.runtime.store import Store

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
    )
]
# What the driver raises for a value it cannot store, as opposed to a database that does not answer.
_BAD_DATA = (DataError, IntegrityError, InterfaceError, ProgrammingError)
# The same, found on this side of the driver: a number too large, or a row that somebody else wrote.
_BAD_VALUES = (ValueError, TypeError, OverflowError)


_wanted = wanted_rows("wanted", ("node_id", "object_key"))
_bodies_by_key = select(
    delivery.c.node_id, delivery.c.object_key, delivery.c.seq, delivery.c.message
).join_from(
    _wanted,
    delivery,
    and_(delivery.c.node_id == _wanted.c.node_id, delivery.c.object_key == _wanted.c.object_key),
)
_wanted_nodes = wanted_rows("wanted", ("node_id",))
_last_seqs_by_node = select(node.c.node_id, node.c.last_seq).join_from(
    _wanted_nodes, node, node.c.node_id == _wanted_nodes.c.node_id
)


@dataclass(slots=True)
class SqlOutbox:
    """Implements `contract.Outbox` over a Store. `open` must be awaited before use."""

    store: Store
    quotas: Quotas
    totals: Totals = field(default_factory=Totals)
    _event_ids: EventIds = field(default_factory=EventIds)

    async def open(self) -> None:
        """Reads the totals that the quotas are held against, and where the history goes on: a clock that
        stepped back while the process was away must not give an event's id twice."""

        def read(connection: Connection) -> tuple[Totals, int]:
            query = select(
                func.coalesce(func.sum(node.c.pending_rows), 0),
                func.coalesce(func.sum(node.c.pending_bytes), 0),
            )
            rows, size = connection.execute(query).one()
            last_event = connection.execute(select(func.max(delivery_event.c.event_id))).scalar()
            return Totals(int(rows), int(size)), int(last_event or 0)

        self.totals, last_event = await self.store.read(read)
        self._event_ids = EventIds(last_event)

    async def commit(self, ops: Sequence[Op]) -> list[Result | Exception]:
        """See `contract.Outbox.commit`."""
        whole = await self._try(ops)
        if not isinstance(whole, StoreUnavailable):
            return list(whole)
        if len(ops) == 1:
            return [whole]
        results: list[Result | Exception] = []
        for op in ops:
            alone = await self._try([op])
            results.extend([alone] if isinstance(alone, StoreUnavailable) else alone)
        return results

    async def _try(self, ops: Sequence[Op]) -> list[Result] | StoreUnavailable:
        """The results, or what the database or its content has against one of the operations."""
        try:
            return await self._commit(ops)
        except StoreUnavailable as error:
            if not isinstance(error.__cause__, _BAD_DATA):
                raise
            return error
        except _BAD_VALUES as error:
            return StoreUnavailable(f"a value cannot be stored, or a stored one not be read: {error}")

    async def _commit(self, ops: Sequence[Op]) -> list[Result]:
        trial = Totals(self.totals.rows, self.totals.bytes)
        results = await self.store.write(lambda c: apply_ops(c, ops, self.quotas, trial, self._event_ids))
        self.totals = trial
        return results

    async def bodies(self, wanted: Sequence[tuple[str, str, int]]) -> dict[tuple[str, str, int], Message]:
        """See `contract.Outbox.bodies`."""

        def read(connection: Connection) -> dict[tuple[str, str, int], Message]:
            parameters = row_parameters("wanted", [pair[:2] for pair in wanted])
            found: dict[tuple[str, str, int], Message] = {}
            for node_id, key, seq, body in connection.execute(_bodies_by_key, parameters):
                if body is None:
                    continue
                try:
                    found[node_id, key, seq] = Message.FromString(body)
                except DecodeError:
                    _log.error("outbox.body_unreadable", node=node_id, object_key=key, seq=seq)
            return found

        found = await self.store.read(read)
        return {key: found[key] for key in wanted if key in found}

    async def last_seqs(self, node_ids: Sequence[str]) -> dict[str, int]:
        """See `contract.Outbox.last_seqs`."""
        parameters = row_parameters("wanted", [(node_id,) for node_id in node_ids])
        return await self.store.read(
            lambda c: {row[0]: int(row[1]) for row in c.execute(_last_seqs_by_node, parameters)}
        )

    async def list_nodes(self, after: str, limit: int, only: NodeFilter) -> list[NodeSummary]:
        """See `contract.Outbox.list_nodes`."""
        conditions: list[ColumnElement[bool]] = [node.c.node_id > after]
        if only.prefix:
            # Not LIKE, which folds capitals on SQLite.
            conditions.append(node.c.node_id >= only.prefix)
            conditions.append(func.substr(node.c.node_id, 1, len(only.prefix)) == only.prefix)
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
            select(node, parked, oldest)
            .join_from(
                node,
                delivery,
                and_(delivery.c.node_id == node.c.node_id, delivery.c.state != int(RowState.SETTLED)),
                isouter=True,
            )
            .where(*conditions)
            .group_by(*node.c)
            .order_by(node.c.node_id)
            .limit(limit)
        )
        if only.only_parked:
            query = query.having(parked > 0)
        if only.older_than_ms:
            query = query.having(and_(oldest > 0, oldest < only.older_than_ms))
        return [NodeSummary(node_row(row), int(row[7]), int(row[8])) for row in connection.execute(query)]

    async def pending(self, node_id: str, after_seq: int, limit: int) -> list[ObjectRow]:
        """See `contract.Outbox.pending`."""
        query = (
            select(*DELIVERY_COLUMNS)
            .where(delivery.c.node_id == node_id, delivery.c.state != 0, delivery.c.seq > after_seq)
            .order_by(delivery.c.seq)
            .limit(limit)
        )
        return await self.store.read(lambda c: [object_row(row) for row in c.execute(query)])

    async def find(self, node_id: str, message_id: str, key: str) -> ObjectRow | None:
        """See `contract.Outbox.find`."""

        def read(connection: Connection) -> ObjectRow | None:
            wanted: Any = key
            if not key:
                event = delivery_event.c
                wanted = connection.execute(
                    select(event.object_key).where(
                        event.node_id == node_id, event.message_id == message_id, event.kind == 1
                    )
                ).scalar()
            query = select(*DELIVERY_COLUMNS).where(
                delivery.c.node_id == node_id, delivery.c.object_key == wanted
            )
            row = connection.execute(query).one_or_none()
            return object_row(row) if row else None

        return await self.store.read(read)

    async def history(self, node_id: str, message_id: str, key: str, limit: int) -> list[Event]:
        """See `contract.Outbox.history`."""
        named = (
            delivery_event.c.message_id == message_id if message_id else delivery_event.c.object_key == key
        )
        query = (
            select(*_EVENT_COLUMNS)
            .where(delivery_event.c.node_id == node_id, named)
            .order_by(delivery_event.c.event_id.desc())
            .limit(limit)
        )
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
        trial = Totals(self.totals.rows, self.totals.bytes)

        def work(connection: Connection) -> int:
            needs = Needs({node_id}, set(), set(), set(), {node_id})
            ledger = load_ledger(connection, needs, self.quotas, trial)
            rows = sorted(ledger.objects.get(node_id, {}).values(), key=lambda row: row.seq)
            chosen = [r for r in rows if (not key or r.key == key) and (only is None or r.state == only)]
            for row in chosen:
                change(ledger, row)
            write_ledger(connection, ledger, self._event_ids)
            return len(chosen)

        count = await self.store.write(work)
        self.totals = trial
        return count

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
        return await self.store.write(lambda c: c.execute(statement).rowcount)

    async def expire(self, at_ms: int, limit: int) -> list[ObjectRow]:
        """See `contract.Outbox.expire`."""
        trial = Totals(self.totals.rows, self.totals.bytes)
        due = (
            select(delivery.c.node_id, delivery.c.object_key)
            .where(delivery.c.expires_at_ms != 0, delivery.c.expires_at_ms <= at_ms)
            .limit(limit)
        )

        def work(connection: Connection) -> list[ObjectRow]:
            keys = {(row[0], row[1]) for row in connection.execute(due)}
            needs = Needs({node_id for node_id, _ in keys}, keys, set(), set(), set())
            ledger = load_ledger(connection, needs, self.quotas, trial)
            rows = [row for rows in ledger.objects.values() for row in rows.values()]
            ended = [row for row in rows if row.state != RowState.SETTLED]
            for row in ended:
                ledger.end(row, "expired", at_ms)
            write_ledger(connection, ledger, self._event_ids)
            return ended

        rows = await self.store.write(work)
        self.totals = trial
        return rows

    async def sweep(self, events_before_ms: int, tombstones_before_ms: int, limit: int) -> int:
        """See `contract.Outbox.sweep`."""
        event = delivery_event.c
        # What is still pending keeps its acceptance, so that its message id stays known.
        still_pending = (
            select(delivery.c.node_id)
            .where(
                delivery.c.node_id == event.node_id,
                delivery.c.object_key == event.object_key,
                delivery.c.message_id == event.message_id,
                delivery.c.state != 0,
            )
            .exists()
        )
        old_events = (
            select(event.node_id, event.event_id)
            .where(event.event_id < events_before_ms * 1000, ~and_(event.kind == 1, still_pending))
            .limit(limit)
        )
        old_tombstones = (
            select(delivery.c.node_id, delivery.c.object_key)
            .where(
                delivery.c.deleted.is_(True),
                delivery.c.state == 0,
                delivery.c.changed_at_ms < tombstones_before_ms,
            )
            .limit(limit)
        )

        def work(connection: Connection) -> int:
            events = connection.execute(old_events).all()
            tombstones = connection.execute(old_tombstones).all()
            for row in events:
                connection.execute(
                    delete(delivery_event).where(event.node_id == row[0], event.event_id == row[1])
                )
            for row in tombstones:
                connection.execute(
                    delete(delivery).where(delivery.c.node_id == row[0], delivery.c.object_key == row[1])
                )
            return len(events) + len(tombstones)

        return await self.store.write(work)
