"""What becomes of connections when the listener ends."""

import asyncio
from typing import Any
from unittest import mock

import pytest

from services.enrolment.listener import EnrolmentListener
from services.enrolment.metrics import EnrolmentMetrics
from services.runtime.clock import SystemClock
from services.runtime.rate_limit import RateLimit


async def test_a_connection_is_closed_whose_task_was_cancelled_before_it_began() -> None:
    """The listener is cancelled in the very instant in which it has accepted one."""
    nobody: Any = None
    listener = EnrolmentListener(
        *("127.0.0.1:0", nobody, nobody, RateLimit(10.0, 10), EnrolmentMetrics()),
        SystemClock(),
        most_connections=8,
        request_seconds=5.0,
    )
    with mock.patch.object(listener, "_room") as room:
        room.acquire = mock.AsyncMock(side_effect=[True, asyncio.CancelledError])
        running = asyncio.create_task(listener.run())
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        with pytest.raises(asyncio.CancelledError):
            await running
    async with asyncio.timeout(5):
        assert await reader.read() == b""
    writer.close()
