"""One heap of deadlines per dispatcher, one task that waits for the earliest."""

import asyncio
import heapq
import itertools
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from services.runtime.clock import Clock

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls `fire(token)` when its instant (monotonic seconds) has come. Nothing is cancelled: whoever
    gets a token looks whether it still matters.

    Tokens are held weakly, and one that nobody else has is not fired: an ended session, with the messages
    that it held, must not stay in memory until its last deadline.
    """

    def __init__(self, clock: Clock, fire: Callable[[T], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._heap: list[tuple[float, int, weakref.ref[T]]] = []
        self._order = itertools.count()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._heap)

    def set(self, at: float, token: T) -> None:
        """Fires `token` at `at`, or as soon as possible after."""
        if not self._heap or at < self._heap[0][0]:
            self._wake.set()
        heapq.heappush(self._heap, (at, next(self._order), weakref.ref(token)))

    def fire_due(self) -> None:
        """Fires everything that is due now."""
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            token = heapq.heappop(self._heap)[2]()
            if token is not None:
                self._fire(token)

    async def run(self) -> None:
        """Waits and fires until cancelled."""
        while True:
            self.fire_due()
            self._wake.clear()
            wait = self._heap[0][0] - self._clock.monotonic() if self._heap else None
            try:
                # No `wait_for`, which makes a task each time.
                async with asyncio.timeout(wait):
                    await self._wake.wait()
            except TimeoutError:
                continue
