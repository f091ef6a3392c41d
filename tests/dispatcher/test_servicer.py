"""The dispatcher's public calls where a caller goes away: `services.dispatcher.servicer`."""

import asyncio
from typing import Any, cast

import grpc
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox.contract import Outbox
from services.dispatcher.publishing import Publishing
from services.dispatcher.servicer import DispatcherServicer, Explain
from services.dispatcher.upstream.subscriptions import UpstreamServicer
from services.runtime.errors import InvalidRequest


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
        self.under_way = self.most_under_way = 0

    async def publish(self, requests: list[pb.PublishRequest], _: str) -> list[pb.PublishResponse]:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        for _turn in range(10):
            await asyncio.sleep(0)
        self.under_way -= 1
        self.stored += len(requests)
        return [
            pb.PublishResponse(
                message_id=request.message.id,
                outcomes=[pb.NodeOutcome(node_id=node_id) for node_id in request.node_ids],
            )
            for request in requests
        ]


class Publisher:
    """A call that sends these frames and keeps what is answered."""

    def __init__(self, *frames: pb.PublishStreamRequest) -> None:
        self._frames = list(frames)
        self.answers: list[pb.PublishStreamResponse] = []

    def invocation_metadata(self) -> tuple[()]:
        return ()

    async def read(self) -> Any:
        return self._frames.pop(0) if self._frames else grpc.aio.EOF

    async def write(self, answer: pb.PublishStreamResponse) -> None:
        self.answers.append(answer)


def frame(requests: int, nodes: int, name: str = "m") -> pb.PublishStreamRequest:
    return pb.PublishStreamRequest(
        requests=[
            pb.PublishRequest(message=Message(id=f"{name}{number}"), node_ids=["n" * 253] * nodes)
            for number in range(requests)
        ]
    )


def served(publishing: CountedPublishing) -> DispatcherServicer:
    return DispatcherServicer(
        *(cast("Publishing", publishing), cast("UpstreamServicer", None), cast("Outbox", None)),
        cast("Explain", None),
    )


@pytest.mark.parametrize(("requests", "nodes"), [(1, 10_001), (1024, 10), (1025, 1)])
async def test_a_frame_that_asks_for_too_much_is_refused_before_it_is_looked_at(
    requests: int, nodes: int
) -> None:
    """C45: the product of requests and nodes counts."""
    publishing, publisher = CountedPublishing(), Publisher(frame(requests, nodes))
    with pytest.raises(InvalidRequest, match=r"at most (10000|1024)"):
        await served(publishing).PublishStream(None, cast("Any", publisher))
    assert publishing.stored == 0


async def test_a_call_that_asks_for_too_much_is_refused() -> None:
    """C45."""
    publishing = CountedPublishing()
    request = frame(1, 10_001).requests[0]
    with pytest.raises(InvalidRequest, match="10001 nodes") as refused:
        await served(publishing).Publish(request, cast("Any", Publisher()))
    assert refused.value.field == "node_ids"


async def test_large_frames_of_a_stream_go_one_after_the_other_and_their_answers_fit() -> None:
    """C45: each in as many parts as a caller can take, in order; small ones go together."""
    publishing = CountedPublishing()
    publisher = Publisher(frame(1000, 10, "a"), frame(2, 5000, "b"), frame(1, 10_000, "c"))
    await served(publishing).PublishStream(None, cast("Any", publisher))
    assert publishing.most_under_way == 1
    assert all(answer.ByteSize() < 3 * 1024 * 1024 for answer in publisher.answers)
    ids = [response.message_id for answer in publisher.answers for response in answer.responses]
    assert ids == [*(f"a{number}" for number in range(1000)), "b0", "b1", "c0"]
    small = Publisher(*(frame(1, 1000) for _ in range(3)))
    await served(publishing).PublishStream(None, cast("Any", small))
    assert publishing.most_under_way == 3
    assert len(small.answers) == 3


async def test_a_publisher_that_goes_away_ends_its_call_quietly() -> None:
    """Invariant 10: no answer is tried after the first that could not be written; what was sent is stored."""
    publishing, publisher = CountedPublishing(), GonePublisher(frames=100)
    servicer = DispatcherServicer(
        *(cast("Publishing", publishing), cast("UpstreamServicer", None), cast("Outbox", None)),
        cast("Explain", None),
    )
    async with asyncio.timeout(10):
        await servicer.PublishStream(None, cast("Any", publisher))
    assert publishing.stored == 100
    assert publisher.writes == 1
