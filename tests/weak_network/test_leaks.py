"""C2, C3, C5, invariant 6: what thousands of links of real processes have left over. Part of `make e2e`."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from chaos.resources import Resources
from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from services.connector.listener import EdgeListener
from services.connector.quic.listener import QuicListener
from services.runtime.rpc import open_channel
from tests.e2e.load import object_request
from tests.lab.scenario import TRANSPORT
from tests.support.churn import Churn, WebSocketChurn
from tests.support.edge_peer import EdgePeers
from tests.support.figures import Figures
from tests.support.leaks import growth, when_quiet
from tests.support.processes import HubProcesses, eventually
from tests.support.quic_churn import QuicChurn
from tests.support.quic_peer import QuicPeers

OVER_QUIC = TRANSPORT == "quic"
# Both ends of each handshake are worked on here: beside other scenarios they starve, and give up.
pytestmark = [pytest.mark.e2e, pytest.mark.weak_network, pytest.mark.alone]
CONNECTIONS = 10_000
WARM_UP = 2_000
AT_ONCE = 128
NODES = [f"edge-{number}" for number in range(3 * AT_ONCE)]
KEEPALIVE_SECONDS = 10.0
# Over QUIC nobody is told that a peer has vanished: the keepalive and the bound of an opening find it.
QUIET_SECONDS = 40.0
# Of resident memory, over CONNECTIONS.
MOST_GROWTH = 0.05
# The C library gives back what is free, so that resident memory says what is in use (mallopt(3)); by itself
# it keeps some megabytes of it, more or less as it comes.
ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
# Blocks of memory per connection that may be left over, and per entry of a bounded memory: its key and place.
# Seven of ten connections are admitted: one object that each of them leaves behind is more. What fills up to
# a bound meanwhile (events that nobody takes, open lines of history) is up to 0.3.
MOST_BLOCKS_PER_CONNECTION = 0.5
BLOCKS_PER_MEMORY = 2
BYTES_PER_MEMORY = 256


class Events:
    """The lifecycle events that a subscriber was told; each counts once, however often it came."""

    def __init__(self) -> None:
        self._ids: set[str] = set()
        self.told: Counter[str] = Counter()

    def add(self, delivery: pb.UpstreamDelivery) -> None:
        if delivery.message.source == "cloudhub" and delivery.message.id not in self._ids:
            self._ids.add(delivery.message.id)
            self.told[delivery.message.operation] += 1

    def forget(self) -> None:
        self._ids.clear()
        self.told.clear()


@asynccontextmanager
async def subscribed(address: str, events: Events) -> AsyncIterator[None]:
    """Takes and acknowledges all that edges say, meanwhile."""
    async with open_channel(address) as channel:
        cloud: Any = DispatcherServiceStub(channel)
        call = cloud.Subscribe(wait_for_ready=True)
        subscription = pb.Subscription(modules=["edgecontroller"], max_unacknowledged=4096)
        await call.write(pb.SubscribeRequest(subscription=subscription))

        async def take() -> None:
            async for response in call:
                for delivery in response.deliveries:
                    events.add(delivery)
                done = [delivery.delivery_id for delivery in response.deliveries]
                await call.write(pb.SubscribeRequest(acknowledged=done))

        taking = asyncio.create_task(take())
        try:
            yield
        finally:
            call.cancel()
            await asyncio.gather(taking, return_exceptions=True)


async def live_nodes(address: str) -> int:
    """Slots that the registry counts."""
    async with open_channel(address) as channel:
        admin: Any = SessionsAdminStub(channel)
        return int((await admin.GetLimits(sessions_pb2.GetLimitsRequest())).nodes)


def told(service: str, before: Resources, after: Resources) -> str:
    mib = 1024 * 1024
    return (
        f"{service}: {before.counts['tasks']} -> {after.counts['tasks']} tasks, "
        f"{before.counts['threads']} -> {after.counts['threads']} threads, "
        f"{before.counts['file_descriptors']} -> {after.counts['file_descriptors']} descriptors, "
        f"{before.resident_bytes / mib:.1f} -> {after.resident_bytes / mib:.1f} MiB resident, "
        f"{before.memory_blocks} -> {after.memory_blocks} blocks of memory"
    )


@pytest.mark.timeout(600)
async def test_thousands_of_links_leave_nothing_behind(
    tmp_path: Path, figures: Figures, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C2, C3, C5, invariant 6: real links, closed, cut, reset, taken over, refused and half made, each sent
    two messages that it never acknowledges. Afterwards every process holds what it held before."""
    for name, value in ALLOCATOR.items():
        monkeypatch.setenv(name, value)
    events = Events()
    flags = {"dispatcher": ["--keepalive-seconds", str(KEEPALIVE_SECONDS)]}
    flags["connector"] = ["--opening-seconds", str(KEEPALIVE_SECONDS)]
    (tmp_path / "hub").mkdir()
    async with (
        HubProcesses(tmp_path / "hub", flags) as hub,
        subscribed(hub.address("dispatcher"), events),
        open_channel(hub.address("dispatcher")) as channel,
    ):
        cloud: Any = DispatcherServiceStub(channel)
        for number in range(2):
            await cloud.Publish(object_request(NODES, f"shop/configmap/{number}", f"uid-{number}", 1))
        churn: Churn
        if OVER_QUIC:
            churn = QuicChurn(QuicPeers(hub.authority, hub.edge_port), NODES, AT_ONCE)
        else:
            churn = WebSocketChurn(EdgePeers(hub.authority, hub.edge_port), NODES, AT_ONCE)
        # Memory stays where it was when most links were open at once.
        await churn.crowd()
        await churn.run(WARM_UP)
        before = await when_quiet(hub.address, QUIET_SECONDS)
        for connections in (CONNECTIONS, CONNECTIONS // 2, CONNECTIONS // 2):
            churn.done.clear()
            events.forget()
            began = time.monotonic()
            await churn.run(connections)
            took = time.monotonic() - began
            await eventually(lambda: is_told(events, churn), QUIET_SECONDS, "every session's events")
            after = await when_quiet(hub.address, QUIET_SECONDS, before)
            figures(f"{connections} connections in {took:.1f} s, {churn.admitted} of them admitted")
            for service in before:
                figures(told(service, before[service], after[service]))
            assert await live_nodes(hub.address("sessions")) == 0
            grown = [service for service in after if has_grown(before[service], after[service], connections)]
            if not grown:
                break
            # What a busy machine made it take once it does not take again; what leaks goes on.
            before = after
    if grown:
        (tmp_path / "traced").mkdir()
        where = await growth(tmp_path / "traced", 400, over_quic=OVER_QUIC)
        pytest.fail(f"memory of {grown} has grown; what 400 connections leave over:\n{where}")


def is_told(events: Events, churn: Churn) -> bool:
    """Whether every session's two events came. Some of those that are cut while their upgrade is decided get
    a session, and some do not."""
    opened, ended = events.told["connected"], events.told["disconnected"]
    return opened == ended and 0 <= opened - churn.admitted <= churn.undecided


def has_grown(before: Resources, after: Resources, connections: int) -> bool:
    """Resident memory by more than may be for so many, or blocks with every connection."""
    remembered = after.remembered - before.remembered
    blocks = after.memory_blocks - before.memory_blocks - BLOCKS_PER_MEMORY * remembered
    most = 1.0 + MOST_GROWTH * connections / CONNECTIONS
    return (
        after.resident_bytes > most * before.resident_bytes + BYTES_PER_MEMORY * max(0, remembered)
        or blocks > MOST_BLOCKS_PER_CONNECTION * connections
    )


async def test_a_leak_is_found_where_it_is(tmp_path: Path) -> None:
    """The message of the failure above: a listener that keeps its connections is named."""
    kept: list[object] = []
    listener = QuicListener if OVER_QUIC else EdgeListener
    gone = listener.gone

    def keep(listener: Any, connection: Any) -> None:
        kept.append(connection)
        gone(listener, connection)

    with mock.patch.object(listener, "gone", keep):
        found = await growth(tmp_path, 60, over_quic=OVER_QUIC)
    assert kept
    assert "services/connector/" in found.partition("\n")[0]
