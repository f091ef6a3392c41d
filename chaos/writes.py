"""What sessions wrote into the history of their nodes, read from the outbox when the hub has ended."""

from sqlalchemy import Connection, select

from chaos.history import SessionWrite
from services.dispatcher.outbox.records import EventKind
from services.dispatcher.outbox.schema import SCHEMA, delivery_event
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
        return await store.read(_changes_of_epoch)
    finally:
        await store.close()


def _changes_of_epoch(connection: Connection) -> list[SessionWrite]:
    event = delivery_event.c
    rows = connection.execute(
        select(event.node_id, event.epoch, event.kind, event.message_id)
        .where(event.kind.in_([int(kind) for kind in _BY_SESSIONS]))
        .order_by(event.node_id, event.event_id)
    )
    found: list[SessionWrite] = []
    for node_id, epoch, kind, message_id in rows:
        if not found or (found[-1].node_id, found[-1].epoch) != (node_id, epoch):
            found.append(SessionWrite(node_id, epoch, EventKind(kind).name.lower(), message_id))
    return found
