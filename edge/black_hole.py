"""A time in which nothing of a node's network arrives anywhere, played at its own end."""

import asyncio
from collections.abc import Callable

from edge.transport import EdgeLink


class BlackHole:
    """Of one node, whose present link `link` gives: meanwhile nothing is read, sent or dialled. For tests."""

    def __init__(self, link: Callable[[], EdgeLink | None]) -> None:
        self._link = link
        self._over = asyncio.Event()
        self._over.set()
        self._timer: asyncio.TimerHandle | None = None

    async def over(self) -> None:
        """Returns when there is none; whoever dials waits for it."""
        await self._over.wait()

    def begin(self, seconds: float) -> None:
        """From now on for so long; one that lasts already ends then."""
        self._over.clear()
        link = self._link()
        if link is not None:
            link.block()
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.end)

    def end(self) -> None:
        """Now, if there is one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._over.set()
        link = self._link()
        if link is not None:
            link.unblock()
