"""What is too old to be kept goes, by the time that was seen to pass."""

from dataclasses import dataclass, field

from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.outbox.contract import SweepPlace
from services.dispatcher.outbox.history import HistoryCounts
from services.dispatcher.outbox.sql import SqlOutbox
from services.runtime.clock import Clock
from services.runtime.logs import get_log
from services.runtime.seen_time import SeenTime

_log = get_log(__name__)

SWEEP_ROWS = 5_000
# What one sweep looks at, of 256 nodes each; the next one goes on from there. Short against any retention:
# ten thousand nodes are through in four minutes, a million in some hours.
SWEEP_STEPS = 10
# A clock that is set by less than this is being kept, not stepped.
CLOCK_SLACK_SECONDS = 60.0
# Of a node that never connected and for which nothing is pending: for those who look what became of it.
UNKNOWN_KEPT_SECONDS = 3600.0
# In one transaction, which takes their histories too, and how many of these a sweep makes.
UNKNOWN_NODES_PER_STEP = 20
UNKNOWN_STEPS = 50


@dataclass(slots=True)
class Retention:
    """Sweeps the outbox. `sweep` raises StoreUnavailable."""

    outbox: SqlOutbox
    clock: Clock
    metrics: DispatcherMetrics
    event_seconds: float
    tombstone_seconds: float
    _seen: SeenTime | None = None
    _swept_to: SweepPlace = field(default_factory=SweepPlace)
    _counted: HistoryCounts = field(default_factory=HistoryCounts)

    async def sweep(self) -> None:
        """Deletes some of what is too old, and notes how far time was seen to pass."""
        seen = await self._look()
        place, steps = self._swept_to, 0
        while steps < SWEEP_STEPS and not place.is_through:
            swept = await self.outbox.sweep(
                seen.before_ms(self.event_seconds), seen.before_ms(self.tombstone_seconds), SWEEP_ROWS, place
            )
            place = swept.place
            steps += swept.rows < SWEEP_ROWS  # a backlog is worked off at once
        self._swept_to = SweepPlace() if place.is_through else place
        spent_before_ms = seen.before_ms(UNKNOWN_KEPT_SECONDS)
        for _ in range(UNKNOWN_STEPS):
            forgotten = await self.outbox.forget_unknown(spent_before_ms, UNKNOWN_NODES_PER_STEP)
            if forgotten < UNKNOWN_NODES_PER_STEP:
                break
        await self.outbox.note_seen(seen.seen_ms)

    async def _look(self) -> SeenTime:
        seen = self._seen
        if seen is None:
            seen = SeenTime(
                slack_seconds=CLOCK_SLACK_SECONDS,
                hold_seconds=max(self.event_seconds, self.tombstone_seconds, UNKNOWN_KEPT_SECONDS),
                seen_ms=await self.outbox.seen_ms(),
            )
        is_start = self._seen is None
        stepped = seen.look(self.clock.wall_ms(), self.clock.monotonic())
        self._seen = seen
        if stepped and is_start:
            _log.info("retention.time_unseen", seconds=round(stepped), kept="for as much time that is seen")
        elif stepped:
            self.metrics.clock_steps.inc()
            _log.warning("clock.stepped", seconds=round(stepped), kept="by elapsed time, not by the clock")
        return seen

    def measure(self) -> None:
        """Brings metrics up to date with what the outbox counts."""
        counts, counted = self.outbox.history_counts, self._counted
        for reason, count in (
            ("repeated", counts.repeats - counted.repeats),
            ("node_bound", counts.trimmed - counted.trimmed),
            ("unknown_node", counts.left_out - counted.left_out),
        ):
            self.metrics.history_left_out.labels(reason).inc(count)
        self._counted = HistoryCounts(counts.trimmed, counts.repeats, counts.left_out)
        self.metrics.unknown_nodes.set(self.outbox.totals.unknown_nodes)
        self.metrics.unknown_bytes.set(self.outbox.totals.unknown_bytes)
