"""What the hub says of itself when all is quiet."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
import psutil

from chaos.fleets import FleetProcess, held_by, steps_of, uploads_confirmed_to
from chaos.history import Count, History, LinkSeen, SessionSeen, Waiting
from chaos.hostile.programs import NOBODY
from chaos.messages import uploads_lost
from chaos.observer import admitted_links, live_sessions, outbox_nodes, seen
from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2 import NodeDelivery
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub
from cloudhub.v1.sessions_pb2 import GetLimitsRequest
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from demo.hub import Hub, Instance

LOOK_SECONDS = 0.3
ANSWER_SECONDS = 5.0
MOST_QUESTIONS = 10
HAND_ON_SECONDS = 30.0
SPARE_DESCRIPTORS = 100
"""Of a service beside its links: databases, streams, logs."""
MOST_TIMES_RESIDENT = 1.5
SPARE_MIB = 64
"""What caches that have a bound fill themselves with: pages of a database, floors, known rows."""
T = TypeVar("T")


class Ending:
    """Asks the hub at the end of a run, when all of its processes live."""

    def __init__(self, hub: Hub, misbehaving: Collection[str] = ()) -> None:
        self._hub = hub
        self._misbehaving = misbehaving
        """Nodes that keep messages waiting or have them parked, and are meant to."""

    async def settled(self, fleets: Sequence[FleetProcess], seconds: float) -> bool:
        """Whether within so long every node had its one session and link, and nothing was pending."""
        nodes = sum(len(fleet.node_ids) for fleet in fleets)
        try:
            async with asyncio.timeout(seconds):
                while not await self._is_settled(nodes):  # noqa: ASYNC110 - it is not ours to signal
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            return False
        return True

    async def _is_settled(self, nodes: int) -> bool:
        try:
            sessions, links = await self.sessions(), await self.links()
            pending = sum(node.pending for node in await self._outbox())
        except grpc.aio.AioRpcError:
            return False  # a process that was started again is not up yet
        epochs = {(one.node_id, one.epoch) for one in sessions}
        return (
            len(sessions) == len(links) == nodes
            and epochs == {(one.node_id, one.epoch) for one in links}
            and not pending
        )

    async def sessions(self) -> list[SessionSeen]:
        """The live sessions."""
        return [seen(one) for one in await asked(self._hub.sessions[0], live_sessions)]

    async def links(self) -> list[LinkSeen]:
        """The admitted links of all connectors."""
        return [link for one in self._hub.connectors for link in await asked(one, admitted_links)]

    async def counts(self, nodes: int, guests: int) -> list[Count]:
        """What there is for one session per node, beside what there should be (invariant 6)."""
        outbox = await self._outbox()
        counts = [
            Count("live sessions", len(await self.sessions()), nodes),
            Count("slots taken", await asked(self._hub.sessions[0], _slots), nodes),
            Count("links", len(await self.links()), nodes),
            Count("nodes in the outbox", len(outbox), nodes + guests),
            Count("parked messages", sum(node.parked for node in outbox), 0),
        ]
        counts += [
            Count(
                f"descriptors of {instance.name}",
                psutil.Process(instance.child.pid).num_fds(),
                nodes + SPARE_DESCRIPTORS,
            )
            for instance in self._hub.instances
        ]
        return counts

    async def take_down(self, history: History, fleets: Sequence[FleetProcess], guests: int) -> None:
        """Enters what there is, now that all is quiet; ends with the fleets stopped. `guests` are nodes that
        had messages or sessions before and have none now."""
        history.waiting = await self.waiting()
        history.final_sessions = await self.sessions()
        history.final_links = await self.links()
        history.counts = await self.counts(sum(len(fleet.node_ids) for fleet in fleets), guests)
        for fleet in fleets:
            await fleet.stop()
            history.steps += await asyncio.to_thread(steps_of, fleet)
            history.held |= await asyncio.to_thread(held_by, fleet)
            history.uploads_confirmed |= await asyncio.to_thread(uploads_confirmed_to, fleet)
        await handed_on(history.uploads_confirmed, history.uploads_handed)

    async def waiting(self) -> list[Waiting]:
        """What the hub still holds as pending or parked."""
        found = await asked(self._hub.dispatchers[0], _waiting)
        return [one for one in found if self._counts(one.node_id)]

    async def _outbox(self) -> list[NodeDelivery]:
        nodes = await asked(self._hub.dispatchers[0], outbox_nodes)
        return [node for node in nodes if self._counts(node.node_id)]

    def _counts(self, node_id: str) -> bool:
        """Nodes that never were have a share of their own, and are forgotten by and by."""
        return node_id not in self._misbehaving and not node_id.startswith(NOBODY)


def resident_mib(hub: Hub) -> dict[str, int]:
    """Memory of each process."""
    return {
        instance.name: psutil.Process(instance.child.pid).memory_info().rss >> 20
        for instance in hub.instances
    }


def grown(before: Mapping[str, int], after: Mapping[str, int]) -> list[Count]:
    """Memory of each process beside what it, or the one that it follows, had just after its start."""
    return [
        Count(f"resident MiB of {name}", mib, int(MOST_TIMES_RESIDENT * before[name]) + SPARE_MIB)
        for name, mib in after.items()
    ]


def tracebacks(logs: Path) -> list[str]:
    """What no process has met without a word for people. Blocking."""
    return [
        f"there is a traceback in {path.name}"
        for path in sorted(logs.glob("*.log"))
        if "Traceback" in path.read_text(errors="replace")
    ]


async def handed_on(confirmed: dict[str, list[int]], handed: dict[str, list[int]]) -> None:
    """Returns when every confirmed upload was handed to a subscriber, or the time for it is over."""
    try:
        async with asyncio.timeout(HAND_ON_SECONDS):
            while uploads_lost(confirmed, handed):  # noqa: ASYNC110 - told by nobody
                await asyncio.sleep(LOOK_SECONDS)
    except TimeoutError:
        pass  # the checker will say which


async def asked(instance: Instance, question: Callable[[grpc.aio.Channel], Awaitable[T]]) -> T:
    """What a process answers, within some attempts. Raises AioRpcError."""
    async with instance.open_channel() as channel:
        for _ in range(MOST_QUESTIONS - 1):
            try:
                return await question(channel)
            except grpc.aio.AioRpcError:
                await asyncio.sleep(LOOK_SECONDS)  # it was started again just now, or has much to do
        return await question(channel)


async def _slots(channel: grpc.aio.Channel) -> int:
    stub: Any = SessionsAdminStub(channel)
    return int((await stub.GetLimits(GetLimitsRequest(), timeout=ANSWER_SECONDS)).nodes)


async def _waiting(channel: grpc.aio.Channel) -> list[Waiting]:
    stub: Any = DispatcherAdminStub(channel)
    found: list[Waiting] = []
    for node in await outbox_nodes(channel):
        if node.pending:
            request = pb.InspectNodeRequest(node_id=node.node_id)
            answer = await stub.InspectNode(request, timeout=ANSWER_SECONDS)
            found += [
                Waiting(node.node_id, one.object_key, int(one.version or 0), one.parked_reason or "pending")
                for one in answer.objects
            ]
    return found
