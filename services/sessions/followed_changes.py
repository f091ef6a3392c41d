"""Tells watchers of this process what other replicas change."""

import asyncio

from services.runtime.errors import StoreUnavailable
from services.sessions.notices import Notices
from services.sessions.registry import Registry

_SECONDS = 0.5
MOST_PER_LOOK = 1000


class FollowedChanges:
    """Looks for sessions whose change number grew. `run` must be awaited by the owner.

    Numbers grow in the order of the commits, so what is committed later never stands before what was
    read: nothing is missed however long a look takes, and a database that is away only delays it.
    """

    def __init__(self, registry: Registry, notices: Notices) -> None:
        self._registry = registry
        self._notices = notices
        # What was read or passed over: changes up to this number and node.
        self._reached: tuple[int, str] | None = None

    async def run(self) -> None:
        """Looks twice a second until cancelled; while nobody watches, that is one row."""
        while True:
            try:
                await self.look()
            except StoreUnavailable:
                pass  # the reaper says so; the next look begins where this one ended
            await asyncio.sleep(_SECONDS)

    async def look(self) -> None:
        """Tells what changed since the last look; raises StoreUnavailable."""
        last = await self._registry.last_change()
        if self._reached is None or not self._notices.watched:
            self._reached = _after(last)
        while self._reached < _after(last):
            found = await self._registry.changes_after(*self._reached, MOST_PER_LOOK)
            self._notices.tell_changed(found)
            if len(found) < MOST_PER_LOOK:
                # All that there is. What moved on while it was read stands behind it.
                self._reached = _after(max(last, found[-1].number if found else 0))
            else:
                self._reached = (found[-1].number, found[-1].session.node_id)
        self._notices.forget_told(self._reached[0])


def _after(number: int) -> tuple[int, str]:
    """Behind all nodes of this change, in whatever order a database sorts ids."""
    return number + 1, ""
