"""One heap of deadlines per dispatcher, one task that waits for the earliest."""

import asyncio
import heapq
import itertools
import weakref
from collections.abc import Callable
from typing import Generic, TypeVar

from services.runtime.clock import Clock

T = TypeVar("T")

# So many entries that no longer count may stand in the heap beside one for each token.
_SPARE_ENTRIES = 64


class Deadlines(Generic[T]):
    """Calls `fire(token)` when its instant (monotonic seconds) has come. A token has one deadline, the last
    that was set; nothing else is cancelled: whoever gets a token looks whether it still matters.

    Tokens are held weakly, and one that nobody else has is not fired: an ended session, with the messages
    that it held, must not stay in memory until its deadline. Nor must the entries of deadlines that were
    replaced or whose token is gone, which may be days away: the heap is made anew when half of it is those.
    """

    def __init__(self, clock: Clock, fire: Callable[[T], None]) -> None:
        self._clock = clock
        self._fire = fire
        self._heap: list[tuple[float, int, weakref.ref[T]]] = []
        # The entry of each token that counts, by its order.
        self._present: weakref.WeakKeyDictionary[T, int] = weakref.WeakKeyDictionary()
        self._order = itertools.count()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """Tokens that have a deadline."""
        return len(self._present)

    @property
    def entries(self) -> int:
        """Entries of the heap: at most twice as many as tokens, and a few."""
        return len(self._heap)

    def set(self, at: float, token: T) -> None:
        """Fires `token` at `at`, or as soon as possible after, and not when it was to be before."""
        if not self._heap or at < self._heap[0][0]:
            self._wake.set()
        order = next(self._order)
        self._present[token] = order
        heapq.heappush(self._heap, (at, order, weakref.ref(token)))
        self._tidy()

    def fire_due(self) -> None:
        """Fires everything that is due now."""
        now = self._clock.monotonic()
        while self._heap and self._heap[0][0] <= now:
            entry = heapq.heappop(self._heap)
            token = entry[2]()
            if token is not None and self._present.get(token) == entry[1]:
                del self._present[token]
                self._fire(token)
        self._tidy()

    def _tidy(self) -> None:
        if len(self._heap) > 2 * len(self._present) + _SPARE_ENTRIES:
            present = set(self._present.values())
            self._heap = [entry for entry in self._heap if entry[1] in present]
            heapq.heapify(self._heap)

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
