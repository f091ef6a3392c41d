"""A time of day that jumps."""

from pathlib import Path

import pytest

from tests.lab.clocks import SteppedClock
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]

HOUR_SECONDS = 3600
STEP_SECONDS = 8.0


@pytest.mark.parametrize("side", ["hub", "edges"])
async def test_a_clock_that_steps_ends_no_session(stage: Stage, side: str, tmp_path: Path) -> None:
    """C36, invariants 1 to 6: the time of day of one side goes an hour forward, two back, and right again;
    nobody's session ends, and messages go on."""
    clock = SteppedClock(tmp_path / "clock")
    clocks = {"hub_clock" if side == "hub" else "edge_clock": clock}
    async with stage.scenario(f"clock steps, {side}", {"others": 15}, **clocks) as scenario:
        await scenario.start()
        for seconds in (HOUR_SECONDS, -HOUR_SECONDS, 0):
            clock.step(seconds)
            began = scenario.clock.now()
            await scenario.load_for(STEP_SECONDS)
            await scenario.recovered("clock step", since=began)
        if side == "edges":
            scenario.note = "times in the table are of this clock"
