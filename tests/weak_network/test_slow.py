"""Long and narrow wires."""

import asyncio

import pytest

from tests.lab import stock
from tests.lab.scenario import Scenario
from tests.lab.wire import Wire
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]


async def test_two_seconds_each_way_lose_no_message(stage: Stage) -> None:
    """Invariants 1 to 6: a packet takes 2 to 2.5 s, there and back as long as until a retry."""
    stage.lab.add_site("far", Wire(delay_seconds=2.0, jitter_seconds=0.5))
    async with stage.scenario("2 s latency, jitter", {"far": 10, "others": 5}, pause_seconds=1.0) as scenario:
        await scenario.start()
        await scenario.load_for(30)


async def test_a_narrow_wire_shared_by_many(stage: Stage) -> None:
    """Invariants 1 to 7: 20 edges share 64 kbit/s, and more is published than goes through: newer versions
    take the place of older ones, and nothing else happens."""
    # A queue of a packet or two per edge: with less than one, TCP itself lets some of them starve.
    stage.lab.add_site("narrow", Wire(kbit_per_second=64, queue_seconds=6.0))
    async with stage.scenario(
        "64 kbit/s shared by 20",
        {"narrow": 20, "others": 5},
        publishers=2,
        pause_seconds=4.0,
        edge_flags=stock.REAL_TIME,  # what edges ask by themselves takes a part of the wire
    ) as scenario:
        await scenario.start()
        await scenario.load_for(25)


@pytest.mark.alone
async def test_a_window_makes_up_for_a_long_wire(stage: Stage) -> None:
    """C22: one node, 200 ms there and back: at least fifty times the rate of one message at a time."""
    stage.lab.add_site("far", Wire(delay_seconds=0.1))
    async with stage.scenario("one node, 200 ms round trip", {"far": 1}, publishers=0) as scenario:
        await scenario.start()
        single = await _rate(scenario, [[f"default/configmap/single-{number}"] for number in range(10)])
        many = await _rate(scenario, [[f"default/configmap/many-{number}" for number in range(2000)]])
        scenario.note = f"{single:.1f} per s one at a time, {many:.0f} per s with the window"
    assert many >= 50 * single, scenario.note


async def _rate(scenario: Scenario, rounds: list[list[str]]) -> float:
    """Acknowledged messages per second; each round begins when the hub has the last one's acknowledgement."""
    (node_id,) = scenario.node_ids
    began = scenario.clock.now()
    for resources in rounds:
        await scenario.publish(node_id, resources)
        while await scenario.pending():  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.005)
    return sum(map(len, rounds)) / (scenario.clock.now() - began)
