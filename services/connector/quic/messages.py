"""The protobuf message of a QUIC link, to and from `cloudhub.v1.Message`; the counterpart of `frames`.

Content is opaque here too: it is checked to be one JSON value and carried as the bytes it came in.
"""

from google.protobuf.message import DecodeError

from cloudhub.v1.edge_pb2 import EdgeMessage
from cloudhub.v1.message_pb2 import Message
from services.connector.frames import (
    FrameError,
    FrameFault,
    check_content,
    check_extra,
    check_extra_count,
    check_json,
)


class ParsedMessage:
    """A message that was read; implements `codec.ReadFrame`."""

    __slots__ = ("_message",)

    def __init__(self, message: EdgeMessage) -> None:
        self._message = message

    def fill(self, message: Message) -> None:
        """Sets the fields of `message`, which must be empty."""
        header, router = self._message.header, self._message.router
        message.id = header.id
        message.parent_id = header.parent_id
        message.timestamp_ms = header.timestamp_ms
        message.resource_version = header.resource_version
        message.sync = header.sync
        message.type = header.type
        message.traceparent = header.traceparent
        message.source = router.source
        message.destination = router.destination
        message.group = router.group
        message.operation = router.operation
        message.resource = router.resource
        message.content = self._message.content or b"null"
        for name, value in self._message.extra.items():
            message.extra[name] = value


def parse_message(payload: bytes) -> ParsedMessage:
    """Reads one payload. Raises FrameError; empty content reads as null."""
    try:
        message = EdgeMessage.FromString(payload)
    except DecodeError as error:
        raise FrameError(FrameFault.PROTOBUF, str(error) or "no message") from None
    if message.content:
        check_content(message.content, "content")
    check_extra_count(len(message.extra))
    for name, value in message.extra.items():
        check_extra(name, value)
    return ParsedMessage(message)


def encode_message(message: Message) -> bytes:
    """One message as a payload. Raises FrameError if the content or an extra field is not one JSON value."""
    content = message.content or b"null"
    check_json(content, "content")
    encoded = EdgeMessage(content=content)
    header, router = encoded.header, encoded.router
    header.id = message.id
    header.parent_id = message.parent_id
    header.timestamp_ms = message.timestamp_ms
    header.resource_version = message.resource_version
    header.sync = message.sync
    header.type = message.type
    header.traceparent = message.traceparent
    router.source = message.source
    router.destination = message.destination
    router.group = message.group
    router.operation = message.operation
    router.resource = message.resource
    for name, value in message.extra.items():
        check_extra(name, value)
        encoded.extra[name] = value
    return encoded.SerializeToString()
