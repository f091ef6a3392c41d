"""Leases of dispatchers in SQL, and who hands on which events."""

from dataclasses import replace

from sqlalchemy import ColumnElement, Connection, delete, select, tuple_, update

from services.sessions.book_sql import pending_events, renewals_of
from services.sessions.leases import Observation
from services.sessions.records import Event, Renewal, Trimmed
from services.sessions.registry import HAND_AGAIN_AFTER_RENEWALS
from services.sessions.rows import connectors_text
from services.sessions.schema import dispatcher_lease, end_directive, lifecycle_event
from services.sessions.upsert import insert_missing


def _blank(dispatcher_id: str) -> dict[str, object]:
    return {
        "dispatcher_id": dispatcher_id,
        "name": "",
        "address": "",
        "counter": 0,
        "renewals": 0,
        "sessions": 0,
        "connectors": connectors_text(()),
        "lost": False,
    }


def note_alive(connection: Connection, dispatcher_id: str) -> None:
    """A dispatcher that opens or takes over sessions is there: it has a lease from then on, lost or new."""
    lease = dispatcher_lease.c
    mine = lease.dispatcher_id == dispatcher_id
    lost: bool | None = None
    while lost is None:
        connection.execute(insert_missing(connection, dispatcher_lease), _blank(dispatcher_id))
        # Locked, so that no other replica forgets it before the sessions are there.
        lost = connection.execute(select(lease.lost).where(mine).with_for_update()).scalar()
    if lost:
        connection.execute(
            update(dispatcher_lease).where(mine).values(lost=False, renewals=lease.renewals + 1)
        )


def renew(connection: Connection, renewal: Renewal) -> int | None:
    """Notes a renewal; how many there were. None if its counter did not grow: then nobody lives by it."""
    lease = dispatcher_lease.c
    connection.execute(insert_missing(connection, dispatcher_lease), _blank(renewal.dispatcher_id))
    noted = connection.execute(
        update(dispatcher_lease)
        .where(lease.dispatcher_id == renewal.dispatcher_id, lease.counter < renewal.counter)
        .values(
            name=renewal.name,
            address=renewal.address,
            counter=renewal.counter,
            sessions=renewal.sessions,
            connectors=connectors_text(renewal.connectors),
            version=renewal.version,
            draining=renewal.draining,
            renewals=lease.renewals + 1,
            lost=False,
        )
    )
    return renewals_of(connection, renewal.dispatcher_id) if noted.rowcount else None


def mark_lost(connection: Connection, seen: Observation) -> bool:
    """Marks a lease as lost if it is still as it was seen."""
    lease = dispatcher_lease.c
    found = connection.execute(
        select(lease.lost)
        .where(lease.dispatcher_id == seen.dispatcher_id, lease.renewals == seen.renewals)
        .with_for_update()
    ).scalar()
    if found is None:
        return False
    if not found:
        connection.execute(
            update(dispatcher_lease).where(lease.dispatcher_id == seen.dispatcher_id).values(lost=True)
        )
    return True


# Told at once; of a node that came and went without a subscriber there may be very many.
MAX_EVENTS_OF_NODE = 4096


def hand_over(connection: Connection, dispatcher_id: str, renewals: int, most_events: int) -> list[Event]:
    """Makes waiting events this dispatcher's: whole nodes, about `most_events` in all."""
    event, lease = lifecycle_event.c, dispatcher_lease.c
    # A lost lease stays on record while events are its dispatcher's.
    lost = set(connection.execute(select(lease.dispatcher_id).where(lease.lost)).scalars())
    due_again = renewals - HAND_AGAIN_AFTER_RENEWALS
    own_again = (event.dispatcher_id == dispatcher_id) & (event.handed <= due_again)
    waiting: dict[str, None] = {}
    for due in (own_again, event.dispatcher_id.in_(sorted(lost))):
        # In the order of the index, so that only as many rows are looked at as are wanted.
        some = (
            select(event.node_id)
            .where(due)
            .order_by(event.dispatcher_id, event.handed, event.node_id)
            .limit(most_events)
        )
        waiting.update(dict.fromkeys(connection.execute(some).scalars()))
    if not waiting:
        return []
    handed: dict[str, list[Event]] = {}
    total = 0
    for node_id, events in pending_events(connection, list(waiting)).items():
        # Another replica may have handed them over since they were looked for.
        if not any(
            one.dispatcher_id in lost or (one.dispatcher_id == dispatcher_id and one.handed <= due_again)
            for one in events
        ):
            continue
        if handed and total + len(events) > most_events:
            break
        handed[node_id] = events
        total += len(events)
    if not handed:
        return []
    connection.execute(
        update(lifecycle_event)
        .where(event.node_id.in_(list(handed)))
        .values(dispatcher_id=dispatcher_id, handed=renewals)
    )
    # Of a node with very many the first ones: the others are the dispatcher's too, and come again when these
    # are acknowledged.
    told = [item for events in handed.values() for item in events[:MAX_EVENTS_OF_NODE]]
    return [replace(item, dispatcher_id=dispatcher_id, handed=renewals) for item in told]


def drop_events(connection: Connection, which: ColumnElement[bool]) -> int:
    """Deletes events, locked in the order in which everybody locks them; how many."""
    event = lifecycle_event.c
    key = (event.node_id, event.epoch, event.kind)
    locked = select(*key).where(which).order_by(*key).with_for_update()
    return connection.execute(delete(lifecycle_event).where(tuple_(*key).in_(locked))).rowcount


def trim(connection: Connection, oldest_ms: int, most_events: int) -> Trimmed:
    """Drops what is too old, and of events the oldest above a number with all of the same instant."""
    event = lifecycle_event.c
    events = drop_events(connection, event.at_ms < oldest_ms)
    directives = connection.execute(delete(end_directive).where(end_directive.c.at_ms < oldest_ms)).rowcount
    # The instant of the newest row that is one too many.
    newest_over = connection.execute(
        select(event.at_ms).order_by(event.at_ms.desc(), event.node_id.desc()).offset(most_events).limit(1)
    ).scalar()
    if newest_over is not None:
        events += drop_events(connection, event.at_ms <= newest_over)
    return Trimmed(events, directives)
