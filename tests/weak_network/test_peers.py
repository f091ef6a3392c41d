"""Edges that misbehave, on real packets: what they do is their own affair."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from demo.latency import Latencies
from tests.lab.peers import (
    Peer,
    acknowledges_nothing,
    acknowledges_wrongly,
    again_and_again,
    comes_and_goes,
    cuts_in_a_frame,
    cuts_in_the_handshake,
    cuts_in_the_upgrade,
    reads_nothing,
)
from tests.lab.scenario import OTHERS, Scenario
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600), pytest.mark.alone]

QUIET_SECONDS = 8.0
LOUD_SECONDS = 12.0
# What two measurements of the same thing may differ by on a busy machine of two cores.
NOISE_FACTOR = 2.0
NOISE_MS = 100.0
_BAD = "bad"


async def _p99_ms(scenario: Scenario, seconds: float) -> float:
    """Of the deliveries to the edges that behave well, within so many seconds from now."""
    before = scenario.fleet(OTHERS).latencies.counts()
    await scenario.load_for(seconds)
    during = Latencies()
    during.add_counts(scenario.fleet(OTHERS).latencies.counts() - before)
    (p99,) = during.quantiles_ms((0.99,))
    assert p99 is not None, "nothing was delivered"
    return p99


@asynccontextmanager
async def _misbehaving(
    stage: Stage, title: str, nodes: int, play: Callable[[Peer], Coroutine[Any, Any, None]]
) -> AsyncIterator[list[Peer]]:
    """Invariant 7: 20 edges under load, first alone, then beside so many peers that play; the caller looks at
    what the peers came to before they leave. Invariants 1 to 6 are held at the end, as in every scenario."""
    names = [f"{_BAD}-{number}" for number in range(1, nodes + 1)]
    site = stage.lab.add_site(_BAD)
    async with stage.scenario(title, {OTHERS: 20}, misbehaving=names) as scenario:
        await scenario.start()
        quiet = await _p99_ms(scenario, QUIET_SECONDS)
        peers = [Peer(site, stage.lab.cloud_address, scenario.certificates, name) for name in names]
        playing: list[asyncio.Task[None]] = [
            asyncio.create_task(play(peer), name=peer.node_id) for peer in peers
        ]
        try:
            loud = await _p99_ms(scenario, LOUD_SECONDS)
            yield peers
            ended = [task for task in playing if task.done()]
            assert not ended, f"{ended[0]} ended by itself"
        finally:
            for task in playing:
                task.cancel()
            await asyncio.gather(*playing, return_exceptions=True)
        counts: dict[str, int] = {}
        for peer in peers:
            for what, count in peer.counts.items():
                counts[what] = counts.get(what, 0) + count
        did = ", ".join(f"{count} {what}" for what, count in counts.items())
        scenario.note = f"p99 {quiet:.0f} ms before, {loud:.0f} ms beside {nodes} peers ({did})"
        assert loud <= NOISE_FACTOR * quiet + NOISE_MS, scenario.note


async def test_edges_that_read_nothing(stage: Stage) -> None:
    """Invariant 7, C28: their windows are closed; their messages wait, those of others do not."""
    async with _misbehaving(
        stage, "reads nothing", 5, lambda peer: again_and_again(lambda: reads_nothing(peer), 0.5)
    ) as peers:
        # Keepalives go on, so nobody has a reason to end the links.
        assert [peer.counts["links"] for peer in peers] == [1] * 5


async def test_edges_that_acknowledge_nothing(stage: Stage) -> None:
    """Invariant 7, C20: their messages are sent again and again, at growing intervals."""
    async with _misbehaving(
        stage,
        "acknowledges nothing",
        5,
        lambda peer: again_and_again(lambda: acknowledges_nothing(peer), 0.5),
    ) as peers:
        assert all(peer.counts["received"] > 0 for peer in peers)


async def test_edges_that_acknowledge_wrongly(stage: Stage) -> None:
    """Invariants 1, 7, C24: unknown ids and those of other nodes settle nothing."""
    async with _misbehaving(
        stage,
        "acknowledges wrongly",
        5,
        lambda peer: again_and_again(lambda: acknowledges_wrongly(peer, "m-1"), 0.5),
    ) as peers:
        assert all(peer.counts["answered"] > 0 for peer in peers)


async def test_an_edge_that_comes_and_goes(stage: Stage) -> None:
    """Invariants 6, 7, C2: fifty links a second of one node."""
    async with _misbehaving(stage, "50 links a second", 1, lambda peer: comes_and_goes(peer, 50.0)) as peers:
        # The hub opens one session of a node after the other: it need not keep up.
        assert peers[0].counts["dialled"] > 50 * LOUD_SECONDS / 2
        assert peers[0].counts["admitted"] > LOUD_SECONDS


@pytest.mark.parametrize(
    ("where", "cut"),
    [
        ("a frame", cuts_in_a_frame),
        ("the TLS handshake", cuts_in_the_handshake),
        ("the upgrade", cuts_in_the_upgrade),
    ],
)
async def test_edges_that_are_cut_in_the_middle_of_something(
    stage: Stage, where: str, cut: Callable[[Peer], Coroutine[Any, Any, None]]
) -> None:
    """Invariants 6, 7: twenty times a second, nothing of it is left over."""
    async with _misbehaving(
        stage, f"cut in {where}", 2, lambda peer: again_and_again(lambda: cut(peer), 0.1)
    ) as peers:
        assert all(sum(peer.counts.values()) > LOUD_SECONDS for peer in peers)
