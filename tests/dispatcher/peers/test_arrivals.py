"""When a dispatcher that has just started knows who serves what."""

import asyncio

from services.dispatcher.peers.arrivals import Arrivals


class Noted:
    def __init__(self, most_seconds: float = 60.0) -> None:
        self.times = 0
        self.arrivals = Arrivals("own", self._arrived, most_seconds)
        self.task = asyncio.create_task(self.arrivals.run())

    def _arrived(self) -> None:
        self.times += 1

    async def is_over(self) -> bool:
        """After the tasks that can run have run."""
        for _ in range(5):
            await asyncio.sleep(0)
        return self.task.done()


async def test_alone_it_knows_with_the_first_list() -> None:
    noted = Noted()
    assert not await noted.is_over()
    noted.arrivals.listed(["own"])
    assert await noted.is_over()
    assert noted.times == 1


async def test_each_of_the_first_list_is_waited_for_whenever_it_comes() -> None:
    noted = Noted()
    noted.arrivals.attached("d2")
    noted.arrivals.listed(["own", "d2", "d3"])
    assert not await noted.is_over()
    noted.arrivals.listed(["own", "d2", "d3", "d4"])
    noted.arrivals.attached("d3")
    assert await noted.is_over()
    assert noted.times == 1


async def test_one_that_does_not_come_has_its_time() -> None:
    noted = Noted(most_seconds=0.02)
    noted.arrivals.listed(["own", "d2"])
    await noted.task
    assert noted.times == 1
