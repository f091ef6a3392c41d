"""A session registry in memory, and builders; the fake passes the contract suite of the real one."""

import itertools
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import grpc

from services.runtime.clock import Clock
from services.runtime.rpc import open_channel
from services.runtime.tracing import Tracing
from services.sessions.app import SessionsApp, running_app
from services.sessions.book import Book
from services.sessions.leases import Observation
from services.sessions.lifecycle import LIVE, Reason, Session, State
from services.sessions.limits import Limits, LimitsChange, Place, Scope, changed
from services.sessions.records import (
    NOT_HANDED,
    ActivateResult,
    Changed,
    CloseResult,
    Committed,
    ConnectorLoad,
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
from services.sessions.registry import HAND_AGAIN_AFTER_RENEWALS, Registry
from services.sessions.settings import SessionsSettings

T = TypeVar("T")


@dataclass
class SteppedClock:
    """Stands still until it is moved; both clocks apart."""

    seconds: float = 1000.0
    now_ms: int = 1_700_000_000_000

    def monotonic(self) -> float:
        return self.seconds

    def wall_ms(self) -> int:
        return self.now_ms

    def advance(self, seconds: float) -> None:
        """Time goes by on both."""
        self.seconds += seconds
        self.now_ms += int(seconds * 1000)


def opening(
    node_id: str = "edge-1", project_id: str = "p1", connector_id: str = "c1", link: int = 1
) -> Opening:
    """A link that asks for a session."""
    return Opening(node_id, project_id, connector_id, link, "websocket", "192.0.2.1:4711")


def renewal(dispatcher_id: str = "d1", counter: int = 1, *connectors: ConnectorLoad) -> Renewal:
    """A dispatcher that lives."""
    return Renewal(dispatcher_id, f"name-of-{dispatcher_id}", "127.0.0.1:50051", counter, 0, connectors)


@dataclass
class _FakeLease:
    counter: int = 0
    renewals: int = 0
    lost: bool = False
    last: Renewal | None = None

    def on_record(self, dispatcher_id: str) -> Lease:
        if not self.last:
            return Lease(dispatcher_id, self.renewals, self.lost)
        last = self.last
        said = (last.name, last.address, last.sessions, last.connectors, last.version, last.draining)
        return Lease(dispatcher_id, self.renewals, self.lost, *said)


@dataclass
class FakeRegistry:
    """Everything in dictionaries; each call is a transaction because nothing awaits within it."""

    initial: Limits = field(default_factory=Limits)
    sessions: dict[str, Session] = field(default_factory=dict)
    events: dict[str, Event] = field(default_factory=dict)
    open_directives: dict[Ref, Directive] = field(default_factory=dict)
    fake_leases: dict[str, _FakeLease] = field(default_factory=dict)
    counts: dict[Place, int] = field(default_factory=dict)
    changes: LimitsChange = field(default_factory=LimitsChange)
    numbers: Iterable[int] = field(default_factory=itertools.count)
    change: int = 0
    changed_at: dict[str, int] = field(default_factory=dict)
    fake_replicas: dict[str, Replica] = field(default_factory=dict)

    def _make_id(self) -> str:
        return f"event-{next(iter(self.numbers))}"

    def _limits(self) -> Limits:
        return changed(self.initial, self.changes)

    def _pending(self) -> dict[str, list[Event]]:
        pending: dict[str, list[Event]] = {}
        for event in sorted(self.events.values(), key=lambda event: (event.node_id, event.epoch, event.kind)):
            pending.setdefault(event.node_id, []).append(event)
        return pending

    def _renewals(self, dispatcher_id: str) -> int:
        lease = self.fake_leases.get(dispatcher_id)
        return lease.renewals if lease else 0

    def _transaction(self, decide: Callable[[Book], list[T]], caller: str | None = None) -> Committed[T]:
        renewals = self._renewals(caller) if caller else NOT_HANDED
        book = Book(
            dict(self.sessions),
            self._pending() if caller else {},
            dict(self.counts),
            self._limits(),
            make_id=self._make_id,
            renewals=renewals,
        )
        results = decide(book)
        self.sessions = book.sessions
        self.counts = {place: nodes for place, nodes in book.counts.items() if nodes}
        if caller:
            for event in list(self.events.values()):
                if event.node_id in book.moved:
                    self.events[event.event_id] = replace(event, dispatcher_id=caller, handed=renewals)
            for ref in book.confirmed:
                held = self.open_directives.get(ref)
                if held and held.dispatcher_id == caller:
                    del self.open_directives[ref]
        self.events.update({event.event_id: event for event in book.written})
        for event in book.dropped:
            self.events.pop(event.event_id, None)
        self.open_directives.update(book.directives)
        directed = frozenset(directive.dispatcher_id for directive in book.directives.values())
        if book.changes:
            self.change += 1
            self.changed_at.update((session.node_id, self.change) for session in book.changes)
        return Committed(results, book.changes, directed, self.change, len(book.dropped))

    def _of(self, dispatcher_id: str, states: Collection[State]) -> list[Session]:
        found = [s for s in self.sessions.values() if s.dispatcher_id == dispatcher_id and s.state in states]
        return sorted(found, key=lambda session: session.node_id)

    def _note_alive(self, dispatcher_id: str) -> None:
        lease = self.fake_leases.setdefault(dispatcher_id, _FakeLease())
        if lease.lost:
            lease.lost, lease.renewals = False, lease.renewals + 1

    async def transfer(
        self, dispatcher_id: str, wanted: Sequence[Transfer], now_ms: int
    ) -> Committed[TransferResult]:
        self._note_alive(dispatcher_id)
        return self._transaction(
            lambda book: [book.transfer(dispatcher_id, entry, now_ms) for entry in wanted], dispatcher_id
        )

    async def open(
        self, dispatcher_id: str, entries: Sequence[Opening], now_ms: int
    ) -> Committed[OpenResult]:
        self._note_alive(dispatcher_id)
        return self._transaction(
            lambda book: [book.open(dispatcher_id, entry, now_ms) for entry in entries], dispatcher_id
        )

    async def activate(
        self, dispatcher_id: str, refs: Sequence[Ref], now_ms: int
    ) -> Committed[ActivateResult]:
        return self._transaction(
            lambda book: [book.activate(dispatcher_id, ref, now_ms) for ref in refs], dispatcher_id
        )

    async def close(
        self, dispatcher_id: str, endings: Sequence[Ending], now_ms: int
    ) -> Committed[CloseResult]:
        return self._transaction(
            lambda book: [book.close(dispatcher_id, ending, now_ms) for ending in endings], dispatcher_id
        )

    async def evict(
        self, node_id: str, epoch: int, now_ms: int, *, revoked: bool = False
    ) -> Committed[EvictResult]:
        return self._transaction(lambda book: [book.evict(node_id, epoch, now_ms, revoked=revoked)])

    async def delete_nodes(self, node_ids: Sequence[str], now_ms: int) -> Committed[Deletion]:
        return self._transaction(lambda book: [book.delete(node_id, now_ms) for node_id in node_ids])

    async def ended_with_node(self) -> list[Ref]:
        return [
            Ref(session.node_id, session.epoch)
            for session in self.sessions.values()
            if not session.live and session.reason is Reason.NODE_DELETED
        ]

    async def forget_deleted(self, refs: Sequence[Ref]) -> int:
        gone = set(refs) & set(await self.ended_with_node())
        for ref in gone:
            del self.sessions[ref.node_id]
        return len(gone)

    async def held(self, dispatcher_id: str, after: str, most: int) -> list[Ref]:
        found = [Ref(s.node_id, s.epoch) for s in self._of(dispatcher_id, LIVE) if s.node_id > after]
        return found[:most]

    async def last_change(self) -> int:
        return self.change

    async def changes_after(self, number: int, node_id: str, most: int) -> list[Changed]:
        found = sorted((self.changed_at[key], key) for key in self.sessions)
        return [Changed(at, self.sessions[key]) for at, key in found if (at, key) > (number, node_id)][:most]

    async def beat(self, replica: Replica) -> None:
        known = self.fake_replicas.get(replica.replica_id, replica)
        self.fake_replicas[replica.replica_id] = replace(replica, beats=known.beats + 1)

    async def replicas(self) -> list[Replica]:
        return [self.fake_replicas[replica_id] for replica_id in sorted(self.fake_replicas)]

    async def drop_replica(self, seen: Replica) -> None:
        if self.fake_replicas.get(seen.replica_id) == seen:
            del self.fake_replicas[seen.replica_id]

    async def locate(self, node_ids: Sequence[str]) -> list[Session]:
        found = (self.sessions.get(node_id) for node_id in sorted(set(node_ids)))
        return [session for session in found if session and session.live]

    async def get(self, node_id: str) -> Session | None:
        return self.sessions.get(node_id)

    async def page(self, wanted: Filter, after: str, size: int) -> list[Session]:
        return [
            session
            for node_id, session in sorted(self.sessions.items())
            if node_id > after
            and session.state in wanted.states
            and node_id.startswith(wanted.node_id_prefix)
            and wanted.project_id in ("", session.project_id)
            and wanted.connector_id in ("", session.connector_id)
            and wanted.dispatcher_id in ("", session.dispatcher_id)
        ][:size]

    async def renew(self, renewal: Renewal, now_ms: int, most_events: int) -> Committed[Event]:
        lease = self.fake_leases.setdefault(renewal.dispatcher_id, _FakeLease())
        if renewal.counter <= lease.counter:
            return Committed([])
        lease.counter, lease.renewals, lease.lost = renewal.counter, lease.renewals + 1, False
        lease.last = renewal

        def reclaim(book: Book) -> list[Event]:
            for session in self._of(renewal.dispatcher_id, {State.ORPHANED}):
                book.reclaim(session.node_id, now_ms)
            return []

        committed = self._transaction(reclaim)
        alive = {key for key, lease in self.fake_leases.items() if not lease.lost}
        handed: list[Event] = []
        for events in self._pending().values():
            due = any(
                event.dispatcher_id not in alive
                or (
                    event.dispatcher_id == renewal.dispatcher_id
                    and event.handed <= lease.renewals - HAND_AGAIN_AFTER_RENEWALS
                )
                for event in events
            )
            if due and handed and len(handed) + len(events) > most_events:
                break
            if due:
                handed += [
                    replace(event, dispatcher_id=renewal.dispatcher_id, handed=lease.renewals)
                    for event in events
                ]
        self.events.update({event.event_id: event for event in handed})
        return replace(committed, results=handed)

    async def release(self, dispatcher_id: str, now_ms: int) -> Committed[None]:
        if dispatcher_id in self.fake_leases:
            self.fake_leases[dispatcher_id].lost = True
        return self._orphan(dispatcher_id, now_ms)

    def _orphan(self, dispatcher_id: str, now_ms: int) -> Committed[None]:
        def lose(book: Book) -> list[None]:
            for session in self._of(dispatcher_id, LIVE - {State.ORPHANED}):
                book.lose(session.node_id, now_ms)
            return []

        return self._transaction(lose)

    async def leases(self) -> list[Lease]:
        return [self.fake_leases[key].on_record(key) for key in sorted(self.fake_leases)]

    def _still(self, seen: Observation) -> bool:
        lease = self.fake_leases.get(seen.dispatcher_id)
        if not lease or lease.renewals != seen.renewals:
            return False
        lease.lost = True
        return True

    async def lose(self, seen: Observation, now_ms: int) -> Committed[None]:
        return self._orphan(seen.dispatcher_id, now_ms) if self._still(seen) else Committed([])

    async def expire(self, seen: Observation, now_ms: int, most: int) -> Committed[None]:
        if not self._still(seen):
            return Committed([])
        orphans = self._of(seen.dispatcher_id, {State.ORPHANED})[:most]
        return await self.close_refs([Ref(session.node_id, session.epoch) for session in orphans], now_ms)

    async def close_refs(self, refs: Sequence[Ref], now_ms: int) -> Committed[None]:
        def expire(book: Book) -> list[None]:
            for ref in refs:
                book.expire(ref.node_id, ref.epoch, now_ms)
            return []

        return self._transaction(expire)

    async def forget_lost(self) -> None:
        needed = {session.dispatcher_id for session in self.sessions.values() if session.live}
        needed |= {event.dispatcher_id for event in self.events.values()}
        self.fake_leases = {
            key: lease for key, lease in self.fake_leases.items() if not lease.lost or key in needed
        }

    async def draining(self) -> list[Ref]:
        return [
            Ref(node_id, session.epoch)
            for node_id, session in sorted(self.sessions.items())
            if session.state is State.DRAINING
        ]

    async def close_unconfirmed(self, refs: Sequence[Ref], now_ms: int) -> Committed[None]:
        still = set(await self.draining())
        return await self.close_refs([ref for ref in refs if ref in still], now_ms)

    async def directives(self, dispatcher_id: str, most: int) -> list[Directive]:
        found = [item for item in self.open_directives.values() if item.dispatcher_id == dispatcher_id]
        return sorted(found, key=lambda item: (item.node_id, item.epoch))[:most]

    async def acknowledge(self, event_ids: Sequence[str]) -> int:
        return sum(self.events.pop(event_id, None) is not None for event_id in set(event_ids))

    async def trim(self, oldest_ms: int, most_events: int) -> Trimmed:
        before = len(self.events), len(self.open_directives)
        newest_first = sorted(self.events.values(), key=lambda event: event.at_ms, reverse=True)
        over = newest_first[most_events].at_ms if len(newest_first) > most_events else -1
        self.events = {
            event.event_id: event for event in newest_first if event.at_ms >= oldest_ms and event.at_ms > over
        }
        self.open_directives = {
            ref: item for ref, item in self.open_directives.items() if item.at_ms >= oldest_ms
        }
        return Trimmed(before[0] - len(self.events), before[1] - len(self.open_directives))

    async def usage(self, after: Place | None = None, most: int = 0) -> Usage:
        total = [place for place in self.counts if place[0] is Scope.TOTAL]
        behind = after or ("", "")
        others = sorted(place for place in self.counts if place[0] is not Scope.TOTAL and place > behind)
        return Usage(self._limits(), {place: self.counts[place] for place in [*total, *others[:most]]})

    async def change_limits(self, change: LimitsChange) -> Usage:
        def newer(field_name: str) -> int | None:
            value: int | None = getattr(change, field_name)
            former: int | None = getattr(self.changes, field_name)
            return former if value is None else value

        self.changes = LimitsChange(
            newer("per_connector"),
            newer("per_project"),
            newer("total"),
            {**self.changes.projects, **change.projects},
        )
        return await self.usage()

    async def states(self) -> dict[State, int]:
        found: dict[State, int] = {}
        for session in self.sessions.values():
            found[session.state] = found.get(session.state, 0) + 1
        return found

    async def probe(self) -> None:
        return None


def recounted(sessions: Iterable[Session]) -> dict[Place, int]:
    """What the counters must say."""
    counts: dict[Place, int] = {}
    for session in sessions:
        if session.live:
            for place in (
                (Scope.CONNECTOR, session.connector_id),
                (Scope.PROJECT, session.project_id),
                (Scope.TOTAL, ""),
            ):
                counts[place] = counts.get(place, 0) + 1
    return counts


def settings(folder: Path, **changes: object) -> SessionsSettings:
    """Settings of a service on free ports with a database in `folder`."""
    values: dict[str, object] = {
        "listen": "127.0.0.1:0",
        "metrics_listen": "127.0.0.1:0",
        "database": f"sqlite:///{folder}/sessions.db",
        "shutdown_seconds": 2.0,
        "grpc_insecure_loopback": True,
        **changes,
    }
    return SessionsSettings.model_validate(values)


@asynccontextmanager
async def running_sessions(
    folder: Path,
    *,
    clock: Clock | None = None,
    tracing: Tracing | None = None,
    wrap: Callable[[Registry], Registry] | None = None,
    **changes: object,
) -> AsyncIterator[tuple[SessionsApp, grpc.aio.Channel]]:
    """A real service in this process and a channel to it."""
    replaced: dict[str, object] = {"clock": clock, "tracing": tracing}
    if wrap:
        replaced["wrap"] = wrap
    async with (
        running_app(settings(folder, **changes), **replaced) as app,
        open_channel(f"127.0.0.1:{app.port}") as channel,
    ):
        yield app, channel
