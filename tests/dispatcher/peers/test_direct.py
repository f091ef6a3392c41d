"""Messages without acknowledgement on their way to another dispatcher: `services.dispatcher.peers.peer`."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cloudhub.v1.dispatcher_pb2 import NodeOutcome
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.peer_pb2 import DirectMessage, SendDirectRequest, SendDirectResponse
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.peers import peer as module
from services.dispatcher.peers.peer import Peer
from services.runtime.errors import Unavailable

BODY = b"x" * 1000


class Stub:
    """The other dispatcher: takes each request once `open` is set."""

    def __init__(self) -> None:
        self.requests: list[SendDirectRequest] = []
        self.open = asyncio.Event()
        self.open.set()

    async def SendDirect(self, request: SendDirectRequest, timeout: float) -> SendDirectResponse:
        """See peer.proto."""
        self.requests.append(request)
        await self.open.wait()
        return SendDirectResponse(outcomes=[NodeOutcome(node_id=one.node_id) for one in request.messages])


@asynccontextmanager
async def calling(stub: Stub) -> AsyncIterator[Peer]:
    """The peer as a dispatcher has it, which calls the stub."""
    nothing: Any = None
    peer = Peer(DispatcherPeer(dispatcher_id="d2"), *(nothing,) * 5)
    peer._stub = stub
    running = asyncio.create_task(peer._direct.run())
    yield peer
    running.cancel()
    await asyncio.wait([running])


def messages(count: int, prefix: str = "n") -> list[DirectMessage]:
    return [
        DirectMessage(node_id=f"{prefix}{number}", message=Message(content=BODY), size_bytes=len(BODY))
        for number in range(count)
    ]


async def test_a_call_carries_so_many_messages_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What others sent is in the same call or the next one; each gets its own outcomes, in order."""
    monkeypatch.setattr(module, "MOST_MESSAGES_PER_CALL", 10)
    stub = Stub()
    async with calling(stub) as peer:
        large, small = await asyncio.gather(peer.direct(messages(25)), peer.direct(messages(1, "bystander-")))
        assert [one.node_id for one in large] == [f"n{number}" for number in range(25)]
        assert [one.node_id for one in small] == ["bystander-0"]
        assert [len(one.messages) for one in stub.requests] == [10, 10, 6]
        stub.requests.clear()
        monkeypatch.setattr(module, "MOST_BYTES_PER_CALL", 3 * (len(BODY) + 320))
        await peer.direct(messages(7))
        assert [len(one.messages) for one in stub.requests] == [3, 3, 1]
        stub.requests.clear()
        monkeypatch.setattr(module, "MOST_BYTES_PER_CALL", 10)
        await peer.direct(messages(2))
        assert [len(one.messages) for one in stub.requests] == [1, 1]


async def test_so_many_calls_wait_for_one_dispatcher_and_another_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A dispatcher that does not answer costs those who want something of it."""
    monkeypatch.setattr(module, "MOST_CALLS_WAITING", 4)
    slow, good = Stub(), Stub()
    slow.open.clear()
    async with calling(slow) as peer, calling(good) as other:
        waiting = [asyncio.ensure_future(peer.direct(messages(1)))]
        while not slow.requests:  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0)
        waiting += [asyncio.ensure_future(peer.direct(messages(1))) for _ in range(4)]
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="4 calls are waiting"):
            await peer.direct(messages(1))
        assert len(await other.direct(messages(1))) == 1
        slow.open.set()
        assert [len(one) for one in await asyncio.gather(*waiting)] == [1] * 5
