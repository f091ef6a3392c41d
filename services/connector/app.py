"""The connector put together: the only place that reads its settings and starts its loops."""

import asyncio
import socket
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aioquic.quic.configuration import QuicConfiguration

from cloudhub.v1 import connector_pb2_grpc, link_pb2
from services.connector.descriptors import Shares, divide, shortage
from services.connector.discovery import dial_address
from services.connector.dispatchers import Dispatchers
from services.connector.drain import drain_links
from services.connector.edge_link import LinkStream, LinkTools
from services.connector.incoming import IncomingBatches
from services.connector.links import Links
from services.connector.listener import EdgeListener
from services.connector.metrics import ConnectorMetrics
from services.connector.questions import Questions
from services.connector.queued_total import QueuedTotal
from services.connector.quic.listener import QuicListener
from services.connector.quic.peer_certificate import trusted_authorities
from services.connector.quic.setup import reset_tokens, server_configuration
from services.connector.resources import ConnectorHoldings
from services.connector.servicer import ConnectorAdminServicer
from services.connector.settings import QUIC_OFF, ConnectorSettings
from services.connector.tls import EdgeTls
from services.connector.transfers import Transfers
from services.runtime.advertising import advertised_address
from services.runtime.clock import Clock, SystemClock
from services.runtime.lifecycle import descriptor_limit
from services.runtime.logs import get_log
from services.runtime.metrics import MetricsEndpoint
from services.runtime.release import release
from services.runtime.rpc import RpcServer
from services.runtime.security import security_of
from services.runtime.tls_files import TlsFiles
from services.runtime.tracing import Tracing, configure_tracing

_log = get_log("connector")
_SERVICE = "cloudhub.v1.ConnectorAdmin"
# Of the time for a clean stop, what is kept for ending streams and telemetry after the links.
_AFTER_DRAIN_SECONDS = 3.0


def _descriptor_shares(settings: ConnectorSettings) -> Shares:
    """What the listener for WebSocket may have; a line of the log if that is less than was asked for."""
    wanted = Shares(settings.links_most, settings.openings_most, settings.max_waiting_connections)
    limit = descriptor_limit()
    granted = divide(limit, wanted)
    text = shortage(limit, wanted, granted)
    if text:
        _log.warning("descriptors.short", limit=limit, links=granted.links, detail=text)
    return granted


class ConnectorApp:
    """One connector; made by `running_app`."""

    def __init__(self, settings: ConnectorSettings, clock: Clock, tracing: Tracing) -> None:
        loop = asyncio.get_running_loop()
        self._settings = settings
        self.metrics = ConnectorMetrics()
        self.tracing = tracing
        self._draining = False
        self._security = security_of(settings, clock)
        for entry in settings.dispatcher_entries():
            self._security.check_address("the dispatcher's address", dial_address(entry.host, entry.port))
        edge_tls = EdgeTls(TlsFiles(settings.certificate, settings.private_key, settings.client_ca), clock)
        self._hello = link_pb2.ConnectorHello(
            connector_id=uuid.uuid4().hex, name=settings.name or socket.gethostname(), version=release()
        )
        self.dispatchers = Dispatchers(
            settings.dispatcher_entries(), self._hello, self, self.metrics, security=self._security
        )
        queued = QueuedTotal(settings.max_queued_bytes)
        self.metrics.queued_bytes.set_function(lambda: queued.bytes)
        incoming = QueuedTotal(settings.max_incoming_bytes)
        self.metrics.incoming_bytes.set_function(lambda: incoming.bytes)
        tools = LinkTools(loop, settings.link_limits(), self.metrics, tracing, queued, incoming)
        self.links = Links(
            self.dispatchers,
            tools,
            clock,
            most_links=settings.links_most,
            verdict_timeout=settings.verdict_seconds,
            retry_after=settings.retry_after_seconds,
        )
        self._transfers = Transfers(self.links, self.dispatchers, tools, settings.verdict_seconds)
        self.links.on_over = self._transfers.link_over
        self._incoming = IncomingBatches(self.links, self._transfers, self.metrics)
        shares = _descriptor_shares(settings)
        self.listener = EdgeListener(
            settings.listen,
            edge_tls,
            settings.connection_limits(),
            shares.openings,
            shares.waiting,
            self.links,
            self.metrics,
            max_links=shares.links,
            retry_after=settings.retry_after_seconds,
            proxies=settings.proxies(),
        )
        self.quic = self._quic_listener(settings)
        self._edge_tls = edge_tls
        self._edge_tls.on_load = self._renew_quic
        self._rpc = RpcServer(
            settings.grpc_listen,
            [_SERVICE],
            self._security,
            probes=settings.health_listen,
            clock=clock,
            metrics=self.metrics.grpc,
            limits=settings.caller_limits,
        )
        self.metrics.grpc.watch(self._security)
        self.metrics.grpc.watch_expiry("edges", edge_tls.expires_at)
        self._listeners = [self.listener, *([self.quic] if self.quic else ())]
        holdings = ConnectorHoldings(self._listeners, self.links, self._transfers, self.dispatchers)
        admin = ConnectorAdminServicer(self.links, loop.time, self.drain, holdings)
        connector_pb2_grpc.add_ConnectorAdminServicer_to_server(admin, self._rpc.grpc_server)
        self._questions = Questions(admin)
        self._accepting: asyncio.Task[None] | None = None
        self._loops: tuple[asyncio.Task[None], ...] = ()

    @property
    def edge_port(self) -> int:
        """The port of WebSocket links."""
        return self.listener.port

    @property
    def quic_port(self) -> int:
        """The UDP port of QUIC links; 0 if there are none."""
        return self.quic.port if self.quic else 0

    @property
    def grpc_port(self) -> int:
        """The port of the gRPC server."""
        return self._rpc.port

    def _quic_listener(self, settings: ConnectorSettings) -> QuicListener | None:
        if settings.quic_listen == QUIC_OFF:
            return None
        return QuicListener(
            settings.quic_listen,
            self._quic_configuration(),
            trusted_authorities(settings.client_ca),
            reset_tokens(settings.private_key),
            settings.connection_limits(),
            settings.openings_most,
            (settings.frames_per_second, settings.frames_burst),
            self.links,
            self.metrics,
        )

    def _quic_configuration(self) -> QuicConfiguration:
        settings = self._settings
        return server_configuration(
            settings.certificate,
            settings.private_key,
            idle_timeout=settings.quic_idle_seconds,
            window_bytes=settings.quic_window_bytes,
        )

    def _renew_quic(self) -> None:
        """New QUIC connections take the files as they are now. Raises StartupError, then nothing changes."""
        if self.quic:
            configuration = self._quic_configuration()
            self.quic.authorities = trusted_authorities(self._settings.client_ca)
            self.quic.configuration = configuration

    # dispatcher_stream.StreamUser.

    def received(self, stream: LinkStream, batch: link_pb2.DispatcherBatch) -> None:
        self._incoming.handle(stream, batch)
        if batch.questions:
            self._questions.asked(stream.outgoing, batch.questions)

    def attachment_changed(self, stream: LinkStream, attached: bool) -> None:
        self.metrics.dispatchers.set(self.dispatchers.attached)
        self._rpc.learned(ready=self.dispatchers.attached > 0)
        if not attached:
            self.links.dispatcher_lost(stream)
            self._transfers.stream_lost(stream)
        self._transfers.dispatchers_changed()

    def fitness_changed(self, stream: LinkStream) -> None:
        self._transfers.dispatchers_changed()

    async def drain(self, links_per_second: float = 0.0, deadline_seconds: float = 0.0) -> int:
        """Stops accepting and closes the links at a rate; 0 means as configured."""
        settings = self._settings
        if not self._draining:
            self._draining = True
            self.links.accepting = False
            self._rpc.drains()
            self.dispatchers.tell_draining()
            if self._accepting:
                self._accepting.cancel()
            _log.info("drain.started", links=len(self.links))
        closed = await drain_links(
            self.links,
            links_per_second or settings.drain_links_per_second,
            deadline_seconds or settings.drain_seconds,
        )
        _log.info("drain.ended", closed=closed)
        return closed

    async def start(self, group: asyncio.TaskGroup) -> None:
        """Serves; the loops belong to `group`."""
        await self._rpc.start()
        self._hello.address = self._settings.advertise or advertised_address(self._rpc.address)
        if self.quic:
            await self.quic.start()
        self._accepting = group.create_task(self.listener.run(), name="accept")
        self._loops = (
            group.create_task(self.dispatchers.run(), name="dispatchers"),
            group.create_task(self._transfers.run(), name="transfers"),
            group.create_task(self._security.run(), name="service certificates"),
            group.create_task(self._edge_tls.run(), name="edge certificates"),
            self._accepting,
        )
        _log.info(
            "started", version=release(), edges=self.edge_port, quic=self.quic_port, grpc=self.grpc_port
        )

    async def stop(self) -> None:
        """Not serving, nothing accepted, links drained, streams ended, connections closed, gRPC stopped."""
        left = max(0.1, self._settings.shutdown_seconds - _AFTER_DRAIN_SECONDS)
        drain_seconds = min(left, self._settings.drain_seconds)
        await self.drain(deadline_seconds=drain_seconds)
        self._questions.close()
        await self.dispatchers.finish(_AFTER_DRAIN_SECONDS / 3)
        await self.close_connections(_AFTER_DRAIN_SECONDS / 3)
        await self._rpc.stop(_AFTER_DRAIN_SECONDS / 3)
        for task in self._loops:
            task.cancel()

    async def close_connections(self, seconds: float) -> None:
        """Gives edges `seconds` for their part of the close, then cuts what is left."""
        try:
            async with asyncio.timeout(seconds):
                for listener in self._listeners:
                    await listener.wait_closed()
        except TimeoutError:
            pass
        for listener in self._listeners:
            await listener.close()

    async def abandon(self) -> None:
        """After a fault: nothing stays open, nobody is waited for."""
        self._questions.close()
        for listener in self._listeners:
            await listener.close()
        await self._rpc.stop(0)


@asynccontextmanager
async def running_app(
    settings: ConnectorSettings, clock: Clock | None = None, tracing: Tracing | None = None
) -> AsyncIterator[ConnectorApp]:
    """A connector that serves until the block is left; then it drains. StartupError if it cannot start."""
    name = settings.name or socket.gethostname()
    tracing = tracing or configure_tracing("connector", name)
    app = ConnectorApp(settings, clock or SystemClock(), tracing)
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
            await app.abandon()
        if endpoint:
            await endpoint.close()
        tracing.close()
