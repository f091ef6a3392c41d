"""Invariant 7: what single edges do, on real packets, is no affair of the others'. One hub, one fleet that
behaves well; beside it, edges that misbehave or have much to make up for, one kind after the other."""

import asyncio
import json
import re
import threading
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import count
from statistics import median
from typing import Any

import pytest

from cloudhub.v1 import dispatcher_pb2
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from tests.lab.cast import (
    LARGE,
    LARGE_BYTES,
    LITTLE_MS,
    LOUD_SECONDS,
    MOST_TIMES,
    NOISE_MS,
    Cast,
    check_waiting,
    playing,
)
from tests.lab.peers import (
    Peer,
    acknowledges_nothing,
    acknowledges_wrongly,
    again_and_again,
    comes_and_goes,
    cuts_in_a_frame,
    cuts_in_the_handshake,
    cuts_in_the_upgrade,
    looks_in,
    reads_nothing,
    reports_at_once,
    takes_slowly,
)
from tests.lab.reports import Handed, storm
from tests.lab.scenario import OTHERS, TRANSPORT, Scenario
from tests.lab.wire import Wire
from tests.support.hub import StockEdge, request
from tests.support.processes import eventually
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600), pytest.mark.alone]
pytestmark += [
    pytest.mark.skipif(
        TRANSPORT == "quic",
        reason="these edges speak WebSocket; tests/weak_network/test_quic_peers.py has those of QUIC",
    )
]

BACKLOG = 10_000
LANE_MESSAGES = 300
STORM_SECONDS = 2.0
REPORTERS = 5
REPORTS_PER_SECOND = 50

KINDS = {
    "deaf": 5,
    "silent": 5,
    "wrong": 5,
    "restless": 1,
    "cut-frame": 2,
    "cut-tls": 2,
    "cut-upgrade": 2,
    "slow": 1,
    "stormy": 1,
    "reporter": REPORTERS,
}


def names(kind: str) -> list[str]:
    return [f"{kind}-{number}" for number in range(1, KINDS[kind] + 1)]


async def test_nobody_is_disturbed_by_other_edges(stage: Stage) -> None:
    """Invariants 1 to 7, C2, C20, C24, C28, C30: 20 edges under load, first alone, then beside others."""
    stage.lab.add_site("bad")
    stage.lab.add_site("narrow", Wire(kbit_per_second=64, queue_seconds=2.0))
    everybody = [name for kind in KINDS for name in names(kind)]
    async with stage.scenario("beside other edges", {OTHERS: 20}, misbehaving=everybody) as scenario:
        await scenario.start()
        cast = Cast(scenario)
        await cast.alone("20 edges alone")
        await reading_nothing(cast)
        await acknowledging(cast)
        await dialling(cast)
        await a_backlog(cast)
        await a_storm_of_reports(cast)
        await cast.alone("20 edges alone, later")
    cast.compare()
    assert cast.failures == []


async def acknowledging(cast: Cast) -> None:
    """C20, C24: no acknowledgement, or unknown ids and those of other nodes, which settle nothing."""
    await cast.played(
        "acknowledges nothing",
        cast.peers(names("silent")),
        lambda peer: again_and_again(lambda: acknowledges_nothing(peer), 0.5),
        {"received": 1},
    )
    await cast.played(
        "acknowledges wrongly",
        cast.peers(names("wrong")),
        lambda peer: again_and_again(lambda: acknowledges_wrongly(peer, "m-1"), 0.5),
        {"answered": 1},
    )


async def dialling(cast: Cast) -> None:
    """C2, invariant 6: fifty links a second of one node, and links that end in the middle of something."""
    await cast.played(
        "50 links a second",
        cast.peers(names("restless")),
        lambda peer: comes_and_goes(peer, 50.0),
        # The hub opens one session of a node after the other: it need not keep up.
        {"dialled": int(25 * LOUD_SECONDS), "admitted": int(LOUD_SECONDS)},
    )
    for where, kind, cut, what in (
        ("a frame", "cut-frame", cuts_in_a_frame, "in a frame"),
        ("the TLS handshake", "cut-tls", cuts_in_the_handshake, "in TLS"),
        ("the upgrade", "cut-upgrade", cuts_in_the_upgrade, "in the upgrade"),
    ):
        await cast.played(
            f"cut in {where}",
            cast.peers(names(kind)),
            lambda peer, cut=cut: again_and_again(lambda: cut(peer), 0.1),  # type: ignore[misc]
            {what: int(LOUD_SECONDS)},
        )


async def reading_nothing(cast: Cast) -> None:
    """C20, C26, C28: their windows are closed. What is not in a socket waits in the connector up to the
    window of the node, and the rest in the outbox; none of it is sent a second time, and the lane of NO-ACK
    messages has an end. When they read again, they get all of it in order."""
    peers = cast.peers(names("deaf"))
    node_ids = [peer.node_id for peer in peers]
    reads, over = threading.Event(), threading.Event()
    scenario = cast.scenario
    tasks: list[asyncio.Task[None]] = []
    try:
        async with AsyncExitStack() as stack:
            dispatcher = await stack.enter_async_context(scenario.hub.dispatchers[0].open_channel())
            connector = await stack.enter_async_context(scenario.hub.connectors[0].open_channel())
            cloud: Any = DispatcherServiceStub(dispatcher)
            async with cast.beside("reads nothing", peers, NOISE_MS) as act:
                tasks += [asyncio.create_task(reads_nothing(peer, reads, over)) for peer in peers]
                await eventually(lambda: all(peer.counts.get("links") for peer in peers))
                for name in LARGE:
                    large = request(*node_ids, name=name, message_id=name, size_bytes=LARGE_BYTES)
                    await cloud.Publish(large)
                await scenario.load_for(LOUD_SECONDS)
                closed = closed_windows(scenario, "bad")
                assert closed >= len(peers), f"{closed} windows are closed of {len(peers)}"
                await check_waiting(connector, dispatcher, node_ids)
                act.tell(f"{await refused_direct(cloud, node_ids[0])} of {LANE_MESSAGES} NO-ACK refused")
                assert [peer.counts["links"] for peer in peers] == [1] * len(peers)
                reads.set()
                await eventually(lambda: all(LARGE[-1] in peer.got for peer in peers))
                for peer in peers:
                    firsts = [name for name in dict.fromkeys(peer.got) if name in LARGE]
                    assert firsts == LARGE, f"{peer.node_id} got {firsts}"
    finally:
        reads.set()
        over.set()
        await asyncio.gather(*tasks)


def closed_windows(scenario: Scenario, site: str) -> int:
    """Connections of the site into which the hub's kernel may not send: it asks by and by whether it may."""
    address = scenario.site(site).address
    found = scenario.lab.cloud.run("ss", "-tnoH", "state", "established", "dst", address)
    return len(re.findall(r"timer:\(persist", found))


async def refused_direct(cloud: Any, node_id: str) -> int:
    """NO-ACK messages for a link that takes none."""
    refused = 0
    for number in range(LANE_MESSAGES):
        answer = await cloud.Publish(
            request(node_id, name=f"direct-{number}", ack_mode=dispatcher_pb2.ACK_MODE_NO_ACK)
        )
        (outcome,) = answer.outcomes
        refused += outcome.reason == "LANE_FULL"
    assert refused, "the lane has no end"
    return refused


async def a_backlog(cast: Cast) -> None:
    """C28: a node takes 10 000 messages over 64 kbit/s; then it comes back to them again and again."""
    (slow,), (back,) = cast.peers(names("slow"), "narrow"), cast.peers(names("slow"))
    async with back.link():
        pass  # a node that never connected may have little
    await publish_backlog(cast.scenario, slow.node_id)
    await cast.played(
        f"{BACKLOG} messages over 64 kbit/s",
        [slow],
        takes_slowly,
        {"taken": int(LOUD_SECONDS)},
        LITTLE_MS,
    )
    title = f"comes back to {BACKLOG} messages"
    async with cast.beside(title, [back], LITTLE_MS) as act:
        async with playing([back], lambda peer: again_and_again(lambda: looks_in(peer), 0.3)):
            await cast.scenario.load_for(LOUD_SECONDS)
        # From the third link on that ended without an answer, a link rests for up to 3 s.
        assert back.counts["returns"] >= LOUD_SECONDS / 4
        act.tell(f"first message {median(back.seconds):.2f} s after it dialled")


async def publish_backlog(scenario: Scenario, node_id: str) -> None:
    """Objects enough for hours."""
    async with scenario.hub.dispatchers[0].open_channel() as channel:
        stream: Any = DispatcherServiceStub(channel).PublishStream()
        for first in range(0, BACKLOG, 500):
            requests = [
                request(node_id, name=f"backlog-{number}", size_bytes=900)
                for number in range(first, first + 500)
            ]
            await stream.write(dispatcher_pb2.PublishStreamRequest(requests=requests))
            answer = await stream.read()
            accepted = dispatcher_pb2.OUTCOME_ACCEPTED
            assert all(one.outcomes[0].outcome == accepted for one in answer.responses)
        stream.cancel()


async def a_storm_of_reports(cast: Cast) -> None:
    """C30: a node comes back and reports 1 000 times at once, every two seconds; they are merged as far as
    their order allows, and what others report takes no longer than else, but for the processor time of the
    storm."""
    (stormy,), reporters = cast.peers(names("stormy")), cast.peers(names("reporter"))
    handed = Handed(stormy.node_id)
    cast.scenario.taps.append(handed.add)
    numbers = count(1)

    async def storm_on(peer: Peer) -> None:
        while True:
            await reports_at_once(peer, storm(peer.counts.get("storms", 0)), STORM_SECONDS)

    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        edges = [StockEdge(peer.node_id, await stack.enter_async_context(peer.link())) for peer in reporters]
        tasks = [group.create_task(answer_all(edge)) for edge in edges]
        tasks.append(group.create_task(report_on(edges, handed, numbers)))
        await cast.scenario.load_for(LOUD_SECONDS / 2)
        quiet, handed.seconds = handed.seconds, []
        async with cast.beside("1000 reports at once", [stormy], LITTLE_MS) as act:
            async with playing([stormy], storm_on):
                await cast.scenario.load_for(LOUD_SECONDS)
            storms = stormy.counts["storms"]
            await eventually(lambda: handed.are_complete(storms), what=f"the ends of {storms} storms")
            act.tell(
                f"{handed.share(storms):.0%} of {storms} storms handed on; others' reports p99 "
                f"{p99_ms(handed.seconds):.0f} ms, {p99_ms(quiet):.0f} ms without"
            )
            assert list(handed.breaches()) == []
            assert handed.share(storms) < 0.9, "hardly any was merged"
            assert p99_ms(handed.seconds) <= MOST_TIMES * p99_ms(quiet) + LITTLE_MS
        for task in tasks:
            task.cancel()


def p99_ms(seconds: list[float]) -> float:
    return sorted(seconds)[int(0.99 * len(seconds))] * 1000


async def answer_all(edge: StockEdge) -> None:
    while True:
        await edge.answer(json.loads(await edge.connection.recv()))


async def report_on(edges: Sequence[StockEdge], handed: Handed, numbers: "count[int]") -> None:
    """One after the other, at a set rate, whether the last one came or not."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    for number in numbers:
        await asyncio.sleep(max(0.0, began + number / REPORTS_PER_SECOND - loop.time()))
        edge = edges[number % len(edges)]
        handed.expect(f"report-{number}")
        # A deletion is never merged, so each of them arrives.
        await edge.send("delete", f"default/podstatus/pod-{number}", message_id=f"report-{number}")
