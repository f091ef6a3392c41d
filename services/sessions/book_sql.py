"""Loads a Book from the database, locked, and writes back what it changed: few statements per batch.

Locks are taken in one order, so that transactions of several replicas wait for each other and never in
a circle: leases, node rows by node id, the counter of the total, other counters, events by node. Whoever
has the total's row is alone with what comes after it, so rows may be made there without a fixed order.
"""

from collections.abc import Callable, Iterable, Sequence

from sqlalchemy import (
    ColumnElement,
    Connection,
    bindparam,
    delete,
    insert,
    select,
    tuple_,
    update,
)

from services.sessions.book import Book
from services.sessions.lifecycle import Session
from services.sessions.limits import Limits, LimitsChange, Place, Scope, changed, places
from services.sessions.records import NOT_HANDED, Event, Opening
from services.sessions.rows import directive_values, event_of, event_values, session_of, session_values
from services.sessions.schema import (
    dispatcher_lease,
    end_directive,
    lifecycle_event,
    limit_change,
    node_session,
    slot_count,
)
from services.sessions.upsert import insert_missing, upsert

_TOTAL: Place = (Scope.TOTAL, "")
_IS_TOTAL = (slot_count.c.scope == Scope.TOTAL) & (slot_count.c.place == "")


def read_limits(connection: Connection, initial: Limits) -> Limits:
    """The limits in force: the initial ones and what was changed at run time."""
    rows = connection.execute(select(limit_change)).all()
    general = {row.scope: row.nodes for row in rows if not row.place}
    return changed(
        initial,
        LimitsChange(
            per_connector=general.get(Scope.CONNECTOR),
            per_project=general.get(Scope.PROJECT),
            total=general.get(Scope.TOTAL),
            projects={row.place: row.nodes for row in rows if row.place},
        ),
    )


def lock_sessions(connection: Connection, where: ColumnElement[bool]) -> dict[str, Session]:
    """The sessions that match, by node id, locked until the transaction ends."""
    statement = select(node_session).where(where).order_by(node_session.c.node_id).with_for_update()
    return {row.node_id: session_of(row) for row in connection.execute(statement)}


def lock_counts(connection: Connection, wanted: Iterable[Place]) -> tuple[dict[Place, int], int]:
    """The counters of these places, the total among them, and the number of the last change; locked
    until the transaction ends. New ones begin at 0."""
    keys = sorted(set(wanted))
    if not keys:
        return {}, 0
    statement = (
        select(slot_count)
        .where(tuple_(slot_count.c.scope, slot_count.c.place).in_(keys))
        .order_by(slot_count.c.scope != Scope.TOTAL, slot_count.c.scope, slot_count.c.place)
        .with_for_update()
    )
    while True:
        found = {(Scope(row.scope), row.place): row for row in connection.execute(statement)}
        # The total's own row first: without it nobody is alone.
        missing = [key for key in keys if key not in found and (key == _TOTAL or _TOTAL in found)]
        if not missing:
            counts = {place: int(row.nodes) for place, row in found.items()}
            return counts, int(found[_TOTAL].last_change)
        connection.execute(
            insert_missing(connection, slot_count),
            [{"scope": scope, "place": place, "nodes": 0, "last_change": 0} for scope, place in missing],
        )


def pending_events(connection: Connection, node_ids: Sequence[str]) -> dict[str, list[Event]]:
    """The unacknowledged events of these nodes, in order, locked until the transaction ends."""
    event = lifecycle_event.c
    pending: dict[str, list[Event]] = {}
    for row in connection.execute(
        select(lifecycle_event)
        .where(event.node_id.in_(node_ids))
        .order_by(event.node_id, event.epoch, event.kind)
        .with_for_update()
    ):
        pending.setdefault(row.node_id, []).append(event_of(row))
    return pending


def renewals_of(connection: Connection, dispatcher_id: str) -> int:
    """How often a dispatcher renewed; 0 if it never did."""
    lease = dispatcher_lease.c
    found = connection.execute(select(lease.renewals).where(lease.dispatcher_id == dispatcher_id)).scalar()
    return int(found or 0)


class LockedBook:
    """A Book of one transaction and what it was loaded as. `initial` limits are needed to open."""

    def __init__(
        self,
        connection: Connection,
        where: ColumnElement[bool],
        make_id: Callable[[], str],
        *,
        openings: Sequence[Opening] = (),
        initial: Limits | None = None,
        caller: str | None = None,
    ) -> None:
        sessions = lock_sessions(connection, where)
        wanted = {place for entry in openings for place in places(entry.project_id, entry.connector_id)}
        for session in sessions.values():
            if session.live:
                wanted.update(places(session.project_id, session.connector_id))
        self._connection = connection
        self._former_nodes = frozenset(sessions)
        self._former_counts, last_change = lock_counts(connection, wanted)
        # What this transaction changes gets this number.
        self.number = last_change + 1
        node_ids = sorted({*sessions, *(entry.node_id for entry in openings)})
        self.book = Book(
            sessions,
            pending_events(connection, node_ids) if caller else {},
            dict(self._former_counts),
            # Read behind the lock that a change of limits takes too.
            read_limits(connection, initial) if initial else Limits(),
            make_id=make_id,
            renewals=renewals_of(connection, caller) if caller else NOT_HANDED,
        )

    def write(self, caller: str | None = None) -> None:
        """Writes what the book changed; `caller` gets the moved events and confirms its directives."""
        self._write_sessions()
        self._write_counts()
        if caller:
            self._move_events(caller)
            self._confirm(caller)
        if self.book.dropped:
            event = lifecycle_event.c
            gone = [(one.node_id, one.epoch, one.kind) for one in self.book.dropped]
            self._connection.execute(
                delete(lifecycle_event).where(tuple_(event.node_id, event.epoch, event.kind).in_(gone))
            )
        if self.book.written:
            rows = [event_values(event) for event in self.book.written]
            self._connection.execute(insert(lifecycle_event), rows)
        if self.book.directives:
            directives = [directive_values(directive) for directive in self.book.directives.values()]
            self._connection.execute(upsert(self._connection, end_directive), directives)

    def _write_sessions(self) -> None:
        book = self.book
        touched = dict.fromkeys(session.node_id for session in book.changes)
        last = [book.sessions[node_id] for node_id in touched if node_id in book.sessions]
        rows = [{**session_values(session), "change": self.number} for session in last]
        fresh = [row for row in rows if row["node_id"] not in self._former_nodes]
        known = [row for row in rows if row["node_id"] in self._former_nodes]
        if fresh:
            # Not an upsert: if another replica opened the same new node meanwhile, this batch is repeated.
            self._connection.execute(insert(node_session), fresh)
        if known:
            self._connection.execute(upsert(self._connection, node_session), known)
        gone = sorted(book.removed & self._former_nodes)
        if gone:
            self._connection.execute(delete(node_session).where(node_session.c.node_id.in_(gone)))

    def _write_counts(self) -> None:
        count = slot_count.c
        steps = [
            {"in_scope": scope, "at": key, "now": nodes}
            for (scope, key), nodes in sorted(self.book.counts.items())
            if nodes != self._former_counts.get((scope, key))
        ]
        if steps:
            self._connection.execute(
                update(slot_count)
                .where(count.scope == bindparam("in_scope"), count.place == bindparam("at"))
                .values(nodes=bindparam("now")),
                steps,
            )
        if self.book.changes:
            self._connection.execute(update(slot_count).where(_IS_TOTAL).values(last_change=self.number))
        # Connectors come and go; their counters go with their last node.
        empty = [
            place for place, nodes in self.book.counts.items() if not nodes and place[0] is not Scope.TOTAL
        ]
        if empty:
            self._connection.execute(
                delete(slot_count).where(tuple_(count.scope, count.place).in_(sorted(empty)))
            )

    def _move_events(self, caller: str) -> None:
        if self.book.moved:
            self._connection.execute(
                update(lifecycle_event)
                .where(lifecycle_event.c.node_id.in_(sorted(self.book.moved)))
                .values(dispatcher_id=caller, handed=renewals_of(self._connection, caller))
            )

    def _confirm(self, caller: str) -> None:
        directive = end_directive.c
        confirmed = {ref.node_id for ref in self.book.confirmed}
        if not confirmed:
            return
        # Few sessions are ever asked to end: look first, delete what matches.
        rows = self._connection.execute(
            select(directive.node_id, directive.epoch).where(
                directive.node_id.in_(sorted(confirmed)), directive.dispatcher_id == caller
            )
        ).all()
        shown = {(ref.node_id, ref.epoch) for ref in self.book.confirmed}
        matching = [(row.node_id, row.epoch) for row in rows if (row.node_id, row.epoch) in shown]
        if matching:
            self._connection.execute(
                delete(end_directive).where(tuple_(directive.node_id, directive.epoch).in_(matching))
            )
