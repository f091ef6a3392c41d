"""The look through all nodes after a start: `services.dispatcher.housekeeping`."""

from dataclasses import fields
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from services.dispatcher import housekeeping
from services.dispatcher.housekeeping import Housekeeping
from services.dispatcher.outbox.contract import Mended
from services.runtime.errors import StoreUnavailable


class OutboxThatFailsOnce:
    """Two steps; the second one does not come through at first."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def mend(self, after: str, _: int) -> Mended:
        self.asked.append(after)
        if self.asked == ["", "n255"]:
            raise StoreUnavailable("gone")
        return Mended(2, "n255") if not after else Mended(0, None)


async def test_a_step_that_fails_is_done_again_and_not_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of the log each time, and the next step goes on where it was."""
    rests: list[float] = []

    async def rest(seconds: float) -> None:
        rests.append(seconds)

    monkeypatch.setattr(housekeeping, "asyncio", SimpleNamespace(sleep=rest))
    outbox = OutboxThatFailsOnce()
    parts: dict[str, Any] = {field.name: None for field in fields(Housekeeping) if field.init}
    parts |= {"outbox": outbox, "clock": SimpleNamespace(wall_ms=lambda: 0)}
    with capture_logs() as logs:
        await Housekeeping(**parts)._mend()
    assert outbox.asked == ["", "n255", "n255"]
    assert rests == [housekeeping.MEND_PAUSE, housekeeping.EXPIRE_INTERVAL, housekeeping.MEND_PAUSE]
    assert [line["event"] for line in logs] == ["outbox.paths_united", "housekeeping.put_off"]
