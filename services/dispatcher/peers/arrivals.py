"""The other dispatchers' relays, just after a start: until they are there, who serves what is not known."""

import asyncio
from collections.abc import Callable, Iterable


class Arrivals:
    """Calls `arrived` once: when every dispatcher of the first list has its relay here, or has had its time,
    `most_seconds` from the start. `run` must be awaited by the owner."""

    def __init__(self, own_id: str, arrived: Callable[[], None], most_seconds: float) -> None:
        self._own_id = own_id
        self._arrived = arrived
        self._most_seconds = most_seconds
        self._here: set[str] = set()
        self._expected: set[str] | None = None
        self._all_here = asyncio.Event()

    def listed(self, dispatcher_ids: Iterable[str]) -> None:
        """All dispatchers with a lease, this one included. Only the first list counts: who comes later finds
        this one at work."""
        if self._expected is None:
            self._expected = {one for one in dispatcher_ids if one != self._own_id}
            self._look()

    def attached(self, dispatcher_id: str) -> None:
        """The relay of another dispatcher is here, and has said what its subscribers want."""
        self._here.add(dispatcher_id)
        self._look()

    def _look(self) -> None:
        if self._expected is not None and self._expected <= self._here:
            self._all_here.set()

    async def run(self) -> None:
        """Returns once `arrived` was called."""
        try:
            async with asyncio.timeout(self._most_seconds):
                await self._all_here.wait()
        except TimeoutError:
            pass
        self._arrived()
