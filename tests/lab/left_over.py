"""Invariant 6: what the processes of a hub hold at the end, beside what they held at the beginning."""

import asyncio
import itertools

from chaos.resources import POOLED_THREADS, Resources, read_resources
from demo.hub import SERVICES, Hub

BASELINE_LOOKS = 4
LOOK_SECONDS = 0.5
LET_GO_SECONDS = 15.0
LOOKS_PER_COLLECTION = 6
"""A collection holds a process with thousands of links up for most of a second."""
_POOLED = {"threads": POOLED_THREADS, "file_descriptors": 16}
"""Of these a process may have so many more than before: gRPC keeps some, up to a bound."""
_CACHED = frozenset({"deadlines", "locations"})
"""These fall later, or are bounded caches (docs/operations/cookbook-3-nodes.md)."""


class LeftOver:
    """Looks at the first process of each service."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._before: list[dict[str, Resources]] = []

    async def look_before(self) -> None:
        """Several times: a request at work is nothing that stays."""
        self._before = [await self._resources(collect_garbage=True)]
        for _ in range(BASELINE_LOOKS - 1):
            await asyncio.sleep(LOOK_SECONDS)
            self._before.append(await self._resources(collect_garbage=False))

    async def breaches(self) -> list[str]:
        """What stays more than before, however long one looks."""
        try:
            async with asyncio.timeout(LET_GO_SECONDS):
                looks = itertools.cycle((False,) * (LOOKS_PER_COLLECTION - 1) + (True,))
                while left_over := await self._left_over(collect_garbage=next(looks)):  # noqa: ASYNC110
                    # Nobody tells.
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            return left_over
        return []

    async def _resources(self, *, collect_garbage: bool) -> dict[str, Resources]:
        found = {}
        for service in SERVICES:
            first = self._hub.of(service)[0]
            found[service] = await read_resources(
                service, first.address, self._hub.security, collect_garbage=collect_garbage
            )
        return found

    async def _left_over(self, *, collect_garbage: bool) -> list[str]:
        """What there is more of than at any of the looks before."""
        found = await self._resources(collect_garbage=collect_garbage)
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
