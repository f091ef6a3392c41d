"""What a healthy hub may answer to any request at all."""

from typing import cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cloudhub.v1 import dispatcher_pb2
from fuzz.requests import Call
from services.runtime.interceptor import ERROR_DOMAIN

# The caller's fault, named by the field.
_FIELD = grpc.StatusCode.INVALID_ARGUMENT
# About what exists, not about what was said.
_STATE = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


def fault_of_error(call: Call, error: grpc.aio.AioRpcError) -> str:
    """What is wrong with a failed call, empty if nothing."""
    code = error.code()
    if code not in (_FIELD, *_STATE):
        return f"{call!r} was answered {code.name}: {error.details()}"
    info = error_details_pb2.ErrorInfo()
    status = rpc_status.from_call(cast("grpc.Call", error))
    if status is None or not any(detail.Unpack(info) for detail in status.details):
        return f"{call!r} was answered {code.name} without ErrorInfo: {error.details()}"
    if info.domain != ERROR_DOMAIN or not info.reason or not error.details():
        return f"{call!r} was answered an empty error: {info} {error.details()!r}"
    if code is _FIELD and not info.metadata.get("field"):
        return f"{call!r} was refused without the field: {error.details()}"
    return ""


def fault_of_answer(call: Call, answer: Message) -> str:
    """What is wrong with an answer, empty if nothing: no input makes the store unavailable."""
    if isinstance(answer, dispatcher_pb2.PublishStreamResponse):
        outcomes = [outcome for one in answer.responses for outcome in one.outcomes]
    elif isinstance(answer, dispatcher_pb2.PublishResponse):
        outcomes = list(answer.outcomes)
    else:
        return ""
    for outcome in outcomes:
        if outcome.outcome in (dispatcher_pb2.OUTCOME_UNAVAILABLE, dispatcher_pb2.OUTCOME_UNSPECIFIED):
            return f"{call!r} was answered {outcome}"
        if outcome.outcome == dispatcher_pb2.OUTCOME_REJECTED and not (outcome.field and outcome.detail):
            return f"{call!r} was rejected without a field: {outcome}"
    return ""
