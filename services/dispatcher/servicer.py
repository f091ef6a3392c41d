"""DispatcherService: speaks gRPC and nothing else."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceServicer
from services.dispatcher.explanation import Explained
from services.dispatcher.node_deletion import node_to_delete
from services.dispatcher.outbox.contract import Outbox
from services.dispatcher.publishing import LARGE_OUTCOMES, Publishing
from services.dispatcher.upstream.subscriptions import UpstreamServicer
from services.runtime.batching import portions
from services.runtime.errors import InvalidRequest
from services.runtime.interceptor import next_request
from services.runtime.names import check_node_id
from services.runtime.rpc import MAX_ANSWER_BYTES
from services.runtime.tracing import traceparent_in

Explain = Callable[[str, str], Awaitable[Explained]]
"""Of a node and the id of a message."""
# Of one call, and of all requests of one frame together: each node of each request has one.
MAX_OUTCOMES = 10_000
MOST_REQUESTS_PER_FRAME = 1024
# Frames of one stream that are being stored while the next ones are read.
MOST_FRAMES_UNDER_WAY = 16


def _check(requests: list[pb.PublishRequest]) -> None:
    if len(requests) > MOST_REQUESTS_PER_FRAME:
        raise InvalidRequest("requests", f"{len(requests)} in one frame; at most {MOST_REQUESTS_PER_FRAME}")
    outcomes = 0
    for request in requests:
        if not request.HasField("message"):
            raise InvalidRequest("message", "is missing")
        outcomes += len(request.node_ids)
    if outcomes > MAX_OUTCOMES:
        raise InvalidRequest(
            "node_ids", f"{outcomes} nodes, those of all requests together; at most {MAX_OUTCOMES}"
        )


def _is_large(requests: Sequence[pb.PublishRequest]) -> bool:
    return sum(len(request.node_ids) for request in requests) > LARGE_OUTCOMES


def _answers(responses: list[pb.PublishResponse]) -> Iterable[list[pb.PublishResponse]]:
    """The answer to a frame, in as many parts as a caller can take."""
    if sum(len(response.outcomes) for response in responses) <= LARGE_OUTCOMES:
        return (responses,)
    return portions(responses, lambda one: one.ByteSize() + 8, MOST_REQUESTS_PER_FRAME, MAX_ANSWER_BYTES)


class DispatcherServicer(DispatcherServiceServicer):
    """For cloud programs."""

    def __init__(
        self, publishing: Publishing, upstream: UpstreamServicer, outbox: Outbox, explain: Explain
    ) -> None:
        self._publishing = publishing
        self._upstream = upstream
        self._outbox = outbox
        self._explain = explain

    async def Publish(
        self, request: pb.PublishRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.PublishResponse:
        """See dispatcher.proto."""
        _check([request])
        if not request.node_ids and node_to_delete(request) is None:
            raise InvalidRequest("node_ids", "names no node")
        return (await self._publishing.publish([request], traceparent_in(context.invocation_metadata())))[0]

    async def PublishStream(  # type: ignore[override]  # the coroutine form, with context.read and write
        self, _: object, context: grpc.aio.ServicerContext[pb.PublishStreamRequest, pb.PublishStreamResponse]
    ) -> None:
        """See dispatcher.proto. Reads on while earlier frames are stored; answers in order."""
        traceparent = traceparent_in(context.invocation_metadata())
        under_way: asyncio.Queue[asyncio.Task[list[pb.PublishResponse]] | None] = asyncio.Queue(
            MOST_FRAMES_UNDER_WAY
        )

        async def answer() -> None:
            is_there = True
            while (task := await under_way.get()) is not None:
                responses = await task
                try:
                    for portion in _answers(responses) if is_there else ():
                        await context.write(pb.PublishStreamResponse(responses=portion))
                except grpc.aio.InternalError:
                    # The publisher has gone just now; what it published is stored and counts all the same.
                    is_there = False

        async with asyncio.TaskGroup() as group:
            group.create_task(answer(), name="publish-stream-answers")
            fault: InvalidRequest | None = None
            while fault is None:
                try:
                    frame = await next_request(context)
                    if frame is None:
                        break
                    requests = list(frame.requests)
                    _check(requests)
                except InvalidRequest as error:
                    fault = error
                    break
                published = group.create_task(self._publishing.publish(requests, traceparent))
                await under_way.put(published)
                if _is_large(requests) or any(node_to_delete(request) is not None for request in requests):
                    # A large one lets others have their turn meanwhile. One that deletes a node asks sessions
                    # first; what is published behind it belongs to the node's next life.
                    await asyncio.wait([published])
            await under_way.put(None)
        if fault is not None:
            raise fault

    async def Subscribe(
        self,
        request_iterator: AsyncIterator[pb.SubscribeRequest],
        context: grpc.aio.ServicerContext[pb.SubscribeRequest, pb.SubscribeResponse],
    ) -> AsyncIterator[pb.SubscribeResponse]:
        """See dispatcher.proto."""
        async for response in self._upstream.Subscribe(request_iterator, context):
            yield response

    async def FindUnknownNodes(
        self, request: pb.FindUnknownNodesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.FindUnknownNodesResponse:
        """See dispatcher.proto."""
        if len(request.node_ids) > MAX_OUTCOMES:
            raise InvalidRequest("node_ids", f"{len(request.node_ids)} nodes; at most {MAX_OUTCOMES}")
        fault = next(filter(None, map(check_node_id, request.node_ids)), None)
        if fault:
            raise InvalidRequest("node_ids", fault)
        wanted = list(dict.fromkeys(request.node_ids))
        known = await self._outbox.last_seqs(wanted) if wanted else {}
        return pb.FindUnknownNodesResponse(node_ids=[one for one in wanted if one not in known])

    async def ExplainMessage(
        self, request: pb.ExplainMessageRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.ExplainMessageResponse:
        """See dispatcher.proto."""
        if not request.message_id:
            raise InvalidRequest("message_id", "should be the id that the publish answered; it is empty")
        state, explanation = await self._explain(request.node_id, request.message_id)
        return pb.ExplainMessageResponse(state=state, explanation=explanation)
