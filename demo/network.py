"""The demo's bad network: now and then an edge loses its link, or disappears in a black hole."""

import asyncio
import random
from collections.abc import Callable

from demo.fleets import Fleets

BLACK_HOLE_SECONDS = 4.0


class BadNetwork:
    """`run` must be awaited by the owner; `cuts` counts what was done."""

    def __init__(self, fleet: Fleets, tell: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._tell = tell
        self.cuts = 0

    async def run(self, every_seconds: float) -> None:
        """Until cancelled: two links cut, then a black hole."""
        while True:
            await asyncio.sleep(every_seconds)
            node_id = random.choice(self._fleet.node_ids)
            self.cuts += 1
            if self.cuts % 3:
                self._fleet.cut(node_id)
                self._tell(f"{node_id}: network cut")
            else:
                self._fleet.block(node_id, BLACK_HOLE_SECONDS)
                self._tell(f"{node_id}: behind a black hole for {BLACK_HOLE_SECONDS:g} s")
