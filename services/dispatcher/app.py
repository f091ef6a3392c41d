"""The dispatcher process: the only place that reads settings and puts the parts together."""

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields

from prometheus_client import CollectorRegistry

from cloudhub.v1.dispatcher_pb2_grpc import (
    add_DispatcherAdminServicer_to_server,
    add_DispatcherServiceServicer_to_server,
)
from cloudhub.v1.link_pb2 import CLOSE_REASON_REVOKED, CLOSE_REASON_TRANSFERRED
from cloudhub.v1.link_pb2_grpc import add_LinkServiceServicer_to_server
from cloudhub.v1.peer_pb2_grpc import add_PeerServiceServicer_to_server
from cloudhub.v1.sessions_pb2 import DispatcherPeer, EndDirective
from services.dispatcher.admin import DispatcherAdmin
from services.dispatcher.anti_entropy import AntiEntropy
from services.dispatcher.connector_questions import ConnectorQuestions
from services.dispatcher.connector_room import RoomLimits
from services.dispatcher.delivery import Delivery
from services.dispatcher.housekeeping import SERVICES, Housekeeping
from services.dispatcher.keepalive import Keepalive
from services.dispatcher.lease import Lease
from services.dispatcher.link_servicer import EdgeLinks, LinkServicer
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_deletion import NodeDeletion
from services.dispatcher.openings import Openings
from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.schema import SCHEMA, uploads
from services.dispatcher.outbox.sql import SqlOutbox
from services.dispatcher.peers.directory import Peers
from services.dispatcher.peers.handover import Handover
from services.dispatcher.peers.inheritance import Inheritance
from services.dispatcher.peers.looks import Looks
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.servicer import PeerServicer
from services.dispatcher.peers.sweep import Sweep
from services.dispatcher.peers.to_owners import ToOwners
from services.dispatcher.policy import PolicySettings
from services.dispatcher.publication import PublishLimits
from services.dispatcher.publishing import Publishing
from services.dispatcher.retention import Retention
from services.dispatcher.servicer import DispatcherServicer
from services.dispatcher.session_ends import SessionEnds
from services.dispatcher.sessions_client import SESSIONS_SERVICE, SessionsClient
from services.dispatcher.settings import DispatcherSettings
from services.dispatcher.stranded import Stranded
from services.dispatcher.upstream.settings import UpstreamSettings
from services.dispatcher.upstream.subscriptions import UpstreamServicer
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.advertising import advertised_address
from services.runtime.clock import SystemClock
from services.runtime.errors import HubError, StartupError
from services.runtime.ids import new_id
from services.runtime.logs import configure_logs, get_log
from services.runtime.metrics import MetricsEndpoint
from services.runtime.names import instance_id
from services.runtime.release import release
from services.runtime.rpc import RpcServer, open_replicas_channel
from services.runtime.security import security_of
from services.runtime.store import open_store
from services.runtime.tracing import Tracing, configure_tracing

_log = get_log(__name__)

# In a stop: so long without a link that moved, and nobody seems to take the others.
HAND_OVER_QUIET_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class RunningApp:
    """What a running dispatcher shows to its process and to tests."""

    server: RpcServer
    delivery: Delivery
    upstream: Upstream
    peers: Peers
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
        max_cut_links=settings.max_cut_links,
        held_bytes=2 * settings.window_bytes,
    )


def _quotas(settings: DispatcherSettings) -> Quotas:
    return Quotas(
        node_objects=settings.max_node_objects,
        node_rows=settings.node_most_rows,
        node_bytes=settings.node_most_bytes,
        unknown_node_rows=settings.unknown_node_most_rows,
        unknown_node_bytes=settings.unknown_node_most_bytes,
        unknown_node_seconds=settings.unknown_node_seconds,
        unknown_rows=max(1, int(settings.total_most_rows * settings.max_unknown_share)),
        unknown_bytes=max(1, int(settings.total_most_bytes * settings.max_unknown_share)),
        unknown_nodes=settings.max_unknown_nodes,
        history_rows=settings.max_history_rows,
        total_rows=settings.total_most_rows,
        total_bytes=settings.total_most_bytes,
        refuse_unknown_nodes=settings.unknown_nodes == "refuse",
    )


def _upstream_settings(settings: DispatcherSettings) -> UpstreamSettings:
    own = {field.name for field in fields(UpstreamSettings)} & set(DispatcherSettings.model_fields)
    return UpstreamSettings(**{name: getattr(settings, name) for name in own})


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
    security = security_of(settings, clock)
    own_tracing = tracing is None
    tracing = tracing or configure_tracing("dispatcher", name)
    metrics = DispatcherMetrics(registry)
    store = await open_store(settings.database_source, SCHEMA)
    try:
        is_shared = store.is_shared
        outbox = SqlOutbox(store, _quotas(settings))
        await outbox.open()
        dispatcher_id = instance_id(name, new_id())
        channel = open_replicas_channel(settings.sessions, SESSIONS_SERVICE, security)
        sessions = SessionsClient(channel, dispatcher_id, settings.sessions_seconds)
        acknowledger = _EventAcknowledger(sessions)
        delivery = Delivery(outbox, _policy_settings(settings), clock, metrics, tracing)
        edge_links = EdgeLinks(delivery)
        upstream = Upstream(
            edge=edge_links,
            store=store,
            uploads=uploads,
            holder=dispatcher_id,
            is_shared=is_shared,
            clock=clock,
            tracing=tracing,
            registry=registry,
            settings=_upstream_settings(settings),
            events_done=acknowledger.done,
            cluster_ca=cluster_ca,
        )
        ends = SessionEnds(delivery, sessions, upstream, clock, metrics, tracing)
        edge_links.ends = ends
        keepalive = Keepalive(settings.keepalive_seconds, clock, ends)
        stranded = Stranded(settings.lease_seconds, clock, ends)
        lease = Lease(clock)
        openings = Openings(delivery, sessions, upstream, ends, keepalive, stranded, clock, metrics)
        links = LinkServicer(
            dispatcher_id,
            name,
            settings.lease_seconds,
            delivery,
            openings,
            ends,
            keepalive,
            stranded,
            lease,
            upstream,
            clock,
            metrics,
            RoomLimits(max_unwritten_bytes=settings.max_connector_bytes),
        )
        peer_metrics = PeerMetrics(registry)
        own = DispatcherPeer(dispatcher_id=dispatcher_id, name=name)
        peers = Peers(own, upstream.relays, peer_metrics, clock, upstream.all_arrived, security)
        handover = Handover(peers, sessions, clock, peer_metrics)
        delivery.elsewhere = handover.changed
        to_owners = ToOwners(delivery.sessions, delivery.writer, peers, clock, peer_metrics)
        peers.publishes = to_owners
        limits = PublishLimits(
            settings.content_most_bytes,
            settings.answer_seconds,
            takes_unacknowledged=settings.edge_acknowledgements == "all",
        )
        publishing = Publishing(
            delivery,
            sessions,
            limits,
            clock,
            metrics,
            tracing,
            dispatcher_id,
            peers,
            NodeDeletion(outbox, sessions),
            to_owners.submit,
        )
        anti_entropy = AntiEntropy(
            delivery, sessions, ends, stranded, openings, clock, metrics, settings.lease_seconds
        )

        server = RpcServer(
            settings.listen,
            list(SERVICES),
            security,
            probes=settings.health_listen,
            metrics=metrics.grpc,
            limits=settings.caller_limits,
            needs=SERVICES,
        )
        metrics.grpc.watch(security)
        holders = (delivery, ends, openings, keepalive, stranded, links, upstream, peers, handover, to_owners)
        looks = Looks(peers, peer_metrics, lambda: peers.refused)
        asked = ConnectorQuestions(links.streams, metrics)
        admin = DispatcherAdmin(outbox, delivery, clock, holders, looks, asked)
        subscriptions = UpstreamServicer(upstream, server.caller_of)
        add_DispatcherServiceServicer_to_server(
            DispatcherServicer(publishing, subscriptions, outbox, admin.explain_message), server.grpc_server
        )
        add_DispatcherAdminServicer_to_server(admin, server.grpc_server)
        add_LinkServiceServicer_to_server(links, server.grpc_server)
        add_PeerServiceServicer_to_server(
            PeerServicer(delivery, upstream, peers, peer_metrics, tracing), server.grpc_server
        )
        endpoint = await MetricsEndpoint.serving(settings.metrics_listen, registry, metrics.grpc.cut)
        try:
            await server.start()
            peers.own.address = settings.advertise or advertised_address(server.address)
            housekeeping = Housekeeping(
                name,
                server,
                lease,
                sessions,
                delivery,
                store,
                outbox,
                upstream,
                peers,
                links.loads,
                clock,
                metrics,
                tracing,
                settings.lease_seconds,
                Retention(outbox, clock, metrics, settings.event_seconds, settings.tombstone_seconds),
            )
            links.on_drained_connector = housekeeping.renew_soon
            async with asyncio.TaskGroup() as group:
                background = [
                    group.create_task(part.run(), name=type(part).__name__)
                    for part in (
                        delivery,
                        ends,
                        openings,
                        keepalive,
                        stranded,
                        links,
                        publishing,
                        upstream,
                        acknowledger,
                        peers,
                        handover,
                    )
                ]
                background.append(group.create_task(housekeeping.run(), name="Housekeeping"))
                background.append(group.create_task(security.run(), name="certificates"))
                if is_shared:
                    inheritance = Inheritance(upstream.uploads, peers, clock, settings.lease_seconds)
                    background.append(group.create_task(inheritance.run(), name="Inheritance"))
                    sweep = Sweep(delivery, outbox, peer_metrics)
                    background.append(group.create_task(sweep.run(), name="Sweep"))
                background.append(group.create_task(anti_entropy.run(), name="AntiEntropy"))
                background.append(
                    group.create_task(
                        sessions.watch(lambda directive: _obey(delivery, ends, stranded, directive)),
                        name="directives",
                    )
                )
                _log.info(
                    "dispatcher.serving",
                    version=release(),
                    listen=server.address,
                    dispatcher_id=dispatcher_id,
                )
                try:
                    yield RunningApp(server, delivery, upstream, peers, registry, group)
                finally:
                    # Order: no new links or calls; the links move to other dispatchers; those that nobody
                    # takes stay up without one, and their sessions are orphans once the lease is released;
                    # the outbox is flushed; the streams end.
                    server.drains()
                    housekeeping.drains()
                    links.drain()
                    await _handed_over(delivery, settings.shutdown_seconds / 3)
                    for session in list(delivery.sessions.values()):
                        ends.let_go(session)
                    await _within(settings.shutdown_seconds / 3, ends.flush(), delivery.writer.flush())
                    await _within(min(1.0, settings.shutdown_seconds / 8), links.finish())
                    await server.stop(min(2.0, settings.shutdown_seconds / 8))
                    await _within(2.0, upstream.uploads.flush())
                    for task in background:
                        task.cancel()
                    await asyncio.wait(background)
                    # Now nobody here stores or hands on any more.
                    await _within(2.0, upstream.uploads.release(), sessions.release())
                    _log.info("dispatcher.stopped")
        finally:
            await endpoint.close()
            await channel.close()
    finally:
        await store.close()
        if own_tracing:
            await asyncio.to_thread(tracing.close)


async def _within(seconds: float, *work: Awaitable[None]) -> None:
    """Best effort within a time: what a stop cannot finish is repaired by restarts and leases."""
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*work)
    except (TimeoutError, HubError) as error:
        _log.warning("dispatcher.stop_incomplete", error=repr(error))


async def _handed_over(delivery: Delivery, most_seconds: float) -> None:
    """Returns when no session is left here, or none has left for so long that nobody seems to take them."""
    loop = asyncio.get_running_loop()
    began = last_left_at = loop.time()
    count = len(delivery.sessions)
    while delivery.sessions:
        now = loop.time()
        if len(delivery.sessions) < count:
            count, last_left_at = len(delivery.sessions), now
        if now - last_left_at > HAND_OVER_QUIET_SECONDS or now - began > most_seconds:
            _log.info("dispatcher.links_left", sessions=len(delivery.sessions))
            return
        await asyncio.sleep(0.02)


def _obey(delivery: Delivery, ends: SessionEnds, stranded: Stranded, directive: EndDirective) -> None:
    """Ends a session as sessions asks, or lets it go; the registry hears of it either way."""
    node_id, epoch = directive.node_id, directive.epoch
    reason = CLOSE_REASON_REVOKED if directive.revoked else directive.reason
    session = delivery.sessions.get(node_id)
    here = session is not None and session.epoch == epoch
    if directive.reason == CLOSE_REASON_TRANSFERRED:
        if session is not None and here:
            ends.taken_away(session)
        elif stranded.holds(node_id, epoch):
            stranded.taken_away(node_id)
        ends.close(node_id, epoch, directive.reason)
    elif session is not None and here:
        ends.end(session, reason, "sessions asked for it", close_link=True)
    elif stranded.holds(node_id, epoch):
        stranded.end(node_id, reason, "sessions asked for it")
    else:
        ends.close(node_id, epoch, directive.reason)


async def serve(settings: DispatcherSettings, stop: asyncio.Event) -> None:
    """Runs the dispatcher until `stop` is set."""
    configure_logs(
        "dispatcher", settings.name or socket.gethostname(), settings.log_level, settings.log_format
    )
    async with running_app(settings):
        await stop.wait()
