"""Invariant 6: what the processes of a hub hold at the end, beside what they held at the beginning."""

import asyncio

from chaos.resources import Resources, read_resources
from demo.hub import SERVICES, Hub

BASELINE_LOOKS = 4
LOOK_SECONDS = 0.5
LET_GO_SECONDS = 15.0
_POOLED = {"threads": 8, "file_descriptors": 16}
"""Of these a process may have so many more than before: gRPC keeps some, up to a bound."""
_CACHED = frozenset({"deadlines", "locations"})
"""These fall later, or are bounded caches (docs/operations.md)."""


class LeftOver:
    """Looks at the first process of each service."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._before: list[dict[str, Resources]] = []

    async def look_before(self) -> None:
        """Several times: a request at work is nothing that stays."""
        self._before = [await self._resources()]
        for _ in range(BASELINE_LOOKS - 1):
            await asyncio.sleep(LOOK_SECONDS)
            self._before.append(await self._resources())

    async def breaches(self) -> list[str]:
        """What stays more than before, however long one looks."""
        try:
            async with asyncio.timeout(LET_GO_SECONDS):
                while left_over := await self._left_over():  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            return left_over
        return []

    async def _resources(self) -> dict[str, Resources]:
        return {
            service: await read_resources(service, self._hub.of(service)[0].address, self._hub.security)
            for service in SERVICES
        }

    async def _left_over(self) -> list[str]:
        """What there is more of than at any of the looks before."""
        found = await self._resources()
        grown: set[str] | None = None
        for before in self._before:
            more = {
                f"{service}: {name} {now}, {then} before"
                for service, resources in found.items()
                for name, (then, now) in resources.left_over(before[service]).items()
                if name not in _CACHED and now > then + _POOLED.get(name, 0)
            }
            if not more:
                return []
            grown = grown or more
        return sorted(grown or ())
