"""The stream on which another dispatcher is asked for what nodes say: `services.dispatcher.peers.peer`."""

import asyncio
from typing import Any

import grpc
import pytest

from cloudhub.v1.peer_pb2 import RelayRequest
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.peers.peer import Peer


class End:
    """What is to be said: something each time."""

    def __init__(self) -> None:
        self.wake = asyncio.Event()

    def say(self, wanted: object) -> RelayRequest:
        return RelayRequest()


class Relays:
    """One stream."""

    def __init__(self) -> None:
        self.end, self.closed = End(), False

    def open(self) -> End:
        return self.end

    def wanted(self) -> tuple[list[str], int]:
        return [], 0

    def close(self, end: End) -> None:
        self.closed = True


class Counted:
    """A gauge or a counter."""

    def inc(self) -> None:
        """Once more."""


class Metrics:
    """Those of a stream that comes and goes."""

    attached = lost = Counted()


class Call:
    """One that takes so many requests and has ended before the next; its reader hears of it after that, by an
    error if there is one."""

    def __init__(self, takes: int, error: Exception | None = None) -> None:
        self._takes, self._error = takes, error
        self._tried = asyncio.Event()

    async def write(self, request: RelayRequest) -> None:
        if not self._takes:
            self._tried.set()
            raise asyncio.InvalidStateError("RPC already finished.")
        self._takes -= 1

    async def initial_metadata(self) -> None:
        """There is none."""

    async def read(self) -> Any:
        await self._tried.wait()
        if self._error:
            raise self._error
        return grpc.aio.EOF


def peer_with(relays: Relays) -> Peer:
    nothing: Any = None
    other: Any = relays
    metrics: Any = Metrics()
    own = DispatcherPeer(dispatcher_id="d1")
    return Peer(DispatcherPeer(dispatcher_id="d2"), own, other, metrics, nothing, nothing)


async def test_a_stream_that_ended_before_it_is_written_to_is_over_and_no_fault() -> None:
    """The other dispatcher stops in the instant in which a subscriber comes here: no reason to die."""
    relays = Relays()
    peer = peer_with(relays)
    relays.end.wake.set()
    await asyncio.wait_for(peer._run_relay(Call(takes=1)), 5)
    assert relays.closed
    assert peer.is_attached


async def test_a_stream_that_never_began_says_why() -> None:
    relays = Relays()
    peer = peer_with(relays)
    error = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "nobody is there"
    )
    with pytest.raises(ExceptionGroup) as raised:
        await asyncio.wait_for(peer._run_relay(Call(takes=0, error=error)), 5)
    assert raised.value.exceptions == (error,)
    assert relays.closed
    assert not peer.is_attached
