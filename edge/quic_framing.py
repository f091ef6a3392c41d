"""What travels on the streams of a QUIC link (docs/protocol.md, "Over QUIC"): frames, and messages in them.

Pure. The node speaks JSON messages; they are turned into the link's protobuf messages here, and back.
"""

import json
import struct
from collections.abc import Iterable, Mapping

import msgspec
from google.protobuf.message import DecodeError

from cloudhub.v1.edge_pb2 import EdgeHeader, EdgeMessage, EdgeRouter
from edge import protocol
from edge.protocol import Header, MalformedFrame, Message, Route

MESSAGES_BEGIN = b"msg"
_HEADER = struct.Struct(">IBBI")
_VERSION = 0x01010100
_MESSAGE = 1


def framed(payload: bytes) -> bytes:
    """A payload with its header."""
    return _HEADER.pack(_VERSION, _MESSAGE, 0, len(payload)) + payload


class Unframer:
    """Whole payloads out of a stream's bytes."""

    def __init__(self, most_bytes: int, begin: bytes = b"") -> None:
        self._most_bytes = most_bytes
        self._begin = begin
        self._waiting = bytearray()

    def feed(self, data: bytes) -> None:
        """Takes bytes as they come."""
        self._waiting += data

    def next(self) -> bytes | None:
        """The next whole payload. Raises MalformedFrame."""
        waiting = self._waiting
        if self._begin:
            if len(waiting) < len(self._begin):
                return None
            if not waiting.startswith(self._begin):
                raise MalformedFrame("the stream of messages begins wrongly")
            del waiting[: len(self._begin)]
            self._begin = b""
        if len(waiting) < _HEADER.size:
            return None
        version, kind, flags, size = _HEADER.unpack_from(waiting)
        if (version, kind, flags) != (_VERSION, _MESSAGE, 0):
            raise MalformedFrame(f"a frame of version {version:#x}, type {kind}, flags {flags:#x}")
        if size > self._most_bytes:
            raise MalformedFrame(f"a frame of {size} bytes")
        end = _HEADER.size + size
        if len(waiting) < end:
            return None
        payload = bytes(memoryview(waiting)[_HEADER.size : end])
        del waiting[:end]
        return payload


def request(headers: Mapping[str, str]) -> bytes:
    """What asks for a link, as the control stream carries it."""
    content = json.dumps({name: [value] for name, value in headers.items()}).encode()
    return framed(
        EdgeMessage(
            router=EdgeRouter(operation="header", resource="header"), content=content
        ).SerializeToString()
    )


class _Refusal(msgspec.Struct):
    status: int
    text: str = ""
    retry_after_seconds: int = 0


_refusals = msgspec.json.Decoder(_Refusal)


def read_answer(payload: bytes) -> tuple[int, str, float] | None:
    """None if the link is admitted, else status, text and seconds to wait. Raises MalformedFrame."""
    try:
        message = EdgeMessage.FromString(payload)
        if message.router.operation == "ack":
            return None
        if message.router.operation != "nack":
            raise MalformedFrame(f"an answer with operation {message.router.operation[:40]!r}")
        refusal = _refusals.decode(message.content)
    except (DecodeError, msgspec.DecodeError) as error:
        raise MalformedFrame(f"an answer that cannot be read: {error}") from None
    return refusal.status, refusal.text, float(min(max(0, refusal.retry_after_seconds), 86_400))


def frames_of(messages: Iterable[bytes]) -> bytes:
    """JSON messages of ours as the stream carries them."""
    return b"".join(framed(_to_protobuf(protocol.decode(message))) for message in messages)


def _to_protobuf(message: Message) -> bytes:
    header, route = message.header, message.route
    return EdgeMessage(
        header=EdgeHeader(
            id=header.msg_id,
            parent_id=header.parent_msg_id,
            timestamp_ms=header.timestamp,
            sync=header.sync,
            resource_version=header.resourceversion,
            traceparent=header.traceparent,
        ),
        router=EdgeRouter(
            source=route.source, group=route.group, operation=route.operation, resource=route.resource
        ),
        content=bytes(message.content),
    ).SerializeToString()


def json_of(payload: bytes) -> bytes:
    """A message of the hub's as JSON. Raises MalformedFrame."""
    try:
        message = EdgeMessage.FromString(payload)
    except DecodeError as error:
        raise MalformedFrame(str(error) or "no protobuf message") from None
    header, router = message.header, message.router
    return protocol.encode(
        Message(
            Header(
                header.id,
                header.parent_id,
                header.timestamp_ms,
                header.resource_version,
                header.sync,
                header.traceparent,
            ),
            Route(router.source, router.group, router.operation, router.resource),
            msgspec.Raw(message.content or b"null"),
        )
    )
