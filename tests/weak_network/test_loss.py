"""Lost packets."""

import pytest

from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]


@pytest.mark.alone
@pytest.mark.parametrize("percent", [1])
async def test_lost_packets_lose_no_message(stage: Stage, percent: int) -> None:
    """Invariants 1 to 6: so many of a hundred packets are lost, each way."""
    async with stage.scenario(f"{percent} % loss", {"lossy": 15, "others": 5}) as scenario:
        scenario.site("lossy").lose(percent / 100)
        await scenario.start()
        await scenario.load_for(15)
