"""The demo's bad network: now and then an edge loses its link, or disappears in a black hole."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence

from demo.fleet_worker import RECOVERY_SECONDS
from demo.fleets import Fleets

BLACK_HOLE_SECONDS = 4.0


class BadNetwork:
    """`run` must be awaited by the owner; `cuts` counts what was done."""

    def __init__(self, fleet: Fleets, node_ids: Sequence[str], tell: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._node_ids = list(node_ids)
        self._tell = tell
        self.cuts = 0
        self._until: dict[str, float] = {}

    def cut_now(self) -> list[str]:
        """Nodes whose network is cut, or was a moment ago."""
        now = time.monotonic()
        self._until = {node_id: until for node_id, until in self._until.items() if until > now}
        return list(self._until)

    async def run(self, every_seconds: float) -> None:
        """Until cancelled: two links cut, then a black hole."""
        while True:
            await asyncio.sleep(every_seconds)
            node_id = random.choice(self._node_ids)
            self.cuts += 1
            hole_seconds = 0.0 if self.cuts % 3 else BLACK_HOLE_SECONDS
            self._until[node_id] = time.monotonic() + hole_seconds + RECOVERY_SECONDS
            if self.cuts % 3:
                self._fleet.cut(node_id)
                self._tell(f"{node_id}: network cut")
            else:
                self._fleet.block(node_id, BLACK_HOLE_SECONDS)
                self._tell(f"{node_id}: behind a black hole for {BLACK_HOLE_SECONDS:g} s")
