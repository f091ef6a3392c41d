"""A hub on a thread of its own, with an edge that behaves well: what fuzzing must not disturb."""

import asyncio
import tempfile
import threading
from collections.abc import Awaitable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import psutil
import uvloop

from cloudhub.v1 import dispatcher_pb2
from tests.support.hub import RunningHub, StockEdge, request, running_hub

T = TypeVar("T")

# Not among the nodes that requests name.
GOOD_NODE = "well-behaved"
# From publish to edge on a machine that is busy with the fuzzing itself.
IN_TIME_SECONDS = 5.0
CALL_SECONDS = 30.0
# Channels of gRPC and threads of the store come and go by themselves.
_SLACK = 6


class FuzzedHub:
    """Made by `fuzzed_hub`; its methods are called from another thread than the hub's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, hub: RunningHub) -> None:
        self._loop = loop
        self.hub = hub
        self._edge: StockEdge | None = None
        self._version = 0
        self._raised: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: self._raised.append(context))

    def wait(self, work: Awaitable[T]) -> T:
        """Runs work on the hub's loop and waits for it."""

        async def run() -> T:
            async with asyncio.timeout(CALL_SECONDS):
                return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def nothing_raised(self) -> None:
        """AssertionError if a callback or a task of the hub has failed."""
        assert not self._raised, self._raised

    async def exchange(self) -> None:
        """A message to the edge that behaves well, and its acknowledgement. AssertionError if it is late or
        the link is not the one that it was."""
        if self._edge is None:
            self._edge = await self.hub.open_edge(GOOD_NODE)
        self._version += 1
        wanted = request(GOOD_NODE, version=self._version, message_id=f"good-{self._version}")
        await self.hub.accept(wanted)
        message = await self._edge.next(IN_TIME_SECONDS)
        assert message["header"]["msg_id"] == wanted.message.id, message
        await self._edge.answer(message)
        await self.hub.until_state(
            GOOD_NODE, "uid-cm1", dispatcher_pb2.DELIVERY_STATE_ACKNOWLEDGED, IN_TIME_SECONDS
        )

    async def leftovers(self) -> tuple[int, int]:
        """Tasks of the loop and descriptors of the process."""
        return len(asyncio.all_tasks()), psutil.Process().num_fds()

    async def close(self) -> None:
        """Ends the edge's link."""
        if self._edge is not None:
            await self._edge.connection.close()


async def _settled(hub: FuzzedHub, tasks: int, descriptors: int, seconds: float = 10.0) -> str:
    """Empty when no more than these are left; else what is."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        now = await hub.leftovers()
        if now[0] <= tasks and now[1] <= descriptors:
            return ""
        if asyncio.get_running_loop().time() > deadline:
            names = sorted(str(task.get_coro()) for task in asyncio.all_tasks())
            return (
                f"{now[0]} tasks instead of {tasks}, {now[1]} descriptors instead of {descriptors}: {names}"
            )
        await asyncio.sleep(0.05)


@contextmanager
def fuzzed_hub(
    databases: Mapping[str, str] | None = None, connector: Mapping[str, Any] | None = None
) -> Iterator[FuzzedHub]:
    """A hub while the block lasts; `connector` changes settings of that service. At its end the edge that
    behaves well still gets its messages, and neither task nor descriptor is left over; AssertionError
    otherwise."""
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="fuzzed hub")
    thread.start()
    try:
        with tempfile.TemporaryDirectory(prefix="cloudhub-fuzz-") as folder:
            fuzzed = FuzzedHub(loop, running_hub(Path(folder), databases=databases, connector=connector))
            fuzzed.wait(fuzzed.hub.__aenter__())
            try:
                fuzzed.wait(fuzzed.exchange())
                tasks, descriptors = fuzzed.wait(fuzzed.leftovers())
                yield fuzzed
                fuzzed.wait(fuzzed.exchange())
                fuzzed.nothing_raised()
                left = fuzzed.wait(_settled(fuzzed, tasks + _SLACK, descriptors + _SLACK))
                assert not left, left
            finally:
                fuzzed.wait(fuzzed.close())
                fuzzed.wait(fuzzed.hub.close())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
