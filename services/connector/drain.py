"""Closes links at a set rate, so that edges come back elsewhere without a storm."""

import asyncio

from cloudhub.v1 import link_pb2
from services.connector.links import Links

_TICK_SECONDS = 0.05


def due(links_per_second: float, elapsed: float) -> int:
    """How many links should be closed `elapsed` seconds after the start; the first at once."""
    return 1 + int(links_per_second * elapsed)


async def drain_links(links: Links, links_per_second: float, deadline_seconds: float) -> int:
    """Closes every link, oldest first; at the deadline what is left at once. Answers how many.

    The caller has stopped accepting. Two drains at a time are harmless: each closes what it finds.
    """
    loop = asyncio.get_running_loop()
    started = loop.time()
    closed = 0
    while len(links):
        elapsed = loop.time() - started
        present = links.admitted()
        over = elapsed >= deadline_seconds
        count = len(present) if over else max(0, due(links_per_second, elapsed) - closed)
        for link in present[:count]:
            link.close(link_pb2.CLOSE_REASON_DRAINED, "")
            closed += 1
        if over:
            # Announced links have a deadline of their own and are refused at their verdict's.
            break
        await asyncio.sleep(min(_TICK_SECONDS, max(0.001, deadline_seconds - elapsed)))
    return closed
