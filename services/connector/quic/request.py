"""The request for a link on the control stream, and its answer (docs/protocol.md, "Over QUIC"). Pure."""

import json
from dataclasses import dataclass

import msgspec
from google.protobuf.message import DecodeError

from cloudhub.v1.edge_pb2 import EdgeHeader, EdgeMessage, EdgeRouter

_headers = msgspec.json.Decoder(dict[str, list[str]])


class RequestFault(Exception):
    """What the peer said first is no request; the text says why."""


@dataclass(frozen=True, slots=True)
class ControlRequest:
    """Who the peer says it is, as HTTP headers would say it."""

    message_id: str
    headers: tuple[tuple[str, str], ...]


def read_request(payload: bytes) -> ControlRequest:
    """Reads the first message of a control stream. Raises RequestFault."""
    try:
        message = EdgeMessage.FromString(payload)
    except DecodeError:
        raise RequestFault("the first message is not valid protobuf") from None
    if message.router.operation != "header":
        raise RequestFault(f"the first operation should be header, it is {message.router.operation[:40]!r}")
    try:
        headers = _headers.decode(message.content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RequestFault(f"the headers should be a JSON object of lists of texts: {error}") from None
    except RecursionError:
        raise RequestFault("the headers are nested too deeply") from None
    flat = tuple((name, value) for name, values in headers.items() for value in values)
    return ControlRequest(message.header.id, flat)


def answer_ack(request_id: str) -> bytes:
    """The link is open."""
    return _answer("ack", request_id, b"null")


def answer_nack(status: int, text: str, retry_after_seconds: float) -> bytes:
    """The link is refused, in the terms of an HTTP response."""
    content: dict[str, int | str] = {"status": status, "text": text}
    if retry_after_seconds > 0:
        content["retry_after_seconds"] = max(1, round(retry_after_seconds))
    return _answer("nack", "", json.dumps(content).encode())


def _answer(operation: str, request_id: str, content: bytes) -> bytes:
    return EdgeMessage(
        header=EdgeHeader(parent_id=request_id), router=EdgeRouter(operation=operation), content=content
    ).SerializeToString()
