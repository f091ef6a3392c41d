"""The edge's side of the link's JSON messages: what to do with each, and how answers look.

Pure: bytes and values in, values and bytes out. The rules are those of docs/protocol.md: an edge
stores and then acknowledges, it does not compare versions, it swallows what it does not know.
"""

from collections.abc import Container
from dataclasses import dataclass
from enum import Enum

import msgspec

RAW_NULL = msgspec.Raw(b"null")


class Header(msgspec.Struct, omit_defaults=True):
    """`header` of a message; `timestamp` in milliseconds since the Unix epoch."""

    msg_id: str = ""
    parent_msg_id: str = ""
    timestamp: int = 0
    resourceversion: str = ""
    sync: bool = False
    traceparent: str = ""


class Route(msgspec.Struct, omit_defaults=True):
    """`route` of a message."""

    source: str = ""
    group: str = ""
    operation: str = ""
    resource: str = ""


class Message(msgspec.Struct):
    """One message; `content` is one JSON value as it came, unparsed."""

    header: Header
    route: Route
    content: msgspec.Raw = RAW_NULL


class _Metadata(msgspec.Struct):
    uid: str = ""


class _Object(msgspec.Struct):
    metadata: _Metadata | None = None


class MalformedFrame(Exception):
    """The frame is no JSON message; a stock edge drops its link over it."""


class Kind(Enum):
    """What a message makes the edge do."""

    STORE = "store"
    """Keep the object under its resource path, then acknowledge."""
    DELETE = "delete"
    """Remove what is under the resource path, then acknowledge."""
    ANSWER = "answer"
    """Hand an answer to the request or upload that waits for it."""
    SWALLOW = "swallow"
    """Nothing; no acknowledgement ever comes."""


@dataclass(frozen=True, slots=True)
class Step:
    """What to do with one message."""

    kind: Kind
    uid: str = ""
    """STORE and DELETE: `metadata.uid` of the content; empty if it has none."""
    only_uid: bool = False
    """DELETE: leave an object with another uid alone (pods only)."""
    acknowledge: bool = False
    """Acknowledge, once everything the step changes is durable."""
    reason: str = ""
    """SWALLOW: why, for counters."""


_decoder = msgspec.json.Decoder(Message)
_objects = msgspec.json.Decoder(_Object)
_encoder = msgspec.json.Encoder()

_SWALLOW_USER = Step(Kind.SWALLOW, reason="user_data")
_SWALLOW_KEEPALIVE = Step(Kind.SWALLOW, reason="keepalive")
_SWALLOW_UNASKED = Step(Kind.SWALLOW, reason="unasked_answer")
_SWALLOW_OPERATION = Step(Kind.SWALLOW, reason="unknown_operation")
_ANSWER = Step(Kind.ANSWER)
_ANSWER_ACKNOWLEDGED = Step(Kind.ANSWER, acknowledge=True)


def decode(frame: bytes) -> Message:
    """The message in a frame. Raises MalformedFrame, naming what is wrong."""
    try:
        return _decoder.decode(frame)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise MalformedFrame(str(error)) from None


def uid_of(content: msgspec.Raw) -> str:
    """`metadata.uid` of a JSON content; empty if the content is no object or has none."""
    try:
        found = _objects.decode(content).metadata
    except msgspec.DecodeError:
        return ""
    return found.uid if found else ""


def is_pod(resource: str) -> bool:
    """Whether `<namespace>/<type>/<name>` names a pod."""
    parts = resource.split("/")
    return len(parts) == 3 and parts[1] == "pod"


def decide(message: Message, waiting: Container[str]) -> Step:
    """What to do with a message; `waiting` holds the ids of our own unanswered requests and uploads."""
    route = message.route
    operation = route.operation
    if operation in ("response", "error"):
        if message.header.parent_msg_id not in waiting:
            return _SWALLOW_UNASKED
        # "OK" and errors are sent unacknowledged; an answer with content is to be acknowledged.
        wanted = operation == "response" and bytes(message.content) != b'"OK"'
        return _ANSWER_ACKNOWLEDGED if wanted else _ANSWER
    if operation == "keepalive":
        return _SWALLOW_KEEPALIVE
    if route.group == "user":
        return _SWALLOW_USER
    if operation in ("insert", "update"):
        return Step(Kind.STORE, uid_of(message.content), acknowledge=True)
    if operation == "delete":
        uid = uid_of(message.content)
        only_uid = bool(uid) and is_pod(route.resource)
        return Step(Kind.DELETE, uid, only_uid=only_uid, acknowledge=True)
    return _SWALLOW_OPERATION


def encode(message: Message) -> bytes:
    """A frame's bytes; empty fields are left out."""
    return _encoder.encode(message)


_OK = msgspec.Raw(b'"OK"')


def acknowledgement(message: Message, msg_id: str, now_ms: int, traceparent: str = "") -> bytes:
    """The frame that acknowledges `message`, as a stock edge makes it."""
    route = message.route
    return _encoder.encode(
        Message(
            Header(msg_id, message.header.msg_id, now_ms, traceparent=traceparent),
            Route(route.source, "resource", "response", route.resource),
            _OK,
        )
    )


def keepalive(msg_id: str, now_ms: int) -> bytes:
    """The frame that keeps a session alive."""
    return _encoder.encode(
        Message(
            Header(msg_id, timestamp=now_ms),
            Route("websocket", "resource", "keepalive", "node"),
            msgspec.Raw(b'"ping"'),
        )
    )


def is_sampled(traceparent: str) -> bool:
    """True if a W3C trace context (version 00) has its sampled flag set."""
    return len(traceparent) == 55 and traceparent[-1] in "13579bdf"
