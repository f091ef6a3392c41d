"""Calls that are worked off together: `services.runtime.batching`."""

import asyncio
from collections.abc import Sequence

import pytest

from services.runtime.batching import Batcher
from services.runtime.errors import Unavailable


class Desk:
    """Works off batches of a batcher with small bounds, once `open` is set."""

    def __init__(self) -> None:
        self.batches: list[Sequence[int]] = []
        self.open = asyncio.Event()
        self.batcher: Batcher[int, int] = Batcher(self._handle, most_per_batch=3, most_waiting=8)

    async def _handle(self, items: Sequence[int]) -> Sequence[int]:
        self.batches.append(items)
        await self.open.wait()
        return [-item for item in items]


async def test_a_call_too_many_is_refused_at_once_and_those_that_wait_are_answered() -> None:
    """The bound of what waits: it costs whoever comes then and nobody else; there is room again."""
    desk = Desk()
    waiting = [asyncio.ensure_future(desk.batcher.call(number)) for number in range(8)]
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="8 calls are waiting") as refused:
        await desk.batcher.call(8)
    assert refused.value.reason == "OVERLOADED"
    running = asyncio.create_task(desk.batcher.run())
    desk.open.set()
    assert await asyncio.wait_for(asyncio.gather(*waiting), 5) == [-number for number in range(8)]
    assert await asyncio.wait_for(desk.batcher.call(9), 5) == -9
    running.cancel()
    await asyncio.wait([running])


async def test_a_batch_has_so_many_calls_and_the_next_one_goes_on() -> None:
    """In the order in which they came."""
    desk = Desk()
    waiting = [asyncio.ensure_future(desk.batcher.call(number)) for number in range(8)]
    running = asyncio.create_task(desk.batcher.run())
    desk.open.set()
    await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert desk.batches == [[0, 1, 2], [3, 4, 5], [6, 7]]
    running.cancel()
    await asyncio.wait([running])


async def test_a_batch_that_fails_fails_alone() -> None:
    """And whoever still waits when it ends is told."""
    desk = Desk()

    async def fails(items: Sequence[int]) -> Sequence[int]:
        if 1 in items:
            raise Unavailable("AWAY", "it is away")
        await desk.open.wait()
        return items

    batcher: Batcher[int, int] = Batcher(fails, most_per_batch=2)
    waiting = [asyncio.ensure_future(batcher.call(number)) for number in range(6)]
    running = asyncio.create_task(batcher.run())
    for failed in waiting[:2]:
        with pytest.raises(Unavailable, match="away"):
            await asyncio.wait_for(failed, 5)
    running.cancel()
    for stopped in waiting[2:]:
        with pytest.raises(Unavailable, match="shutting down"):
            await asyncio.wait_for(stopped, 5)
    with pytest.raises(Unavailable, match="shutting down"):
        await batcher.call(7)
