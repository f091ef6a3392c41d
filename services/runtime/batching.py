"""Group commit: whatever queued while the last batch was at work goes into the next one. And parts of what is
too much at once."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Generic, TypeVar

from services.runtime.errors import HubError, Unavailable

T = TypeVar("T")
R = TypeVar("R")


def portions(
    items: Iterable[T], size_of: Callable[[T], int], max_items: int, max_bytes: int
) -> Iterator[list[T]]:
    """The items in order, in lists of bounded length and size; one that is larger by itself comes alone."""
    portion: list[T] = []
    size_bytes = 0
    for item in items:
        size = size_of(item)
        if portion and (len(portion) >= max_items or size_bytes + size > max_bytes):
            yield portion
            portion, size_bytes = [], 0
        portion.append(item)
        size_bytes += size
    if portion:
        yield portion


class Batcher(Generic[T, R]):
    """Collects calls and hands them to `handle` in batches, one batch at a time, in order.

    `handle` answers one result per item, in order. If it raises a HubError, every call of that
    batch gets it. At most `most_waiting` calls wait; a further one is refused with Unavailable.
    `run` must be awaited by the owner; when it is cancelled, waiting calls get Unavailable.
    """

    def __init__(
        self,
        handle: Callable[[Sequence[T]], Awaitable[Sequence[R]]],
        *,
        most_per_batch: int = 1024,
        most_waiting: int = 65536,
    ) -> None:
        self._handle = handle
        self._most_per_batch = most_per_batch
        self._most_waiting = most_waiting
        self._waiting: deque[tuple[T, asyncio.Future[R]]] = deque()
        self._wake = asyncio.Event()
        self._stopped = False

    def __len__(self) -> int:
        return len(self._waiting)

    async def call(self, item: T) -> R:
        """The result for `item`; raises what the batch raised, or Unavailable at the bound."""
        if self._stopped:
            raise Unavailable("STOPPING", "the service is shutting down")
        if len(self._waiting) >= self._most_waiting:
            raise Unavailable("OVERLOADED", f"{self._most_waiting} calls are waiting already")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future))
        self._wake.set()
        return await future

    async def run(self) -> None:
        """Works until cancelled."""
        batch: list[tuple[T, asyncio.Future[R]]] = []
        try:
            while True:
                await self._wake.wait()
                while self._waiting:
                    count = min(len(self._waiting), self._most_per_batch)
                    batch = [self._waiting.popleft() for _ in range(count)]
                    await self._one_batch(batch)
                    batch = []
                self._wake.clear()
        finally:
            self._stopped = True
            gone = Unavailable("STOPPING", "the service is shutting down")
            for _, future in (*batch, *self._waiting):
                if not future.done():
                    future.set_exception(gone)
            self._waiting.clear()

    async def _one_batch(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        try:
            results = await self._handle([item for item, _ in batch])
        except HubError as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
