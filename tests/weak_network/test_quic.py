"""The same weak network over both transports at once: what QUIC has to be good for."""

import pytest

from tests.lab.scenario import Scenario
from tests.lab.wire import Wire
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]

ROUND_TRIP_SECONDS = 0.2
SITES = {"over-websocket": 8, "over-quic": 8}
TRANSPORTS = {"over-websocket": "websocket", "over-quic": "quic"}
NOISE = 1.1
"""Two equal distributions of some thousand messages differ by so much."""


def _assert_not_worse(scenario: Scenario) -> None:
    by_quic, by_websocket = scenario.p99_ms["over-quic"], scenario.p99_ms["over-websocket"]
    assert by_quic is not None
    assert by_websocket is not None
    assert by_quic <= by_websocket * NOISE, scenario.p99_ms


@pytest.mark.alone
async def test_quic_is_not_worse_at_5_percent_loss(stage: Stage) -> None:
    """Invariants 1 to 6 on both; QUIC's p99 is no longer than TCP's, on a link of 200 ms."""
    for name in SITES:
        stage.lab.add_site(name, Wire(delay_seconds=ROUND_TRIP_SECONDS / 2)).lose(0.05)
    async with stage.scenario(
        "5 % loss, 200 ms, both transports", {**SITES, "others": 4}, transports=TRANSPORTS
    ) as scenario:
        await scenario.start()
        await scenario.load_for(20)
    _assert_not_worse(scenario)


@pytest.mark.alone
async def test_quic_is_not_worse_at_20_percent_loss(stage: Stage) -> None:
    """Invariants 1 to 6 on both; QUIC's p99 is no longer than TCP's."""
    async with stage.scenario(
        "20 % loss, both transports", {**SITES, "others": 4}, transports=TRANSPORTS
    ) as scenario:
        for name in SITES:
            scenario.site(name).lose(0.2)
        await scenario.start()
        await scenario.load_for(20)
    _assert_not_worse(scenario)


async def test_an_edge_that_changes_its_address_keeps_its_quic_link(stage: Stage) -> None:
    """Connection migration: no link ends, no session, nobody waits for a silence to be found."""
    async with stage.scenario(
        "address change, QUIC", {"weak": 10, "others": 5}, transports={"weak": "quic"}
    ) as scenario:
        await scenario.start()
        for _ in range(3):
            scenario.site("weak").change_address()
            await scenario.recovered("address change", within=10)
        told = [set(scenario.lifecycle(node_id)) for node_id in scenario.fleet("weak").node_ids]
        assert told == [{"connected"}] * 10
    assert scenario.links_opened["weak"] == 10
