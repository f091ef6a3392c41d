"""The enrolment service put together: the only place that reads its settings and starts its loops."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc

from cloudhub.v1 import enrolment_pb2 as pb
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from services.enrolment.authority import RenewedAuthority, RenewedContext
from services.enrolment.handler import Handler
from services.enrolment.listener import EnrolmentListener
from services.enrolment.metrics import EnrolmentMetrics
from services.enrolment.presence import Presence
from services.enrolment.settings import EnrolmentSettings
from services.runtime.advertising import advertised_address
from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import HubError, Unavailable
from services.runtime.ids import new_id
from services.runtime.logs import get_log
from services.runtime.metrics import MetricsEndpoint
from services.runtime.names import instance_id
from services.runtime.rate_limit import RateLimit
from services.runtime.release import release
from services.runtime.rpc import NO_ANSWER, RpcServer, error_reason, open_replicas_channel
from services.runtime.security import security_of
from services.runtime.tls_files import TlsFiles
from services.runtime.tracing import Tracing, configure_tracing

_log = get_log("enrolment")
_SESSIONS_SERVICE = "cloudhub.v1.EnrolmentService"
_WATCH_SECONDS = 5.0
_WARN_SECONDS = 86_400.0


class EnrolmentApp:
    """One process's worth of the service; made by `running_app`."""

    def __init__(self, settings: EnrolmentSettings, clock: Clock, tracing: Tracing) -> None:
        self.metrics = EnrolmentMetrics()
        self._settings = settings
        self._clock = clock
        self._security = security_of(settings, clock)
        self._authority = RenewedAuthority(settings.ca_certificate, settings.ca_private_key, clock)
        files = TlsFiles(settings.certificate, settings.private_key, settings.client_ca)
        self._context = RenewedContext(files, clock)
        self._rpc = RpcServer(
            settings.grpc_listen,
            [],
            self._security,
            probes=settings.health_listen,
            clock=clock,
            metrics=self.metrics.grpc,
            limits=settings.caller_limits,
        )
        self.metrics.grpc.watch(self._security)
        self.metrics.grpc.watch_expiry("server", lambda: self._context.not_after.timestamp())
        self.metrics.grpc.watch_expiry("ca", lambda: self._authority.present.not_after.timestamp())
        self._channel = open_replicas_channel(settings.sessions, _SESSIONS_SERVICE, self._security)
        self._stub = EnrolmentServiceStub(self._channel)
        name = instance_name(settings)
        process = pb.RenewPresenceRequest(
            instance_id=instance_id(name, new_id()), name=name, version=release()
        )
        self._presence = Presence(self._channel, process, settings.sessions_seconds)
        handler = Handler(self._authority, self._issue, clock, tracing, settings.certificate_seconds)
        self.listener = EnrolmentListener(
            settings.listen,
            self._context,
            handler.answer,
            RateLimit(settings.requests_per_second, settings.requests_burst),
            self.metrics,
            clock,
            most_connections=settings.connections_most,
            request_seconds=settings.request_seconds,
        )
        self._loops: list[asyncio.Task[None]] = []
        self._warned_at: dict[str, float] = {}

    @property
    def port(self) -> int:
        """The HTTPS port in use."""
        return self.listener.port

    @property
    def grpc_port(self) -> int:
        """The port of the gRPC server."""
        return self._rpc.port

    async def _issue(
        self, request: pb.IssueCertificateRequest, traceparent: str
    ) -> pb.IssueCertificateResponse:
        try:
            return await self._stub.IssueCertificate(
                request,
                timeout=self._settings.sessions_seconds,
                metadata=[("traceparent", traceparent)] if traceparent else None,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() in NO_ANSWER:
                raise Unavailable(
                    "SESSIONS_UNAVAILABLE", f"sessions does not answer: {error.details()}"
                ) from error
            raise HubError(error_reason(error), f"sessions refused: {error.details()}") from error

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Serves; the loops belong to `group`."""
        await self._rpc.start()
        self._presence.process.address = self._settings.advertise or advertised_address(self._rpc.address)
        loops = {
            "accept": self.listener.run(),
            "expiry": self._watch_expiry(),
            "health": self._keep_health(),
            "service certificates": self._security.run(),
            "presence": self._presence.run(),
            "CA": self._authority.run(),
            "server certificate": self._context.run(),
        }
        self._loops = [group.create_task(loop, name=name) for name, loop in loops.items()]
        _log.info("service.started", version=release(), port=self.port, grpc=self.grpc_port)

    async def stop(self) -> None:
        """Not serving, nothing accepted, requests cut (they are repeated), gRPC stopped."""
        self._rpc.drains()
        for task in self._loops:
            task.cancel()
        # A call that is under way would put it on record again.
        if self._loops:
            await asyncio.wait(self._loops)
        await self._presence.leave()
        await self.close()
        _log.info("service.stopped")

    async def close(self) -> None:
        """Frees what the app holds, started or not."""
        self.listener.close()
        await self._rpc.stop(min(1.0, self._settings.shutdown_seconds))
        await self._channel.close()

    async def _keep_health(self) -> None:
        """SERVING while sessions can be reached: nothing is granted without it."""
        while True:
            state = self._channel.get_state(try_to_connect=True)
            self._rpc.learned(ready=state is grpc.ChannelConnectivity.READY)
            await self._channel.wait_for_state_change(state)

    async def _watch_expiry(self) -> None:
        while True:
            self.look_at_expiry()
            await asyncio.sleep(_WATCH_SECONDS)

    def look_at_expiry(self) -> None:
        """Says near the end, in a line a day, that the CA or the server's certificate expires."""
        for name, not_after in (
            ("server", self._context.not_after),
            ("ca", self._authority.present.not_after),
        ):
            left = not_after.timestamp() - self._clock.wall_ms() / 1000
            now = self._clock.monotonic()
            if left > self._settings.warning_seconds:
                self._warned_at.pop(name, None)
            elif now - self._warned_at.get(name, -_WARN_SECONDS) >= _WARN_SECONDS:
                self._warned_at[name] = now
                _log.warning("certificate.expires", certificate=name, in_days=round(left / 86_400, 1))


@asynccontextmanager
async def running_app(
    settings: EnrolmentSettings, clock: Clock | None = None, tracing: Tracing | None = None
) -> AsyncIterator[EnrolmentApp]:
    """The service at work until the block is left. StartupError if it cannot start."""
    tracing = tracing or configure_tracing("enrolment", instance_name(settings))
    app = EnrolmentApp(settings, clock or SystemClock(), tracing)
    endpoint: MetricsEndpoint | None = None
    clean = False
    try:
        endpoint = await MetricsEndpoint.serving(
            settings.metrics_listen, app.metrics.registry, app.metrics.grpc.cut
        )
        async with asyncio.TaskGroup() as group:
            await app.start(group)
            yield app
            await app.stop()
            clean = True
    finally:
        if not clean:
            await app.close()
        if endpoint:
            await endpoint.close()
        await asyncio.to_thread(tracing.close)


def instance_name(settings: EnrolmentSettings) -> str:
    """The name of this process in its logs."""
    return settings.name or socket.gethostname()
