"""What becomes of connections when the listener ends."""

import asyncio
import socket
import ssl
from typing import Any

import pytest

from services.enrolment.listener import EnrolmentListener
from services.enrolment.metrics import EnrolmentMetrics
from services.runtime.acceptor import Accepted
from services.runtime.clock import SystemClock
from services.runtime.rate_limit import RateLimit
from tests.support.enrolment import EnrolledHub
from tests.support.processes import eventually


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


async def test_a_client_that_does_not_read_its_answer_is_cut_and_keeps_nobodys_place(
    enrolled: EnrolledHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place at work is another's as soon as it is answered."""
    monkeypatch.setattr("services.enrolment.listener._LINGER_SECONDS", 0.5)
    openings = enrolled.app.listener._openings

    def ask() -> ssl.SSLSocket:
        connected = socket.create_connection(("127.0.0.1", enrolled.app.port))
        secure = enrolled.context().wrap_socket(connected, server_hostname="localhost")
        secure.sendall(b"GET /ca.crt HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return secure

    deaf = await asyncio.to_thread(ask)
    await eventually(lambda: (openings.at_work, openings.waiting) == (0, 1), 5)
    assert (await enrolled.get("/ca.crt")).status == 200
    await eventually(lambda: openings.waiting == 0, 5)
    deaf.close()


async def test_a_connection_has_one_request(enrolled: EnrolledHub) -> None:
    """What comes behind it is not looked at: each has its own turn and its own rate."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", enrolled.app.port, ssl=enrolled.context(), server_hostname="localhost"
    )
    writer.write(b"GET /ca.crt HTTP/1.1\r\nHost: localhost\r\n\r\n" * 3)
    answers = await asyncio.wait_for(reader.read(), 10)
    assert answers.count(b"HTTP/1.1 200") == 1
    assert b"connection: close" in answers.lower()
    writer.close()
