"""Publishes that another dispatcher sends for nodes it believes to be here: stored, handed on, answered."""

import asyncio
import time
from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from cloudhub.v1.dispatcher_pb2 import NodeOutcome
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.peer_pb2 import ForwardedMessage, ForwardRequest, ForwardResponse
from services.dispatcher.delivery import Delivery
from services.dispatcher.outbox.records import Accept, Accepted, Duplicate, Op, Result
from services.dispatcher.outcomes import tell
from services.dispatcher.publication import Publication, parse_version
from services.dispatcher.publishing import trace_write
from services.dispatcher.sizes import check_number
from services.runtime.errors import HubError, InvalidRequest
from services.runtime.interceptor import next_request
from services.runtime.names import check_node_id
from services.runtime.tracing import Tracing

HEARTBEAT_SECONDS = 0.5
MAX_OUTCOMES_PER_RESPONSE = 1024


def accepts_of(request: ForwardRequest, at_ms: int) -> list[Op]:
    """The operations of a request; InvalidRequest names the field that no checked publish can have."""
    check_number("messages", request.messages)
    return [
        Accept(one.node_id, _publication(f"messages[{index}]", one), at_ms)
        for index, one in enumerate(request.messages)
    ]


def _publication(at: str, one: ForwardedMessage) -> Publication:
    body, uid = one.message, one.uid
    try:
        message = Message.FromString(body)
    except DecodeError as error:
        raise InvalidRequest(f"{at}.message", f"should be an encoded Message: {error}") from error
    message_id, resource, version_text = message.id, message.resource, message.resource_version
    is_delete = message.operation == "delete"
    version = parse_version(version_text) if version_text else None
    if fault := check_node_id(one.node_id):
        raise InvalidRequest(f"{at}.node_id", fault)
    if not message_id or not message_id.isprintable():
        raise InvalidRequest(f"{at}.message.id", f"should be a message id; got {message_id[:64]!r}")
    if version is None and (version_text or not is_delete):
        raise InvalidRequest(
            f"{at}.message.resource_version", f"should be a version; got {version_text[:64]!r}"
        )
    if not uid and (is_delete or not resource):
        raise InvalidRequest(f"{at}.uid", "is missing: the object has no other name that stays its own")
    return Publication(
        message=message,
        body=body,
        acknowledged=True,
        key=uid or resource,
        uid=uid,
        version=version,
        is_delete=is_delete,
        is_answer=False,
        own_id=one.own_id,
        priority=one.priority,
        expires_at_ms=one.expires_at_ms,
        force=one.force,
        size_bytes=len(body),
        traceparent=message.traceparent,
        type_meta=one.type_meta,
    )


class ForwardIntake:
    """One stream, from the side of the owner."""

    def __init__(self, delivery: Delivery, tracing: Tracing) -> None:
        self._delivery = delivery
        self._tracing = tracing
        self._responses = [ForwardResponse()]
        self._ended = False
        self._wake = asyncio.Event()
        self._wake.set()  # the first response says that the stream is served

    async def serve(self, context: grpc.aio.ServicerContext[ForwardRequest, ForwardResponse]) -> None:
        """Until the caller ends it. Raises InvalidRequest, and Unavailable when too much waits already:
        what is unanswered then is the caller's to write."""
        fault: HubError | None = None
        async with asyncio.TaskGroup() as group:
            answering = group.create_task(self._answer(context), name="forward-answers")
            try:
                while (request := await next_request(context)) is not None:
                    self._take(request)
                answering.cancel()
            except HubError as error:
                fault = error
                # Not cancelled: gRPC could send no status behind a response that is on its way.
                self._ended = True
                self._wake.set()
        if fault is not None:
            raise fault

    def _take(self, request: ForwardRequest) -> None:
        started_ns = time.time_ns()
        ops = accepts_of(request, self._delivery.wall_ms())

        def done(results: Sequence[Result | Exception]) -> None:
            for op, result in zip(ops, results, strict=True):
                self._came(op, result, started_ns)
            self._wake.set()

        self._delivery.writer.submit(ops, done)

    def _came(self, op: Op, result: Result | Exception, started_ns: int) -> None:
        if len(self._responses[-1].outcomes) >= MAX_OUTCOMES_PER_RESPONSE:
            self._responses.append(ForwardResponse())
        response = self._responses[-1]
        outcome: NodeOutcome = response.outcomes.add()
        tell(outcome, result)
        assert isinstance(op, Accept), "nothing else is forwarded"
        if op.node_id not in self._delivery.sessions:
            response.not_here.append(op.node_id)
        if isinstance(result, (Accepted, Duplicate)):
            if isinstance(result, Accepted) and self._tracing.enabled:
                trace_write(self._tracing, op.publication.traceparent, result.row, started_ns)
            self._delivery.committed(op.node_id, result)

    async def _answer(self, context: grpc.aio.ServicerContext[Any, ForwardResponse]) -> None:
        while not self._ended:
            try:
                async with asyncio.timeout(HEARTBEAT_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass  # an empty one says that this dispatcher is there
            self._wake.clear()
            responses, self._responses = self._responses, [ForwardResponse()]
            try:
                for response in responses:
                    await context.write(response)
            except grpc.aio.BaseError:
                return  # the caller is gone, and gRPC has not cancelled the call yet
