"""Lost packets."""

import pytest

from tests.lab.wire import Wire
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]

ROUND_TRIP_SECONDS = 0.2
RETRY_SECONDS = 5.0
"""The default of the dispatcher's --ack-seconds."""


@pytest.mark.parametrize("percent", [1, 20])
async def test_lost_packets_lose_no_message(stage: Stage, percent: int) -> None:
    """Invariants 1 to 6, C31: so many of a hundred packets are lost, each way."""
    async with stage.scenario(f"{percent} % loss", {"lossy": 15, "others": 5}) as scenario:
        scenario.site("lossy").lose(percent / 100)
        await scenario.start()
        await scenario.load_for(20)
        lossy = scenario.fleet("lossy")
        again = lossy.links_opened - len(lossy.node_ids)
        scenario.note = f"{again} links opened anew" if again else ""


async def test_lost_packets_cost_no_more_than_a_retry(stage: Stage) -> None:
    """Invariants 1 to 6: 5 % of the packets are lost each way on a link of 200 ms. TCP repairs it: no message
    takes longer than the retry interval and three round trips, half of them less than two round trips."""
    lossy = stage.lab.add_site("lossy", Wire(delay_seconds=ROUND_TRIP_SECONDS / 2))
    async with stage.scenario("5 % loss, 200 ms round trip", {"lossy": 15, "others": 5}) as scenario:
        lossy.lose(0.05)
        await scenario.start()
        await scenario.load_for(20)
    assert scenario.measured.p50_ms is not None
    assert scenario.measured.most_ms is not None
    assert scenario.measured.p50_ms < 2 * ROUND_TRIP_SECONDS * 1000
    assert scenario.measured.most_ms < (RETRY_SECONDS + 3 * ROUND_TRIP_SECONDS) * 1000
