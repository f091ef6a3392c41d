"""What there is in the outbox when the hub has ended: what sessions wrote, and what is left of others."""

import asyncio
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, Row, func, select

from chaos.history import Count, SessionWrite
from services.dispatcher.outbox.records import EventKind
from services.dispatcher.outbox.schema import SCHEMA, delivery, delivery_event, node, uploads
from services.runtime.store import open_store

_BY_SESSIONS = (
    EventKind.SENT,
    EventKind.ACKNOWLEDGED,
    EventKind.REFUSED,
    EventKind.UNACKNOWLEDGED,
    EventKind.PARKED,
)


async def session_writes(url: str) -> list[SessionWrite]:
    """Of each node, in the order of its history: the first one, and each with another epoch than the last.
    Raises StoreUnavailable or StartupError."""
    store = await open_store(url, SCHEMA)
    try:
        rows = await store.read(_written)
    finally:
        await store.close()
    return await asyncio.to_thread(_changes_of_epoch, rows)


def _written(connection: Connection) -> Sequence[Row[str, int, int, str]]:
    event = delivery_event.c
    return connection.execute(
        select(event.node_id, event.epoch, event.kind, event.message_id)
        .where(event.kind.in_([int(kind) for kind in _BY_SESSIONS]))
        .order_by(event.node_id, event.event_id)
    ).all()


def _changes_of_epoch(rows: Iterable[Row[str, int, int, str]]) -> list[SessionWrite]:
    found: list[SessionWrite] = []
    for node_id, epoch, kind, message_id in rows:
        if not found or (found[-1].node_id, found[-1].epoch) != (node_id, epoch):
            found.append(SessionWrite(node_id, epoch, EventKind(kind).name.lower(), message_id))
    return found


async def rows_left(url: str, hostile_ids: Sequence[str]) -> list[Count]:
    """Rows of nodes that were deleted, and uploads that were not handed on: there is none.
    Raises StoreUnavailable or StartupError."""
    store = await open_store(url, SCHEMA)
    try:
        return await store.read(lambda connection: _rows_left(connection, hostile_ids))
    finally:
        await store.close()


def _rows_left(connection: Connection, hostile_ids: Sequence[str]) -> list[Count]:
    counts = [
        Count("stored uploads", connection.execute(select(func.count()).select_from(uploads)).scalar_one(), 0)
    ]
    for table in (node, delivery, delivery_event):
        gone = table.c.node_id.in_(hostile_ids)
        rows = connection.execute(select(func.count()).select_from(table).where(gone)).scalar_one()
        counts.append(Count(f"rows in {table.name} of nodes that are gone", rows, 0))
    return counts
