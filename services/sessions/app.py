"""The sessions service put together: the only place that reads its settings."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from cloudhub.v1 import enrolment_pb2_grpc, sessions_pb2_grpc
from services.runtime.advertising import advertised_address
from services.runtime.clock import Clock, SystemClock
from services.runtime.ids import new_id
from services.runtime.logs import get_log
from services.runtime.metrics import MetricsEndpoint
from services.runtime.release import release
from services.runtime.rpc import RpcServer
from services.runtime.security import security_of
from services.runtime.store import Store, open_store
from services.runtime.tracing import Tracing, configure_tracing
from services.sessions import schema
from services.sessions.admin import AdminServicer
from services.sessions.enrolment.admin import EnrolmentAdminServicer
from services.sessions.enrolment.record_sql import EnrolmentRecord
from services.sessions.enrolment.servicer import EnrolmentServicer
from services.sessions.followed_changes import FollowedChanges
from services.sessions.limits import Limits
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.reaper import Reaper
from services.sessions.records import Replica
from services.sessions.registry import Registry
from services.sessions.registry_sql import SqlRegistry
from services.sessions.seen import Seen
from services.sessions.servicer import SessionsServicer
from services.sessions.settings import SessionsSettings

SERVICES = (
    "cloudhub.v1.SessionsService",
    "cloudhub.v1.SessionsAdmin",
    "cloudhub.v1.EnrolmentService",
    "cloudhub.v1.EnrolmentAdmin",
)

log = get_log(__name__)


class SessionsApp:
    """One process's worth of the service. `start`, then `work` until cancelled, then `stop`."""

    def __init__(
        self,
        settings: SessionsSettings,
        *,
        clock: Clock | None = None,
        tracing: Tracing | None = None,
        wrap: Callable[[Registry], Registry] = lambda registry: registry,
    ) -> None:
        self._settings = settings
        self._name = settings.name or socket.gethostname()
        # Where others reach it; known once it serves.
        self._address = ""
        self._replica_id = f"{self._name}-{new_id()}"
        self._clock = clock or SystemClock()
        self._tracing = tracing
        self._wrap = wrap
        self._store: Store | None = None
        self._serves = False
        self._endpoint: MetricsEndpoint | None = None
        self.metrics = Metrics()
        self.notices = Notices(self.metrics, settings.most_watchers, settings.watch_queue)
        self._security = security_of(settings, self._clock)
        self._server = RpcServer(
            settings.listen,
            SERVICES,
            self._security,
            probes=settings.health_listen,
            clock=self._clock,
            metrics=self.metrics.grpc,
            limits=settings.caller_limits,
        )
        self.metrics.grpc.watch(self._security)
        self.reaper: Reaper
        self.changes: FollowedChanges

    @property
    def port(self) -> int:
        """The gRPC port in use."""
        return self._server.port

    @property
    def metrics_port(self) -> int:
        """The port of the Prometheus endpoint."""
        assert self._endpoint
        return self._endpoint.port

    async def start(self) -> None:
        """Opens the database and serves; SERVING once the database has answered. StartupError if it cannot
        be; what had been opened is closed then."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        settings = self._settings
        self._store = await open_store(settings.database_source, schema.SCHEMA)
        initial = Limits(settings.limit_per_connector, settings.limit_per_project, settings.limit_total)
        registry = self._wrap(SqlRegistry(self._store, initial))
        if self._tracing is None:
            self._tracing = configure_tracing("sessions", self._name)
        servicer = SessionsServicer(
            registry,
            self.notices,
            self.metrics,
            self._tracing,
            self._clock,
            lease_seconds=settings.lease_seconds,
            retry_seconds=settings.limit_retry_seconds,
        )
        grpc_server = self._server.grpc_server
        sessions_pb2_grpc.add_SessionsServiceServicer_to_server(servicer, grpc_server)
        self._endpoint = await MetricsEndpoint.serving(
            settings.metrics_listen, self.metrics.registry, self.metrics.grpc.cut
        )
        seen = Seen(self._clock)
        self.reaper = Reaper(
            registry,
            self.notices,
            self.metrics,
            self._clock,
            lambda: Replica(self._replica_id, self._name, self._address, version=release()),
            lease_seconds=settings.lease_seconds,
            event_retention_seconds=settings.event_retention_seconds,
            most_events=settings.most_events,
            on_health=lambda is_well: self._server.learned(ready=is_well),
            seen=seen,
        )
        admin = AdminServicer(registry, self.notices, self.metrics, self._clock, self.reaper)
        sessions_pb2_grpc.add_SessionsAdminServicer_to_server(admin, grpc_server)
        record = EnrolmentRecord(self._store, seen.now_ms)
        enrolment_pb2_grpc.add_EnrolmentServiceServicer_to_server(
            EnrolmentServicer(
                record, registry, self.metrics, self._tracing, self._clock, settings.lease_seconds
            ),
            grpc_server,
        )
        enrolment_pb2_grpc.add_EnrolmentAdminServicer_to_server(
            EnrolmentAdminServicer(
                record, registry, self.notices, self.metrics, self._clock, settings.enrolment_ca
            ),
            grpc_server,
        )
        self.changes = FollowedChanges(registry, self.notices)
        await self._server.start()
        self._serves = True
        self._address = settings.advertise or advertised_address(self._server.address)
        await self.reaper.check()
        log.info(
            "service.started",
            version=release(),
            address=self._server.address,
            metrics_port=self._endpoint.port,
        )

    async def work(self) -> None:
        """Looks after leases and follows other replicas until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.reaper.run(), name="sessions-reaper")
            tasks.create_task(self.changes.run(), name="sessions-changes")
            tasks.create_task(self._security.run(), name="sessions-certificates")

    async def stop(self) -> None:
        """In this order: not serving, streams ended, gRPC stopped, telemetry flushed, this replica taken off
        the record, database closed."""
        if not self._store:
            return
        self._server.drains()
        self.notices.close()
        await self._server.stop(self._settings.shutdown_seconds)
        if self._endpoint:
            await self._endpoint.close()
        if self._tracing:
            await asyncio.to_thread(self._tracing.close)
        if self._serves:
            await self.reaper.leave()
        await self._store.close()
        self._store = None
        log.info("service.stopped")


@asynccontextmanager
async def running_app(settings: SessionsSettings, **replaced: object) -> AsyncIterator[SessionsApp]:
    """The service at work; a loop of it that dies ends the body."""
    app = SessionsApp(settings, **replaced)  # type: ignore[arg-type]
    await app.start()
    try:
        async with asyncio.TaskGroup() as tasks:
            work = tasks.create_task(app.work(), name="sessions-work")
            try:
                yield app
            finally:
                work.cancel()
    finally:
        await app.stop()


def main_of(settings: SessionsSettings) -> Callable[[asyncio.Event], Awaitable[None]]:
    """The process's main: serves until `stop` is set."""

    async def main(stop: asyncio.Event) -> None:
        async with running_app(settings):
            await stop.wait()

    return main
