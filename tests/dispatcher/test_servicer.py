"""The dispatcher's public calls where a caller goes away: `services.dispatcher.servicer`."""

import asyncio
from typing import Any, cast

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.publishing import Publishing
from services.dispatcher.servicer import DispatcherServicer
from services.dispatcher.upstream.subscriptions import UpstreamServicer


class GonePublisher:
    """A call whose publisher has sent some frames and is away when the first answer is written: then gRPC
    fails the write, before it cancels the call."""

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self.writes = 0

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def read(self) -> Any:
        if not self._frames:
            return grpc.aio.EOF
        self._frames -= 1
        return pb.PublishStreamRequest(
            requests=[pb.PublishRequest(message=Message(resource="a/b/c"), node_ids=["edge-1"])]
        )

    async def write(self, _: pb.PublishStreamResponse) -> None:
        self.writes += 1
        raise grpc.aio.InternalError('Failed "execute_batch"')


class CountedPublishing:
    """Stores whatever comes."""

    def __init__(self) -> None:
        self.stored = 0

    async def publish(self, requests: list[pb.PublishRequest], _: str) -> list[pb.PublishResponse]:
        await asyncio.sleep(0)
        self.stored += len(requests)
        return [pb.PublishResponse() for _ in requests]


async def test_a_publisher_that_goes_away_ends_its_call_quietly() -> None:
    """Invariant 10: no answer is tried after the first that could not be written; what was sent is stored."""
    publishing, publisher = CountedPublishing(), GonePublisher(frames=100)
    servicer = DispatcherServicer(cast("Publishing", publishing), cast("UpstreamServicer", None))
    async with asyncio.timeout(10):
        await servicer.PublishStream(None, cast("Any", publisher))
    assert publishing.stored == 100
    assert publisher.writes == 1
