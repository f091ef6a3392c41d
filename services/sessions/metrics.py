"""The metrics of the sessions service."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from services.runtime.grpc_metrics import GrpcMetrics
from services.sessions.lifecycle import LIVE, Session, State
from services.sessions.limits import Scope
from services.sessions.records import OpenResult, TransferResult, Trimmed, Usage

_BATCHES = (1, 4, 16, 64, 256, 1024, 4096)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)


class Metrics:
    """One set per process; node ids are never labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        made = self.registry
        self.grpc = GrpcMetrics("sessions", made)
        self._opens = Counter(
            "cloudhub_sessions_opens",
            "Sessions asked for: opened, or refused by which limit, or forbidden to the node",
            ["outcome"],
            registry=made,
        )
        self._superseded = Counter(
            "cloudhub_sessions_superseded", "Opens that superseded a live session", registry=made
        )
        self._transfers = Counter(
            "cloudhub_sessions_transfers",
            "Sessions asked to move to another dispatcher: granted, or why the link has none",
            ["outcome"],
            registry=made,
        )
        self._closes = Counter("cloudhub_sessions_closes", "Sessions ended", ["reason"], registry=made)
        self._stale = Counter(
            "cloudhub_sessions_stale_calls",
            "Entries about a session that is gone or another's",
            ["operation"],
            registry=made,
        )
        self._live = Gauge(
            "cloudhub_sessions_live",
            "Sessions that hold a slot, when last looked at",
            ["state"],
            registry=made,
        )
        self._limit = Gauge(
            "cloudhub_sessions_limit", "General limits in force; 0: unlimited", ["scope"], registry=made
        )
        self._batch = Histogram(
            "cloudhub_sessions_batch_entries",
            "Entries per call",
            ["operation"],
            buckets=_BATCHES,
            registry=made,
        )
        self._seconds = Histogram(
            "cloudhub_sessions_transaction_seconds",
            "Time from call to commit, waiting included",
            ["operation"],
            buckets=_SECONDS,
            registry=made,
        )
        self._reaped = Counter(
            "cloudhub_sessions_reaped", "Leases lost or expired, ends unconfirmed", ["what"], registry=made
        )
        self._dropped = Counter(
            "cloudhub_sessions_dropped_rows", "Rows given up by age or number", ["what"], registry=made
        )
        self._events = Counter(
            "cloudhub_sessions_events_acknowledged", "Lifecycle events taken by subscribers", registry=made
        )
        self._handed = Counter(
            "cloudhub_sessions_events_handed_over", "Lifecycle events handed by a renewal", registry=made
        )
        self._issued = Counter(
            "cloudhub_sessions_certificates",
            "Certificates asked for by nodes: granted by token or renewal, or why not",
            ["outcome"],
            registry=made,
        )
        self._watch_ends = Counter(
            "cloudhub_sessions_watch_ends", "Watch streams ended by the service", ["reason"], registry=made
        )
        self._store = Gauge(
            "cloudhub_sessions_store_available", "1 while the database takes writes", registry=made
        )

    @contextmanager
    def transaction(self, operation: str, entries: int = 1) -> Iterator[None]:
        """Measures one call to the registry."""
        self._batch.labels(operation).observe(entries)
        begun = time.perf_counter()
        try:
            yield
        finally:
            self._seconds.labels(operation).observe(time.perf_counter() - begun)

    def opened(self, results: Iterable[OpenResult]) -> None:
        for result in results:
            outcome = f"limit_{result.full[0].value}" if result.full else "opened"
            self._opens.labels("forbidden" if result.forbidden else outcome).inc()
            if result.superseded:
                self._superseded.inc()

    def transferred(self, results: Iterable[TransferResult]) -> None:
        for result in results:
            self._transfers.labels(result.reason.name.lower() if result.reason else "granted").inc()

    def changed(self, changes: Iterable[Session]) -> None:
        for session in changes:
            if session.state is State.CLOSED and session.reason:
                self._closes.labels(session.reason.name.lower()).inc()

    def stale(self, operation: str) -> None:
        self._stale.labels(operation).inc()

    def present(self, states: dict[State, int], usage: Usage) -> None:
        for state in LIVE:
            self._live.labels(state.name.lower()).set(states.get(state, 0))
        for scope in Scope:
            self._limit.labels(scope.value).set(usage.limits.general(scope))

    def reaped(self, what: str, count: int = 1) -> None:
        self._reaped.labels(what).inc(count)

    def dropped_of_nodes(self, events: int) -> None:
        """Events given up at the bound of their node."""
        self._dropped.labels("node_events").inc(events)

    def dropped(self, trimmed: Trimmed) -> None:
        self._dropped.labels("events").inc(trimmed.events)
        self._dropped.labels("directives").inc(trimmed.directives)

    def acknowledged(self, count: int) -> None:
        self._events.inc(count)

    def handed_over(self, count: int) -> None:
        self._handed.inc(count)

    def issued(self, outcome: str) -> None:
        self._issued.labels(outcome).inc()

    def watch_ended(self, reason: str) -> None:
        self._watch_ends.labels(reason).inc()

    def store_available(self, available: bool) -> None:
        self._store.set(available)
