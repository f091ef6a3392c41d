"""Invariant 7 over QUIC: edges that break the rules of that transport are no affair of the others, who use
it too. What is above it (acknowledgements, backlogs, storms of reports) has its acts in test_peers."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from tests.lab.cast import LARGE, LARGE_BYTES, LOUD_SECONDS, NOISE_MS, Cast, check_waiting, playing
from tests.lab.peers import Peer, again_and_again
from tests.lab.quic_peers import (
    changes_ids,
    floods_with_ids,
    never_finishes,
    opens_streams,
    reads_nothing_over_quic,
    says_nothing,
    sends_too_far,
)
from tests.lab.scenario import OTHERS, TRANSPORT
from tests.support.hub import request
from tests.support.processes import eventually
from tests.weak_network.conftest import Stage

pytestmark = [
    pytest.mark.weak_network,
    pytest.mark.timeout(600),
    pytest.mark.alone,
    pytest.mark.skipif(TRANSPORT != "quic", reason="these edges speak QUIC: make e2e TRANSPORT=quic"),
]

OPENING_SECONDS = 3.0
PAUSE_SECONDS = 0.5
KINDS = {"deaf": 5, "mute": 20, "streams": 5, "endless": 5, "far": 5, "ids": 5, "restless": 2}
# What each plays again and again, and what it must have done at least twice.
BREACHES: list[tuple[str, str, Callable[[Peer], Awaitable[object]], str]] = [
    ("silent after the QUIC handshake", "mute", says_nothing, "cut with 0"),
    ("200 streams too many", "streams", opens_streams, "floods of streams"),
    ("bytes beyond the limits", "far", sends_too_far, "beyond limits"),
    ("too many connection ids", "ids", floods_with_ids, "floods of ids"),
]


def names(kind: str) -> list[str]:
    return [f"{kind}-{number}" for number in range(1, KINDS[kind] + 1)]


async def test_nobody_is_disturbed_by_edges_that_misbehave_over_quic(stage: Stage) -> None:
    """Invariants 1 to 7 and 10, C20, C26, C28, C33: 20 edges under load, first alone, then beside others."""
    stage.lab.add_site("bad")
    everybody = [name for kind in KINDS for name in names(kind)]
    async with stage.scenario(
        "beside other edges",
        {OTHERS: 20},
        misbehaving=everybody,
        hub_flags={"connector": ["--opening-seconds", str(OPENING_SECONDS)]},
    ) as scenario:
        await scenario.start()
        cast = Cast(scenario)
        await cast.alone("20 edges alone, over QUIC")
        await reading_nothing(cast)
        for title, kind, breach, what in BREACHES:
            await cast.played(
                title,
                cast.peers(names(kind)),
                lambda peer, breach=breach: again_and_again(lambda: breach(peer), PAUSE_SECONDS),  # type: ignore[misc]
                {what: 2},
            )
        await cast.played(
            "a frame that never ends", cast.peers(names("endless")), never_finishes, {"bytes": 100}
        )
        await cast.played(
            "a connection id per packet", cast.peers(names("restless")), changes_ids, {"ids used up": 100}
        )
        await cast.alone("20 edges alone, over QUIC, later")
    cast.compare()
    assert cast.failures == []


async def reading_nothing(cast: Cast) -> None:
    """C20, C26, C28: they let in 16 KiB and no more. What is not in a datagram waits in the connector up
    to the window of the node, and the rest in the outbox. When they read again, they get all in order."""
    peers = cast.peers(names("deaf"))
    node_ids = [peer.node_id for peer in peers]
    reads = asyncio.Event()
    hub = cast.scenario.hub
    async with AsyncExitStack() as stack:
        dispatcher = await stack.enter_async_context(hub.dispatchers[0].open_channel())
        connector = await stack.enter_async_context(hub.connectors[0].open_channel())
        cloud: Any = DispatcherServiceStub(dispatcher)
        async with (
            cast.beside("reads nothing over QUIC", peers, NOISE_MS),
            playing(peers, lambda peer: reads_nothing_over_quic(peer, reads)),
        ):
            await eventually(lambda: all(peer.counts.get("links") for peer in peers))
            for name in LARGE:
                await cloud.Publish(request(*node_ids, name=name, message_id=name, size_bytes=LARGE_BYTES))
            await cast.scenario.load_for(LOUD_SECONDS)
            await check_waiting(connector, dispatcher, node_ids)
            reads.set()
            await eventually(lambda: all(LARGE[-1] in peer.got for peer in peers))
            for peer in peers:
                firsts = [name for name in dict.fromkeys(peer.got) if name in LARGE]
                assert firsts == LARGE, f"{peer.node_id} got {firsts}"
