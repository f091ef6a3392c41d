"""Interruptions: of packets, of links, of addresses."""

import asyncio
from collections.abc import Callable

import pytest

from tests.lab.network import Site
from tests.lab.scenario import TRANSPORT, Scenario
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]

KEEPALIVE_SECONDS = 45.0
"""The default of the dispatcher's --keepalive-seconds."""
EDGES = {"weak": 10, "others": 5}
SELDOM_SECONDS = 0.5
"""Between publishes of scenarios that last for a minute, beside others that measure."""


async def test_a_short_black_hole_ends_no_session(stage: Stage) -> None:
    """Invariants 1 to 6: five seconds without any packet are bridged by TCP; no link is opened anew."""
    async with stage.scenario("black hole, 5 s", EDGES) as scenario:
        await scenario.start()
        for _ in range(2):
            await _interrupted(scenario, Site.black_hole, 5.0, Site.mend)
    assert scenario.links_opened["weak"] == EDGES["weak"]


@pytest.mark.parametrize(
    ("what", "swallow"),
    [
        ("black hole, 65 s", Site.black_hole),
        ("half-open, edge unheard", Site.swallow_up),
        ("half-open, cloud unheard", Site.swallow_down),
    ],
)
async def test_a_half_open_link_is_closed_in_time(
    stage: Stage, what: str, swallow: Callable[[Site], None]
) -> None:
    """C4, invariants 1 to 6: a link over which nothing comes is closed within 1.5 times the keepalive, which
    is told upstream, and the edge comes back by itself."""
    async with stage.scenario(what, EDGES, pause_seconds=SELDOM_SECONDS) as scenario:
        await scenario.start()
        nodes = scenario.fleet("weak").node_ids
        began = scenario.clock.now()
        swallow(scenario.site("weak"))
        await scenario.told(nodes, "disconnected", within=1.5 * KEEPALIVE_SECONDS)
        scenario.note = f"sessions ended after {scenario.clock.now() - began:.0f} s"
        await scenario.load_for(max(0.0, began + 65.0 - scenario.clock.now()))
        scenario.site("weak").mend()
        await scenario.recovered(what)
        await scenario.told(nodes, "connected", within=10)


async def test_a_link_that_flaps_every_second(stage: Stage) -> None:
    """Invariants 1 to 6, C31: a second without the cable, a second with it."""
    async with stage.scenario("flapping every second", EDGES) as scenario:
        await scenario.start()
        for _ in range(10):
            scenario.site("weak").link_down()
            await asyncio.sleep(1.0)
            scenario.site("weak").link_up()
            await asyncio.sleep(1.0)
        await scenario.recovered("flapping")


async def test_a_pulled_cable(stage: Stage) -> None:
    """Invariants 1 to 6: the edges' link is down for ten seconds, which their kernel knows."""
    async with stage.scenario("link down, 10 s", EDGES) as scenario:
        await scenario.start()
        await _interrupted(scenario, Site.link_down, 10.0, Site.link_up)


async def test_edges_that_change_their_address(stage: Stage) -> None:
    """C4, invariants 1 to 6: what is sent to the old address is lost and nobody says so; the edges come back
    from the new one."""
    async with stage.scenario("address change", EDGES, pause_seconds=SELDOM_SECONDS) as scenario:
        await scenario.start()
        scenario.site("weak").change_address()
        await scenario.recovered("address change", within=1.5 * KEEPALIVE_SECONDS + 10)


@pytest.mark.skipif(
    TRANSPORT == "quic", reason="resets are TCP's: nothing in a network can end a QUIC connection"
)
async def test_connections_that_are_reset(stage: Stage) -> None:
    """C1, C27, C31, invariants 1 to 6: every connection is reset, ten times, while messages are under way."""
    async with stage.scenario("TCP resets", EDGES) as scenario:
        await scenario.start()
        for _ in range(10):
            scenario.site("weak").reset()
            await asyncio.sleep(1.5)
        await scenario.recovered("resets")
    assert scenario.links_opened["weak"] >= 2 * EDGES["weak"]


async def _interrupted(
    scenario: Scenario, begin: Callable[[Site], None], seconds: float, end: Callable[[Site], None]
) -> None:
    begin(scenario.site("weak"))
    await asyncio.sleep(seconds)
    end(scenario.site("weak"))
    await scenario.recovered(scenario.title)
    await scenario.load_for(3)
