"""Looks after what nobody reports: silent processes, unconfirmed ends, old rows, the database's health.

Every replica has one, over the same rows: each acts by what it saw itself, and what two of them do has
its effect once.
"""

import asyncio
from collections.abc import Callable

from services.runtime.clock import Clock
from services.runtime.errors import StoreUnavailable
from services.runtime.logs import get_log
from services.sessions.instances import Instance, instances, signs
from services.sessions.leases import Due, LeaseWatch, Observation, Patience, Verdict
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.presence import Presence, Sign
from services.sessions.records import Ref, Replica
from services.sessions.registry import Registry
from services.sessions.seen import Seen

_MOST_EXPIRED_PER_TRANSACTION = 1000
_TICKS_PER_LEASE = 10
_TICKS_PER_BEAT = 3
# A process that was killed is shown with its growing silence for so long.
_LEASES_SHOWN = 3
_TICKS_PER_TRIM = 60
# Several looks of `FollowedChanges`.
DELETED_SHOWN_SECONDS = 3.0

log = get_log(__name__)


class Reaper:
    """Its `look` is one round; `run` goes round until cancelled, about ten times a lease."""

    def __init__(
        self,
        registry: Registry,
        notices: Notices,
        metrics: Metrics,
        clock: Clock,
        replica: Callable[[], Replica],
        *,
        lease_seconds: float,
        event_retention_seconds: float,
        most_events: int,
        on_health: Callable[[bool], None],
        seen: Seen | None = None,
    ) -> None:
        self._registry = registry
        self._notices = notices
        self._metrics = metrics
        self._clock = clock
        self._replica = replica
        self._lease_seconds = lease_seconds
        self._retention_seconds = event_retention_seconds
        self._seen = seen or Seen(clock)
        self._most_events = most_events
        self._on_health = on_health
        self._leases = LeaseWatch(lease_seconds)
        self._unconfirmed: Patience[Ref] = Patience(lease_seconds / 3)
        self._deleted: Patience[Ref] = Patience(lease_seconds / 3)
        self._presence = Presence(lease_seconds / 3)
        self._healthy: bool | None = None
        self._rounds = 0

    async def run(self) -> None:
        """Works until cancelled. A database that is away makes the service not serving, no more."""
        interval = min(1.0, self._lease_seconds / _TICKS_PER_LEASE)
        while True:
            await self.check()
            await asyncio.sleep(interval)

    async def check(self) -> None:
        """One round, and what it says about the database."""
        try:
            async with asyncio.timeout(self._lease_seconds):
                await self._registry.probe()
                self._set_health(True, "")
                await self.look()
        except StoreUnavailable as error:
            self._set_health(False, error.detail)
        except TimeoutError:
            self._set_health(False, f"no answer within {self._lease_seconds:g} s")

    async def look(self) -> None:
        """One round; raises StoreUnavailable."""
        leases = await self._registry.leases()
        seen = [Observation(lease.dispatcher_id, lease.renewals) for lease in leases]
        if self._rounds % _TICKS_PER_BEAT == 0:
            await self._registry.beat(self._replica())
        replicas = await self._registry.replicas()
        silences = self._presence.look(signs(leases, replicas), self._clock.monotonic())
        await self._drop_silent(replicas, dict(silences))
        due = self._leases.look(seen, self._clock.monotonic())
        for item in due:
            await self._carry_out(item)
        if any(lease.lost for lease in leases):
            await self._registry.forget_lost()
        await self._close_unconfirmed()
        await self._forget_deleted()
        if self._rounds % _TICKS_PER_TRIM == 0:
            oldest_ms = self._seen.before_ms(self._retention_seconds)
            self._metrics.dropped(await self._registry.trim(oldest_ms, self._most_events))
        self._rounds += 1
        self._metrics.present(await self._registry.states(), await self._registry.usage())
        self._notices.ring_all()

    async def instances(self) -> list[Instance]:
        """Every process of the hub that is on record, with its silence as seen by this one."""
        leases, replicas = await self._registry.leases(), await self._registry.replicas()
        now = self._clock.monotonic()
        return instances(leases, replicas, lambda sign: self._presence.silent_seconds(sign, now))

    async def leave(self) -> None:
        """Takes this replica off the record; best effort, silence does it too."""
        try:
            for replica in await self._registry.replicas():
                if replica.replica_id == self._replica().replica_id:
                    await self._registry.drop_replica(replica)
        except StoreUnavailable as error:
            log.warning("replica.not_left", error=str(error))

    async def _drop_silent(self, replicas: list[Replica], silences: dict[Sign, float]) -> None:
        for replica in replicas:
            silence = silences[Sign(replica.replica_id, replica.beats)]
            if silence >= _LEASES_SHOWN * self._lease_seconds:
                await self._registry.drop_replica(replica)
                log.warning("replica.gone", replica_id=replica.replica_id, silent_seconds=silence)

    async def _carry_out(self, item: Due) -> None:
        if item.verdict is Verdict.LOSE:
            lost = await self._registry.lose(item.lease, self._clock.wall_ms())
            self._notices.tell(lost)
            if lost.changes:
                self._report("lease.lost", item, len(lost.changes))
        else:
            count = 0
            while True:
                closed = await self._registry.expire(
                    item.lease, self._clock.wall_ms(), _MOST_EXPIRED_PER_TRANSACTION
                )
                self._notices.tell(closed)
                count += len(closed.changes)
                if len(closed.changes) < _MOST_EXPIRED_PER_TRANSACTION:
                    break
            if count:
                self._report("lease.expired", item, count)
        self._leases.done(item)

    def _report(self, event: str, item: Due, sessions: int) -> None:
        self._metrics.reaped("lost" if item.verdict is Verdict.LOSE else "expired", sessions)
        log.warning(event, dispatcher_id=item.lease.dispatcher_id, sessions=sessions)

    async def _close_unconfirmed(self) -> None:
        ages = self._unconfirmed.look(await self._registry.draining(), self._clock.monotonic())
        late = [ref for ref, age in ages if age >= self._lease_seconds]
        if late:
            closed = await self._registry.close_unconfirmed(
                late[:_MOST_EXPIRED_PER_TRANSACTION], self._clock.wall_ms()
            )
            self._notices.tell(closed)
            self._metrics.reaped("unconfirmed", len(closed.changes))

    async def _forget_deleted(self) -> None:
        """Sessions that ended with their node go when the watchers of all replicas have seen the end."""
        ages = self._deleted.look(await self._registry.ended_with_node(), self._clock.monotonic())
        seen = [ref for ref, age in ages if age >= DELETED_SHOWN_SECONDS]
        if seen:
            await self._registry.forget_deleted(seen[:_MOST_EXPIRED_PER_TRANSACTION])

    def _set_health(self, healthy: bool, detail: str) -> None:
        self._metrics.store_available(healthy)
        if healthy == self._healthy:
            return
        if not healthy:
            log.error("store.unavailable", detail=detail)
        elif self._healthy is False:
            log.info("store.available")
        self._healthy = healthy
        self._on_health(healthy)
