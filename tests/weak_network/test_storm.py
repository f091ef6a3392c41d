"""Everybody at once."""

import asyncio

import pytest

from tests.lab import stock
from tests.lab.scenario import TRANSPORT
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]

NODES = 2000
# On the machine of docs/weak-networks.md. An opening over QUIC costs both ends twice the processor time, and
# a message too: there the load is lighter, so that it is openings that the two cores are busy with.
BACK_SECONDS, PAUSE_SECONDS = (60.0, 16.0) if TRANSPORT == "quic" else (15.0, 4.0)
LONGER, MOST_BACK_SECONDS = 1.2, 4 * BACK_SECONDS
# In real time: a whole fleet that dials in the same second is what stock edges are about.
AWAY_SECONDS = stock.AWAY_SECONDS if stock.STOCK else 0.0
OUTAGE_SECONDS = 3.0


@pytest.mark.alone
async def test_a_reconnect_storm(stage: Stage) -> None:
    """C7, invariants 1 to 7: all links but a few are lost in one instant, the limit has room for nobody more,
    and after the outage everybody dials within a second. All are back in time on two cores; the links of the
    others stay."""
    half = NODES // 2
    async with stage.scenario(
        "reconnect storm",
        {"one": half, "two": half, "others": 20},
        publishers=1,
        pause_seconds=PAUSE_SECONDS,
        edge_flags=("--most-delay", "1", "--upload-every", "60", "--status-every", "60", *stock.REAL_TIME),
        observe_seconds=2.0,
        limit_total=NODES + 20,
    ) as scenario:
        began = scenario.clock.now()
        await scenario.start()
        # Processors differ, and one machine from hour to hour: to come back takes hardly longer than to come.
        most = max(BACK_SECONDS, min(LONGER * (scenario.clock.now() - began), MOST_BACK_SECONDS))
        most += AWAY_SECONDS
        outside = [scenario.site("one"), scenario.site("two")]
        for name, site in (("one", outside[0]), ("two", outside[1])):
            site.link_down()
            scenario.lose_links(name)
        async with asyncio.timeout(10):
            while scenario.scene.links > 20:  # noqa: ASYNC110 - told by nobody
                await asyncio.sleep(0.1)
        await scenario.load_for(OUTAGE_SECONDS)
        for site in outside:
            site.link_up()
        began = scenario.clock.now()
        await scenario.scene.connected(most)
        scenario.note = f"{NODES} links back in {scenario.clock.now() - began:.1f} s"
        await scenario.recovered("storm", since=began, within=most + 45.0)
    assert scenario.links_opened["one"] >= 2 * half
