"""Looks at the hub all the time, as its operators could: sessions, links, what is pending."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from chaos.clock import RunClock
from chaos.history import LinkSeen, LinksSample, RegistrySample, SessionSeen
from cloudhub.v1 import dispatcher_pb2, sessions_pb2
from cloudhub.v1.connector_pb2 import ListLinksRequest
from cloudhub.v1.connector_pb2_grpc import ConnectorAdminStub
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from demo.hub import Hub, Instance
from demo.pages import pages

EVERY_SECONDS = 0.3
ANSWER_SECONDS = 1.0
FRESH_SECONDS = 1.0


class Observer:
    """`run` must be awaited by the owner. What does not answer is asked again soon."""

    def __init__(
        self, hub: Hub, clock: RunClock, every_seconds: float = EVERY_SECONDS, node_id_prefix: str = ""
    ) -> None:
        self._hub = hub
        # Hostile programs put thousands of nodes on record: to look at all of them again and again is a load
        # of its own, and what waits for them never falls.
        self._node_id_prefix = node_id_prefix
        self._every_seconds = every_seconds
        self._clock = clock
        self.registry: list[RegistrySample] = []
        self.changes: list[SessionSeen] = []
        self.links: list[LinksSample] = []
        self._active = (-1, 0.0)
        self._pending = (-1, 0.0)

    @property
    def active_sessions(self) -> int:
        """As one of the replicas said just now; -1: none did."""
        return self._fresh(self._active)

    @property
    def pending(self) -> int:
        """What the hub waits for of its nodes, parked messages aside; -1: no dispatcher said so just now."""
        return self._fresh(self._pending)

    def _fresh(self, figure: tuple[int, float]) -> int:
        value, at = figure
        return value if self._clock.now() - at < FRESH_SECONDS + self._every_seconds else -1

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for instances, look in (
                (self._hub.sessions, self._look_at_registry),
                (self._hub.sessions, self._watch_registry),
                (self._hub.connectors, self._look_at_links),
                (self._hub.dispatchers, self._look_at_outbox),
            ):
                for instance in instances:
                    group.create_task(self._follow(instance, look), name=f"look at {instance.name}")

    async def _follow(self, instance: Instance, look: Callable[[Instance, Any], Any]) -> None:
        async with instance.open_channel() as channel:
            while True:
                try:
                    await look(instance, channel)
                except grpc.aio.AioRpcError:
                    pass  # it is down, paused, or without its database: that is what is tried here
                await asyncio.sleep(self._every_seconds)

    async def _look_at_registry(self, instance: Instance, channel: grpc.aio.Channel) -> None:
        answer = await live_sessions(channel)
        now = self._clock.now()
        active = sum(one.state == sessions_pb2.SESSION_STATE_ACTIVE for one in answer)
        self._active = (active, now)
        self.registry.append(RegistrySample(instance.name, now, [seen(one) for one in answer]))

    async def _watch_registry(self, _: Instance, channel: grpc.aio.Channel) -> None:
        stub: Any = SessionsAdminStub(channel)
        request = sessions_pb2.WatchSessionsRequest(include_present=True)
        async for answer in stub.WatchSessions(request):
            if answer.session.state != sessions_pb2.SESSION_STATE_CLOSED:
                self.changes.append(seen(answer.session))

    async def _look_at_links(self, instance: Instance, channel: grpc.aio.Channel) -> None:
        process = f"{instance.name} (process {instance.child.pid})"
        links = await admitted_links(channel)
        self.links.append(LinksSample(process, self._clock.now(), links))

    async def _look_at_outbox(self, _: Instance, channel: grpc.aio.Channel) -> None:
        nodes = await outbox_nodes(channel, self._node_id_prefix)
        self._pending = (sum(node.pending - node.parked for node in nodes), self._clock.now())


def seen(session: sessions_pb2.Session) -> SessionSeen:
    """A session as it is taken down."""
    return SessionSeen(
        session.node_id, session.epoch, session.connector_id, session.link, session.dispatcher_id
    )


async def live_sessions(channel: grpc.aio.Channel) -> list[sessions_pb2.Session]:
    """All live sessions that a replica of sessions knows."""
    stub: Any = SessionsAdminStub(channel)
    listed = pages(stub.ListSessions, sessions_pb2.ListSessionsRequest(), ANSWER_SECONDS)
    return [one async for answer in listed for one in answer.sessions]


async def admitted_links(channel: grpc.aio.Channel) -> list[LinkSeen]:
    """The links of a connector that have a session."""
    stub: Any = ConnectorAdminStub(channel)
    listed = pages(stub.ListLinks, ListLinksRequest(), ANSWER_SECONDS)
    return [
        LinkSeen(one.node_id, one.epoch, one.link)
        async for answer in listed
        for one in answer.links
        if one.epoch
    ]


async def outbox_nodes(
    channel: grpc.aio.Channel, node_id_prefix: str = ""
) -> list[dispatcher_pb2.NodeDelivery]:
    """Every node that the outbox knows and whose id begins so, with what it waits for."""
    stub: Any = DispatcherAdminStub(channel)
    request = dispatcher_pb2.ListNodesRequest(node_id_prefix=node_id_prefix)
    listed = pages(stub.ListNodes, request, ANSWER_SECONDS)
    return [one async for answer in listed for one in answer.nodes]
