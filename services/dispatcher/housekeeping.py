"""What a dispatcher does by the clock: its lease, expiry, retention, and what its health goes by."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from cloudhub.v1.sessions_pb2 import ConnectorLoad
from services.dispatcher.delivery import MESSAGING, Delivery
from services.dispatcher.lease import Lease
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.oldest_pending import ALL, CONNECTED, OldestPending
from services.dispatcher.outbox.sql import SqlOutbox
from services.dispatcher.peers.directory import Peers
from services.dispatcher.retention import Retention
from services.dispatcher.sessions_client import SessionsClient
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.clock import Clock
from services.runtime.errors import HubError, StoreUnavailable
from services.runtime.logs import get_log
from services.runtime.rpc import RpcServer
from services.runtime.tracing import Tracing, is_sampled
from services.runtime.watched_store import WatchedStore

_log = get_log(__name__)

# What each service needs. Publishing needs the store; links need sessions too.
SERVICES = {
    "cloudhub.v1.DispatcherService": {"store"},
    "cloudhub.v1.DispatcherAdmin": {"store"},
    "cloudhub.v1.PeerService": {"store"},
    "cloudhub.v1.LinkService": {"store", "sessions"},
}

STORE_INTERVAL = 0.5
EXPIRE_INTERVAL = 5.0
LEAST_RENEWAL_INTERVAL = 0.1
# A live session expires its own messages to the millisecond; the sweep is for all others.
EXPIRE_GRACE_MS = 10_000
# Between steps through 5 000 nodes: a million are through within twenty minutes.
AGE_INTERVAL = 5.0
SWEEP_INTERVAL = 60.0
# Between steps through 256 nodes, so that a start is not slowed by them.
MEND_PAUSE = 0.2


@dataclass(slots=True)
class Housekeeping:
    """`run` must be awaited by the owner."""

    name: str
    server: RpcServer
    lease: Lease
    sessions: SessionsClient
    delivery: Delivery
    store: WatchedStore
    outbox: SqlOutbox
    upstream: Upstream
    peers: Peers
    connector_loads: Callable[[], Sequence[ConnectorLoad]]
    clock: Clock
    metrics: DispatcherMetrics
    tracing: Tracing
    lease_seconds: float
    retention: Retention
    oldest: OldestPending = field(default_factory=OldestPending)
    _sessions_answer: bool = False
    _draining: bool = False
    _renew_soon: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """Works until cancelled."""
        for nodes in (ALL, CONNECTED):
            self.metrics.oldest_pending.labels(nodes).set_function(partial(self._oldest_seconds, nodes))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._renew(), name="lease-renewal")
            group.create_task(self._watch_store(), name="store-health")
            group.create_task(self._every(EXPIRE_INTERVAL, self._expire), name="expiry")
            group.create_task(self._every(AGE_INTERVAL, self._walk), name="oldest-pending")
            group.create_task(self._every(SWEEP_INTERVAL, self.retention.sweep), name="retention")
            group.create_task(self._mend(), name="mending")

    def renew_soon(self) -> None:
        """Operators are to see a change at once that goes with the renewals of the lease."""
        self._renew_soon.set()

    def drains(self) -> None:
        """This dispatcher stops."""
        self._draining = True
        self.renew_soon()

    async def _renew(self) -> None:
        counter = self.clock.wall_ms()
        while True:
            counter += 1
            self._renew_soon.clear()
            try:
                answer = await self.sessions.renew(
                    self.name,
                    self.peers.own.address,
                    counter,
                    len(self.delivery.sessions),
                    self.connector_loads(),
                    draining=self._draining,
                )
            except HubError as error:
                if self._sessions_answer:
                    _log.warning("sessions.lost", error=str(error))
                self._sessions_answer = False
            else:
                self.lease.renewed()
                if answer.adopted_events:
                    self.upstream.adopt_events(answer.adopted_events)
                self.peers.seen(answer.dispatchers)
                self._sessions_answer = True
            self.server.learned(sessions=self._sessions_answer)
            await self._next_renewal(self.lease_seconds / 3 if self._sessions_answer else 0.5)

    async def _next_renewal(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._renew_soon.wait()
        except TimeoutError:
            return
        # However often something changes.
        await asyncio.sleep(LEAST_RENEWAL_INTERVAL)

    async def _every(self, seconds: float, work: Callable[[], object]) -> None:
        while True:
            try:
                result = work()
                if asyncio.iscoroutine(result):
                    await result
            except StoreUnavailable as error:
                _log.warning("housekeeping.put_off", error=str(error))
            await asyncio.sleep(seconds)

    async def _watch_store(self) -> None:
        told: bool | None = None
        while True:
            detail = await self._store_fault()
            if (takes_writes := not detail) != told:
                if detail:
                    _log.error("store.unavailable", detail=detail)
                elif told is False:
                    _log.info("store.available")
                told = takes_writes
                self.metrics.store_available.set(takes_writes)
                self.server.learned(store=takes_writes)
            await asyncio.sleep(STORE_INTERVAL)

    async def _store_fault(self) -> str:
        """Why the database takes no writes; empty if it does."""
        try:
            async with asyncio.timeout(self.lease_seconds):
                await self.store.check()
        except StoreUnavailable as error:
            return error.detail
        except TimeoutError:
            return f"no answer within {self.lease_seconds:g} s"
        return ""

    async def _expire(self) -> None:
        self.delivery.measure()
        now_ms, lifetimes = self.clock.wall_ms(), self.delivery.lifetimes
        if stepped := lifetimes.look(now_ms, self.clock.monotonic()):
            _log.warning("clock.stepped", seconds=round(stepped), expiry="by elapsed time, not by the clock")
        rows = await self.outbox.expire(
            now_ms - EXPIRE_GRACE_MS,
            1000,
            stepped_at_ms=lifetimes.stepped_at_ms,
            former_at_ms=lifetimes.seen_ms - EXPIRE_GRACE_MS,
        )
        for row in rows:
            self.metrics.ended.labels("expired").inc()
            if is_sampled(row.traceparent) and self.tracing.enabled:
                self.tracing.record(
                    "end",
                    row.traceparent,
                    attributes={
                        **MESSAGING,
                        "messaging.message.id": row.message_id,
                        "messaging.destination.name": row.path,
                        "cloudhub.node.id": row.node_id,
                        "cloudhub.ack_mode": "ack",
                        "cloudhub.object.key": row.key,
                        "cloudhub.reason": "expired",
                    },
                    error="expired",
                )
        await self.outbox.refresh()
        self.metrics.pending_rows.set(self.outbox.totals.rows)
        self.metrics.pending_bytes.set(self.outbox.totals.bytes)
        self.retention.measure()

    def _oldest_seconds(self, nodes: str) -> float:
        return self.oldest.seconds(nodes, self.clock.wall_ms())

    async def _walk(self) -> None:
        ages = await self.outbox.first_pending(self.oldest.after)
        now_ms, now = self.clock.wall_ms(), self.clock.monotonic()
        opened_at_ms = {
            node_id: now_ms - round((now - session.opened_at) * 1000)
            for node_id in ages.accepted_at_ms
            if (session := self.delivery.sessions.get(node_id)) is not None
        }
        self.oldest.found(ages.accepted_at_ms, opened_at_ms, ages.after)

    async def _mend(self) -> None:
        """Once through all nodes, for what a former release left there, or leaves while it is beside this."""
        after: str | None = ""
        while after is not None:
            try:
                mended = await self.outbox.mend(after, self.clock.wall_ms())
            except StoreUnavailable as error:
                _log.warning("housekeeping.put_off", error=str(error))
                await asyncio.sleep(EXPIRE_INTERVAL)
                continue
            after = mended.after
            if mended.objects:
                _log.warning("outbox.paths_united", objects=mended.objects)
            await asyncio.sleep(MEND_PAUSE)
