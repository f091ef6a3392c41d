"""The dispatcher process: the only place that reads settings and puts the parts together."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry

from cloudhub.v1.dispatcher_pb2_grpc import (
    add_DispatcherAdminServicer_to_server,
    add_DispatcherServiceServicer_to_server,
)
from cloudhub.v1.link_pb2 import CLOSE_REASON_SHUTDOWN
from cloudhub.v1.link_pb2_grpc import add_LinkServiceServicer_to_server
from cloudhub.v1.sessions_pb2 import EndDirective
from services.dispatcher.admin import DispatcherAdmin
from services.dispatcher.delivery import Delivery
from services.dispatcher.housekeeping import ADMIN_SERVICE, DISPATCHER_SERVICE, LINK_SERVICE, Housekeeping
from services.dispatcher.keepalive import Keepalive
from services.dispatcher.link_servicer import EdgeLinks, LinkServicer
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.openings import Openings
from services.dispatcher.outbox.ledger import Quotas
from services.dispatcher.outbox.schema import SCHEMA, uploads
from services.dispatcher.outbox.sql import SqlOutbox
from services.dispatcher.policy import PolicySettings
from services.dispatcher.publication import PublishLimits
from services.dispatcher.publishing import Publishing
from services.dispatcher.servicer import DispatcherServicer
from services.dispatcher.session_ends import SessionEnds
from services.dispatcher.sessions_client import SESSIONS_SERVICE, SessionsClient
from services.dispatcher.settings import DispatcherSettings
from services.dispatcher.upstream.settings import UpstreamSettings
from services.dispatcher.upstream.subscriptions import UpstreamServicer
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.clock import SystemClock
from services.runtime.errors import HubError, StartupError
from services.runtime.ids import new_id
from services.runtime.logs import configure_logs, get_log
from services.runtime.metrics import MetricsEndpoint
from services.runtime.rpc import RpcServer, open_replicas_channel
from services.runtime.store import open_store
from services.runtime.tracing import Tracing, configure_tracing

_log = get_log(__name__)


@dataclass(frozen=True, slots=True)
class RunningApp:
    """What a running dispatcher shows to its process and to tests."""

    server: RpcServer
    delivery: Delivery
    upstream: Upstream
    registry: CollectorRegistry
    tasks: asyncio.TaskGroup

    @property
    def port(self) -> int:
        """The gRPC port in use."""
        return self.server.port


def _policy_settings(settings: DispatcherSettings) -> PolicySettings:
    return PolicySettings(
        window_messages=settings.window_messages,
        window_bytes=settings.window_bytes,
        ack_seconds=settings.ack_seconds,
        ack_most_seconds=max(settings.ack_seconds, settings.ack_most_seconds),
        most_attempts=settings.most_attempts,
        held_bytes=2 * settings.window_bytes,
    )


def _quotas(settings: DispatcherSettings) -> Quotas:
    return Quotas(
        node_rows=settings.node_most_rows,
        node_bytes=settings.node_most_bytes,
        unknown_node_rows=settings.unknown_node_most_rows,
        unknown_node_bytes=settings.unknown_node_most_bytes,
        unknown_node_seconds=settings.unknown_node_seconds,
        total_rows=settings.total_most_rows,
        total_bytes=settings.total_most_bytes,
        refuse_unknown_nodes=settings.unknown_nodes == "refuse",
    )


def _cluster_ca(settings: DispatcherSettings) -> bytes | None:
    if settings.cluster_ca is None:
        return None
    try:
        pem = settings.cluster_ca.read_bytes()
    except OSError as error:
        raise StartupError(f"cannot read the cluster CA {settings.cluster_ca}: {error.strerror}") from error
    if b"-----BEGIN CERTIFICATE-----" not in pem:
        raise StartupError(f"the cluster CA {settings.cluster_ca} holds no PEM certificate")
    return pem


class _EventAcknowledger:
    """Tells sessions which lifecycle events are done, batched, until it is heard."""

    def __init__(self, sessions: SessionsClient) -> None:
        self._sessions = sessions
        self._done: list[str] = []
        self._wake = asyncio.Event()

    def done(self, event_ids: Sequence[str]) -> None:
        self._done.extend(event_ids)
        self._wake.set()

    async def run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._done:
                batch = self._done[:1000]
                try:
                    await self._sessions.acknowledge_events(batch)
                except HubError:
                    await asyncio.sleep(1.0 + random.random())
                    continue
                del self._done[: len(batch)]


@asynccontextmanager
async def running_app(
    settings: DispatcherSettings, tracing: Tracing | None = None
) -> AsyncIterator[RunningApp]:
    """A dispatcher that serves while the context is open, and stops cleanly after.

    Raises StartupError with one sentence for everything that keeps it from starting.
    """
    name = settings.name or socket.gethostname()
    cluster_ca = _cluster_ca(settings)
    clock, registry = SystemClock(), CollectorRegistry()
    own_tracing = tracing is None
    tracing = tracing or configure_tracing("dispatcher", name)
    metrics = DispatcherMetrics(registry)
    store = await open_store(settings.database, SCHEMA)
    try:
        outbox = SqlOutbox(store, _quotas(settings))
        await outbox.open()
        dispatcher_id = f"{name}-{new_id()}"
        channel = open_replicas_channel(settings.sessions, SESSIONS_SERVICE)
        sessions = SessionsClient(channel, dispatcher_id, settings.sessions_seconds)
        acknowledger = _EventAcknowledger(sessions)
        delivery = Delivery(outbox, _policy_settings(settings), clock, metrics, tracing)
        edge_links = EdgeLinks(delivery)
        upstream = Upstream(
            edge=edge_links,
            store=store,
            uploads=uploads,
            clock=clock,
            tracing=tracing,
            registry=registry,
            settings=UpstreamSettings(),
            events_done=acknowledger.done,
            cluster_ca=cluster_ca,
        )
        ends = SessionEnds(delivery, sessions, upstream, clock, metrics, tracing)
        edge_links.ends = ends
        keepalive = Keepalive(settings.keepalive_seconds, clock, ends)
        openings = Openings(delivery, sessions, upstream, ends, keepalive, clock, metrics)
        links = LinkServicer(
            dispatcher_id,
            name,
            settings.lease_seconds,
            delivery,
            openings,
            ends,
            keepalive,
            upstream,
            clock,
            metrics,
        )
        limits = PublishLimits(settings.content_most_bytes, settings.answer_seconds)
        publishing = Publishing(delivery, sessions, limits, clock, metrics, tracing)

        server = RpcServer(settings.listen, [DISPATCHER_SERVICE, ADMIN_SERVICE, LINK_SERVICE])
        add_DispatcherServiceServicer_to_server(
            DispatcherServicer(publishing, UpstreamServicer(upstream)), server.grpc_server
        )
        add_DispatcherAdminServicer_to_server(DispatcherAdmin(outbox, delivery, clock), server.grpc_server)
        add_LinkServiceServicer_to_server(links, server.grpc_server)
        endpoint = MetricsEndpoint(settings.metrics_listen, registry)
        try:
            await server.start()
            housekeeping = Housekeeping(
                name,
                server,
                sessions,
                delivery,
                outbox,
                upstream,
                clock,
                metrics,
                tracing,
                settings.lease_seconds,
                settings.event_seconds,
                settings.tombstone_seconds,
            )
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(part.run(), name=type(part).__name__)
                    for part in (
                        delivery,
                        ends,
                        openings,
                        keepalive,
                        links,
                        publishing,
                        upstream,
                        acknowledger,
                    )
                ]
                background.append(group.create_task(housekeeping.run(), name="Housekeeping"))
                background.append(
                    group.create_task(
                        sessions.watch(lambda directive: _end_by_directive(delivery, ends, directive)),
                        name="directives",
                    )
                )
                _log.info("dispatcher.serving", listen=server.address, dispatcher_id=dispatcher_id)
                try:
                    yield RunningApp(server, delivery, upstream, registry, group)
                finally:
                    # Order: no new links or calls, sessions end and say so, the outbox is flushed.
                    openings.draining = True
                    await server.set_serving(False)
                    for session in list(delivery.sessions.values()):
                        ends.end(session, CLOSE_REASON_SHUTDOWN, "the dispatcher stops", close_link=True)
                    await _within(settings.shutdown_seconds / 2, ends.flush(), delivery.writer.flush())
                    await server.stop(min(2.0, settings.shutdown_seconds / 4))
                    await _within(2.0, sessions.release())
                    for task in background:
                        task.cancel()
        finally:
            endpoint.close()
            await channel.close()
    finally:
        await store.close()
        if own_tracing:
            await asyncio.to_thread(tracing.close)
        _log.info("dispatcher.stopped")


async def _within(seconds: float, *work: Awaitable[None]) -> None:
    """Best effort within a time: what a stop cannot finish is repaired by restarts and leases."""
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*work)
    except (TimeoutError, HubError) as error:
        _log.warning("dispatcher.stop_incomplete", error=repr(error))


def _end_by_directive(delivery: Delivery, ends: SessionEnds, directive: EndDirective) -> None:
    session = delivery.sessions.get(directive.node_id)
    if session is not None and session.epoch == directive.epoch:
        ends.end(session, directive.reason, "sessions asked for it", close_link=True)
    else:
        ends.close(directive.node_id, directive.epoch, directive.reason)


async def serve(settings: DispatcherSettings, stop: asyncio.Event) -> None:
    """Runs the dispatcher until `stop` is set."""
    configure_logs(
        "dispatcher", settings.name or socket.gethostname(), settings.log_level, settings.log_format
    )
    async with running_app(settings):
        await stop.wait()
