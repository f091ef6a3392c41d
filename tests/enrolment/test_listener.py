"""What becomes of connections when the listener ends."""

import asyncio
from typing import Any

import pytest

from services.enrolment.listener import EnrolmentListener
from services.enrolment.metrics import EnrolmentMetrics
from services.runtime.acceptor import Accepted
from services.runtime.clock import SystemClock
from services.runtime.rate_limit import RateLimit


class Hasty(EnrolmentListener):
    """Ends in the very instant in which a connection's task was made."""

    running: asyncio.Task[None]

    async def begin(self, accepted: Accepted) -> None:
        await super().begin(accepted)
        for task in asyncio.all_tasks():
            if task is self.running or task.get_name() == "enrolment request":
                task.cancel()


def listener() -> Hasty:
    nobody: Any = None
    return Hasty(
        *("127.0.0.1:0", nobody, nobody, RateLimit(10.0, 10), EnrolmentMetrics()),
        SystemClock(),
        most_connections=8,
        request_seconds=5.0,
    )


@pytest.mark.parametrize("data", [b"", b"\x16"], ids=["silent", "its task not begun"])
async def test_a_connection_is_closed_when_the_listener_ends(data: bytes) -> None:
    ending = listener()
    ending.running = asyncio.create_task(ending.run())
    reader, writer = await asyncio.open_connection("127.0.0.1", ending.port)
    writer.write(data)
    if not data:
        while not ending._acceptor.waiting:  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0)
        ending.running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ending.running
    async with asyncio.timeout(5):
        with pytest.raises((ConnectionError, EOFError)):
            if await reader.read() == b"":
                raise EOFError
    writer.close()
