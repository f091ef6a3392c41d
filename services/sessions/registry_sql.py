"""The registry in SQL, on any engine that the store opens."""

import uuid
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from sqlalchemy import ColumnElement, Connection, delete, exists, func, or_, select, tuple_, update

from services.runtime.errors import Refused
from services.sessions.book import Book
from services.sessions.book_sql import LockedBook, lock_counts, lock_sessions, read_limits
from services.sessions.changes_sql import changes_after, last_change
from services.sessions.enrolment.record_sql import forbidden_nodes
from services.sessions.fencing import NO_EPOCH
from services.sessions.lease_sql import drop_events, hand_over, mark_lost, note_alive, renew, trim
from services.sessions.leases import Observation
from services.sessions.lifecycle import LIVE, Reason, Session, State
from services.sessions.limits import MAX_PROJECT_LIMITS, UNLIMITED, Limits, LimitsChange, Place, Scope
from services.sessions.records import (
    ActivateResult,
    Changed,
    CloseResult,
    Committed,
    Deletion,
    Directive,
    Ending,
    Event,
    EvictResult,
    Filter,
    Lease,
    Opening,
    OpenResult,
    Ref,
    Renewal,
    Replica,
    Transfer,
    TransferResult,
    Trimmed,
    Usage,
)
from services.sessions.replicas_sql import beat, drop_replica, replicas
from services.sessions.rows import directive_of, lease_of, session_of
from services.sessions.schema import (
    DELETED,
    dispatcher_lease,
    end_directive,
    enrolled_node,
    lifecycle_event,
    limit_change,
    node_session,
    slot_count,
)
from services.sessions.store_use import Transactions
from services.sessions.upsert import upsert

T = TypeVar("T")


def _committed(locked: LockedBook, results: list[T]) -> Committed[T]:
    book = locked.book
    directed = frozenset(directive.dispatcher_id for directive in book.directives.values())
    return Committed(results, book.changes, directed, locked.number, len(book.dropped))


class SqlRegistry:
    """See `services.sessions.registry.Registry`. `initial` are the limits until they are changed."""

    def __init__(
        self, store: Transactions, initial: Limits, make_id: Callable[[], str] = lambda: str(uuid.uuid4())
    ) -> None:
        self._store = store
        self._initial = initial
        self._make_id = make_id

    async def open(
        self, dispatcher_id: str, entries: Sequence[Opening], now_ms: int
    ) -> Committed[OpenResult]:
        def work(connection: Connection) -> Committed[OpenResult]:
            note_alive(connection, dispatcher_id)
            node_ids = sorted({entry.node_id for entry in entries})
            locked = LockedBook(
                connection,
                node_session.c.node_id.in_(node_ids),
                self._make_id,
                openings=entries,
                initial=self._initial,
                caller=dispatcher_id,
            )
            forbidden = forbidden_nodes(connection, entries)
            results = [
                OpenResult(NO_EPOCH, forbidden=forbidden[entry.node_id])
                if entry.node_id in forbidden
                else locked.book.open(dispatcher_id, entry, now_ms)
                for entry in entries
            ]
            locked.write(dispatcher_id)
            return _committed(locked, results)

        return await self._store.write(work)

    async def activate(
        self, dispatcher_id: str, refs: Sequence[Ref], now_ms: int
    ) -> Committed[ActivateResult]:
        return await self._of_caller(
            dispatcher_id,
            [ref.node_id for ref in refs],
            lambda book: [book.activate(dispatcher_id, ref, now_ms) for ref in refs],
        )

    async def close(
        self, dispatcher_id: str, endings: Sequence[Ending], now_ms: int
    ) -> Committed[CloseResult]:
        return await self._of_caller(
            dispatcher_id,
            [ending.node_id for ending in endings],
            lambda book: [book.close(dispatcher_id, ending, now_ms) for ending in endings],
        )

    async def transfer(
        self, dispatcher_id: str, wanted: Sequence[Transfer], now_ms: int
    ) -> Committed[TransferResult]:
        return await self._of_caller(
            dispatcher_id,
            [entry.node_id for entry in wanted],
            lambda book: [book.transfer(dispatcher_id, entry, now_ms) for entry in wanted],
            note=True,
        )

    async def evict(
        self, node_id: str, epoch: int, now_ms: int, *, revoked: bool = False
    ) -> Committed[EvictResult]:
        def work(connection: Connection) -> Committed[EvictResult]:
            locked = LockedBook(connection, node_session.c.node_id == node_id, self._make_id)
            result = locked.book.evict(node_id, epoch, now_ms, revoked=revoked)
            locked.write()
            return _committed(locked, [result])

        return await self._store.write(work)

    async def delete_nodes(self, node_ids: Sequence[str], now_ms: int) -> Committed[Deletion]:
        def work(connection: Connection) -> Committed[Deletion]:
            where = node_session.c.node_id.in_(sorted(set(node_ids)))
            locked = LockedBook(connection, where, self._make_id)
            results = [locked.book.delete(node_id, now_ms) for node_id in node_ids]
            locked.write()
            return _committed(locked, results)

        return await self._store.write(work)

    async def ended_with_node(self) -> list[Ref]:
        statement = select(node_session.c.node_id, node_session.c.epoch).where(DELETED)
        return await self._store.read(
            lambda connection: [Ref(row.node_id, int(row.epoch)) for row in connection.execute(statement)]
        )

    async def forget_deleted(self, refs: Sequence[Ref]) -> int:
        def work(connection: Connection) -> int:
            column = node_session.c
            locked = lock_sessions(connection, column.node_id.in_(sorted({ref.node_id for ref in refs})))
            keys = [(ref.node_id, ref.epoch) for ref in refs]
            gone = [key for key in keys if key[0] in locked and locked[key[0]].epoch == key[1]]
            statement = delete(node_session).where(DELETED, tuple_(column.node_id, column.epoch).in_(gone))
            return connection.execute(statement).rowcount if gone else 0

        return await self._store.write(work)

    async def locate(self, node_ids: Sequence[str]) -> list[Session]:
        return await self._sessions(
            node_session.c.node_id.in_(sorted(set(node_ids))), node_session.c.state.in_(LIVE)
        )

    async def get(self, node_id: str) -> Session | None:
        found = await self._sessions(node_session.c.node_id == node_id)
        return found[0] if found else None

    async def held(self, dispatcher_id: str, after: str, most: int) -> list[Ref]:
        column = node_session.c
        statement = (
            select(column.node_id, column.epoch)
            .where(column.dispatcher_id == dispatcher_id, column.state.in_(LIVE), column.node_id > after)
            .order_by(column.node_id)
            .limit(most)
        )
        return await self._store.read(
            lambda connection: [Ref(row.node_id, int(row.epoch)) for row in connection.execute(statement)]
        )

    async def page(self, wanted: Filter, after: str, size: int) -> list[Session]:
        column = node_session.c
        where: list[ColumnElement[bool]] = [column.node_id > after, column.state.in_(wanted.states)]
        if wanted.node_id_prefix:
            where.append(column.node_id.startswith(wanted.node_id_prefix, autoescape=True))
        for field in ("project_id", "connector_id", "dispatcher_id"):
            value = getattr(wanted, field)
            if value:
                where.append(column[field] == value)
        return await self._sessions(*where, most=size)

    async def renew(self, renewal: Renewal, now_ms: int, most_events: int) -> Committed[Event]:
        def work(connection: Connection) -> Committed[Event]:
            renewals = renew(connection, renewal)
            if renewals is None:
                return Committed([])
            locked = LockedBook(
                connection,
                (node_session.c.dispatcher_id == renewal.dispatcher_id)
                & (node_session.c.state == State.ORPHANED),
                self._make_id,
            )
            for node_id in list(locked.book.sessions):
                locked.book.reclaim(node_id, now_ms)
            locked.write()
            events = hand_over(connection, renewal.dispatcher_id, renewals, most_events)
            return _committed(locked, events)

        return await self._store.write(work)

    async def release(self, dispatcher_id: str, now_ms: int) -> Committed[None]:
        def work(connection: Connection) -> Committed[None]:
            lease = dispatcher_lease.c
            connection.execute(
                update(dispatcher_lease).where(lease.dispatcher_id == dispatcher_id).values(lost=True)
            )
            return self._orphan(connection, dispatcher_id, now_ms)

        return await self._store.write(work)

    async def leases(self) -> list[Lease]:
        def work(connection: Connection) -> list[Lease]:
            lease = dispatcher_lease.c
            rows = connection.execute(select(dispatcher_lease).order_by(lease.dispatcher_id))
            return [lease_of(row) for row in rows]

        return await self._store.read(work)

    async def lose(self, seen: Observation, now_ms: int) -> Committed[None]:
        def work(connection: Connection) -> Committed[None]:
            if not mark_lost(connection, seen):
                return Committed([])
            return self._orphan(connection, seen.dispatcher_id, now_ms)

        return await self._store.write(work)

    async def expire(self, seen: Observation, now_ms: int, most: int) -> Committed[None]:
        def work(connection: Connection) -> Committed[None]:
            if not mark_lost(connection, seen):
                return Committed([])
            column = node_session.c
            some = (
                select(column.node_id)
                .where(column.dispatcher_id == seen.dispatcher_id, column.state == State.ORPHANED)
                .order_by(column.node_id)
                .limit(most)
            )
            locked = LockedBook(connection, column.node_id.in_(some), self._make_id)
            for session in list(locked.book.sessions.values()):
                locked.book.expire(session.node_id, session.epoch, now_ms)
            locked.write()
            return _committed(locked, [])

        return await self._store.write(work)

    async def forget_lost(self) -> None:
        def work(connection: Connection) -> None:
            lease = dispatcher_lease.c
            owns = node_session.c.dispatcher_id == lease.dispatcher_id
            waits = lifecycle_event.c.dispatcher_id == lease.dispatcher_id
            connection.execute(
                delete(dispatcher_lease).where(
                    lease.lost,
                    ~exists().where(owns, node_session.c.state.in_(LIVE)),
                    ~exists().where(waits),
                )
            )

        await self._store.write(work)

    async def draining(self) -> list[Ref]:
        sessions = await self._sessions(node_session.c.state == State.DRAINING)
        return [Ref(session.node_id, session.epoch) for session in sessions]

    async def close_unconfirmed(self, refs: Sequence[Ref], now_ms: int) -> Committed[None]:
        def work(connection: Connection) -> Committed[None]:
            where = node_session.c.node_id.in_(sorted({ref.node_id for ref in refs})) & (
                node_session.c.state == State.DRAINING
            )
            locked = LockedBook(connection, where, self._make_id)
            for ref in refs:
                locked.book.expire(ref.node_id, ref.epoch, now_ms)
            locked.write()
            return _committed(locked, [])

        return await self._store.write(work)

    async def directives(self, dispatcher_id: str, most: int) -> list[Directive]:
        def work(connection: Connection) -> list[Directive]:
            column, session, node = end_directive.c, node_session.c, enrolled_node.c
            # A session that was opened since shows a newer certificate.
            revoked = exists().where(
                column.reason == Reason.EVICTED,
                session.node_id == column.node_id,
                session.epoch == column.epoch,
                node.node_id == column.node_id,
                node.revoked_at_ms >= session.opened_at_ms,
            )
            rows = connection.execute(
                select(end_directive, revoked.label("revoked"))
                .where(column.dispatcher_id == dispatcher_id)
                .order_by(column.node_id, column.epoch)
                .limit(most)
            )
            return [directive_of(row) for row in rows]

        return await self._store.read(work)

    async def acknowledge(self, event_ids: Sequence[str]) -> int:
        def work(connection: Connection) -> int:
            return drop_events(connection, lifecycle_event.c.event_id.in_(sorted(set(event_ids))))

        return await self._store.write(work)

    async def trim(self, oldest_ms: int, most_events: int) -> Trimmed:
        return await self._store.write(partial(trim, oldest_ms=oldest_ms, most_events=most_events))

    async def last_change(self) -> int:
        return await self._store.read(last_change)

    async def changes_after(self, number: int, node_id: str, most: int) -> list[Changed]:
        return await self._store.read(partial(changes_after, number=number, node_id=node_id, most=most))

    async def beat(self, replica: Replica) -> None:
        await self._store.write(partial(beat, replica=replica))

    async def replicas(self) -> list[Replica]:
        return await self._store.read(replicas)

    async def drop_replica(self, seen: Replica) -> None:
        await self._store.write(partial(drop_replica, seen=seen))

    async def usage(self, after: Place | None = None, most: int = 0) -> Usage:
        return await self._store.read(partial(self._usage, after=after, most=most))

    async def change_limits(self, change: LimitsChange) -> Usage:
        def work(connection: Connection) -> Usage:
            # No open that still goes by the former limits ends behind this.
            lock_counts(connection, [(Scope.TOTAL, "")])
            general = {
                Scope.CONNECTOR: change.per_connector,
                Scope.PROJECT: change.per_project,
                Scope.TOTAL: change.total,
            }
            rows = [
                {"scope": scope, "place": "", "nodes": nodes}
                for scope, nodes in general.items()
                if nodes is not None
            ]
            rows += [
                {"scope": Scope.PROJECT, "place": project_id, "nodes": nodes}
                for project_id, nodes in change.projects.items()
                if nodes != UNLIMITED
            ]
            # Those that former releases left behind go too.
            column = limit_change.c
            is_own = (column.scope == Scope.PROJECT) & (column.place != "")
            connection.execute(
                delete(limit_change).where(
                    is_own, or_(column.nodes == UNLIMITED, column.place.in_(sorted(change.projects)))
                )
            )
            if rows:
                connection.execute(upsert(connection, limit_change), rows)
            own = select(func.count()).select_from(limit_change).where(is_own)
            count = connection.execute(own).scalar_one()
            if count > MAX_PROJECT_LIMITS and any(change.projects.values()):
                raise Refused(
                    "TOO_MANY_LIMITS",
                    f"projects: {count} would have a limit of their own, and at most {MAX_PROJECT_LIMITS} "
                    "may; remove some (0), or set per_project",
                    field="projects",
                )
            return self._usage(connection)

        return await self._store.write(work)

    async def states(self) -> dict[State, int]:
        def work(connection: Connection) -> dict[State, int]:
            column = node_session.c
            rows = connection.execute(select(column.state, func.count()).group_by(column.state))
            return {State(state): int(count) for state, count in rows}

        return await self._store.read(work)

    async def probe(self) -> None:
        await self._store.check()

    async def _of_caller(
        self,
        dispatcher_id: str,
        node_ids: Sequence[str],
        decide: Callable[[Book], list[T]],
        *,
        note: bool = False,
    ) -> Committed[T]:
        def work(connection: Connection) -> Committed[T]:
            if note:
                note_alive(connection, dispatcher_id)
            where = node_session.c.node_id.in_(sorted(set(node_ids)))
            locked = LockedBook(connection, where, self._make_id, caller=dispatcher_id)
            results = decide(locked.book)
            locked.write(dispatcher_id)
            return _committed(locked, results)

        return await self._store.write(work)

    async def _sessions(self, *where: ColumnElement[bool], most: int | None = None) -> list[Session]:
        statement = select(node_session).where(*where).order_by(node_session.c.node_id).limit(most)
        return await self._store.read(
            lambda connection: [session_of(row) for row in connection.execute(statement)]
        )

    def _orphan(self, connection: Connection, dispatcher_id: str, now_ms: int) -> Committed[None]:
        held = LIVE - {State.ORPHANED}
        where = (node_session.c.dispatcher_id == dispatcher_id) & node_session.c.state.in_(held)
        locked = LockedBook(connection, where, self._make_id)
        for node_id in list(locked.book.sessions):
            locked.book.lose(node_id, now_ms)
        locked.write()
        return _committed(locked, [])

    def _usage(self, connection: Connection, after: Place | None = None, most: int = 0) -> Usage:
        column = slot_count.c
        total = select(slot_count).where(column.scope == Scope.TOTAL, column.nodes > 0)
        page = (
            select(slot_count)
            .where(
                column.scope != Scope.TOTAL,
                column.nodes > 0,
                tuple_(column.scope, column.place) > (after or ("", "")),
            )
            .order_by(column.scope, column.place)
            .limit(most)
        )
        rows = [*connection.execute(total), *(connection.execute(page) if most else ())]
        counts = {(Scope(row.scope), row.place): int(row.nodes) for row in rows}
        return Usage(read_limits(connection, self._initial), counts)
