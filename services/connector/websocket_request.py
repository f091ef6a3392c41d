"""The HTTP request of a WebSocket link, its refusal, and text frames as a server writes them. No I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus

from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from services.connector.admission import HttpRefusal

# What a peer may send before its upgrade is answered: a request, with room for what an eager one adds.
REQUEST_MOST_BYTES = 16 * 1024
_REQUEST_END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class RequestFault:
    """A request that cannot be read: a metric label, and the answer."""

    reason: str
    detail: str
    status: bytes
    """The status line."""

    def answer(self) -> bytes:
        """What the peer is told."""
        body = f"{self.detail}\n".encode()
        return (
            b"%b\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (self.status, len(body), body)
        )


def take_request(protocol: ServerProtocol, inbox: bytearray) -> Request | RequestFault | None:
    """Hands the library the request and not a byte more; None if it is not whole yet."""
    end = inbox.find(_REQUEST_END)
    if end < 0 or end > REQUEST_MOST_BYTES:
        if len(inbox) > REQUEST_MOST_BYTES:
            return RequestFault(
                "request_too_large",
                f"over {REQUEST_MOST_BYTES} bytes",
                b"HTTP/1.1 431 Request Header Fields Too Large",
            )
        return None
    end += len(_REQUEST_END)
    part = inbox[:end]
    del inbox[:end]
    protocol.receive_data(part)
    events = protocol.events_received()
    if events and isinstance(events[0], Request):
        return events[0]
    protocol.data_to_send()
    error = protocol.handshake_exc
    detail = str((error and error.__cause__) or error or "no HTTP request")
    return RequestFault("bad_request", detail, b"HTTP/1.1 400 Bad Request")


def refusal_response(protocol: ServerProtocol, refusal: HttpRefusal) -> Response:
    """The answer to a request that is turned down."""
    response = protocol.reject(HTTPStatus(refusal.status), refusal.text + "\n")
    if refusal.retry_after_seconds > 0:
        response.headers["Retry-After"] = str(max(1, round(refusal.retry_after_seconds)))
    return response


def text_frames(frames: Sequence[bytes]) -> bytes:
    """Each a text frame in one piece, not masked, no extension: the header is all there is to say."""
    parts: list[bytes] = []
    for frame in frames:
        size = len(frame)
        if size < 126:
            parts.append(b"\x81" + size.to_bytes(1, "big"))
        elif size < 65536:
            parts.append(b"\x81\x7e" + size.to_bytes(2, "big"))
        else:
            parts.append(b"\x81\x7f" + size.to_bytes(8, "big"))
        parts.append(frame)
    return b"".join(parts)
