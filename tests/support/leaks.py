"""What links that came and went have left over, in counts and, by tracemalloc, in memory."""

import asyncio
import gc
import tracemalloc
from collections.abc import Callable, Mapping
from pathlib import Path

from chaos.resources import POOLED_THREADS, Resources, read_resources
from tests.support.churn import Churn, WebSocketChurn
from tests.support.hub import running_hub
from tests.support.processes import SERVICES
from tests.support.quic_churn import QuicChurn
from tests.support.quic_peer import QuicPeers

_FRAMES = 8
_ROOT = str(Path(__file__).parent.parent.parent)
# Under tracemalloc a round of openings over QUIC takes seconds.
_KEEPALIVE_SECONDS = 6.0
# Nothing of a link may be there once it has gone; deadlines of an ended session go by their time.
_GONE = {
    "connector": ("connections", "links", "announced_links", "queued_frames", "dispatcher_stream_bytes"),
    "dispatcher": (
        *("links", "openings", "sessions", "stranded_sessions", "session_ends", "queued_messages"),
        *("direct_messages", "deadlines", "outbox_operations"),
    ),
    "sessions": (),
}


async def when_quiet(
    address: Callable[[str], str], seconds: float, before: Mapping[str, Resources] | None = None
) -> dict[str, Resources]:
    """What each service of a hub holds, once nothing of any link is left; `address` gives the gRPC address of
    a service. AssertionError with what is still there if that takes longer.

    Nor may there be more than there was `before`, but for a few threads of a pool: of a call that is just
    being served there is, for an instant."""
    held: dict[str, Resources] = {}
    left: dict[str, int] = {}
    try:
        async with asyncio.timeout(seconds):
            while not held or left:
                held = {service: await read_resources(service, address(service)) for service in SERVICES}
                left = {
                    f"{service} {name}": count
                    for service, names in _GONE.items()
                    for name in names
                    if (count := held[service].counts[name])
                }
                for service, former in (before or {}).items():
                    for name, (then, now) in held[service].left_over(former).items():
                        if name != "threads" or now > then + POOLED_THREADS:
                            left[f"{service} {name} above {then}"] = now
                if left:
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"after {seconds:g} s there is still: {left}") from None
    return held


async def growth(folder: Path, connections: int, lines: int = 8, *, over_quic: bool = False) -> str:
    """Which places of the code hold most of what so many connections have left over in a hub of this process
    that had seen as many before."""
    async with running_hub(
        folder,
        dispatcher={"keepalive_seconds": _KEEPALIVE_SECONDS},
        connector={"opening_seconds": _KEEPALIVE_SECONDS},
    ) as hub:
        nodes = [f"edge-{number}" for number in range(8)]
        churn: Churn
        if over_quic:
            churn = QuicChurn(QuicPeers(hub.authority, hub.connectors[0].app.quic_port), nodes, 8)
        else:
            churn = WebSocketChurn(hub.peers, nodes, 8)
        await churn.run(connections)
        await when_quiet(hub.address, 20)
        tracemalloc.start(_FRAMES)
        try:
            await churn.run(connections)
            await when_quiet(hub.address, 20)
            gc.collect()
            found = tracemalloc.take_snapshot()
        finally:
            tracemalloc.stop()
    return "\n".join(map(_told, found.statistics("traceback")[:lines]))


def _told(found: tracemalloc.Statistic) -> str:
    frames = [frame for frame in found.traceback if frame.filename.startswith(_ROOT)]
    where = " < ".join(
        f"{frame.filename.removeprefix(_ROOT + '/')}:{frame.lineno}" for frame in reversed(frames)
    )
    return f"{found.size} bytes in {found.count} blocks: {where or found.traceback}"
