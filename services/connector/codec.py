"""How a transport's frames are read and written; a link does not know which of them it has."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cloudhub.v1.message_pb2 import Message
from services.connector.frames import encode_frame, parse_frame
from services.connector.quic.messages import encode_message, parse_message


class ReadFrame(Protocol):
    """A frame that was read and found whole."""

    def fill(self, message: Message) -> None:
        """Sets the fields of `message`, which must be empty."""
        ...


@dataclass(frozen=True, slots=True)
class FrameCodec:
    """Both functions raise `frames.FrameError`."""

    parse: Callable[[bytes], ReadFrame]
    encode: Callable[[Message], bytes]
    """The frame of a message."""


JSON_FRAMES = FrameCodec(parse_frame, encode_frame)
PROTOBUF_FRAMES = FrameCodec(parse_message, encode_message)
