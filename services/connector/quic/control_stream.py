"""The control stream of a QUIC connection: its bytes until the request is whole, and its answers. Pure."""

from services.connector.quic.framing import FrameReader, FramingError, FramingFault, frame_header
from services.connector.quic.request import (
    ControlRequest,
    RequestFault,
    answer_ack,
    answer_nack,
    read_request,
)

# What a peer may say before it is answered.
_REQUEST_MOST_BYTES = 16 * 1024


class UnreadableRequest(Exception):
    """What the peer says is no request: a metric label, and what it is told in the terms of HTTP."""

    def __init__(self, reason: str, status: int, text: str) -> None:
        super().__init__(text)
        self.reason = reason
        self.status = status
        self.text = text


class RequestReader:
    """Takes the stream's bytes as they come, until there is a request or a fault."""

    __slots__ = ("_reader",)

    def __init__(self) -> None:
        self._reader = FrameReader(_REQUEST_MOST_BYTES)

    def receive(self, data: bytes) -> ControlRequest | None:
        """The request; None while it is not whole. Raises UnreadableRequest."""
        self._reader.receive(data)
        try:
            payload = self._reader.next_payload()
            return None if payload is None else read_request(payload)
        except FramingError as error:
            if error.fault is FramingFault.TOO_BIG:
                text = f"over {_REQUEST_MOST_BYTES} bytes"
                raise UnreadableRequest("request_too_large", 431, text) from error
            raise UnreadableRequest("bad_request", 400, str(error)) from error
        except RequestFault as error:
            raise UnreadableRequest("bad_request", 400, str(error)) from error


def ack_frame(request_id: str) -> bytes:
    """The link is open."""
    return _framed(answer_ack(request_id))


def nack_frame(status: int, text: str, retry_after_seconds: float) -> bytes:
    """The link is refused, in the terms of an HTTP response."""
    return _framed(answer_nack(status, text, retry_after_seconds))


def _framed(payload: bytes) -> bytes:
    return frame_header(len(payload)) + payload
