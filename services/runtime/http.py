"""One HTTP/1.1 request of a connection, read whole, and its answer. The protocol is h11's; no connection is
kept alive: enrolment is two requests in a node's life, and then one in months; metrics are scraped now and
then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

import h11

MOST_HEADER_BYTES = 16 * 1024
MOST_BODY_BYTES = 16 * 1024


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asks. Header names are lowercase; of several with one name, all in order. `repr` shows no
    headers: one of them is a secret."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = field(repr=False)
    body: bytes = field(repr=False, default=b"")
    query: str = ""

    def header(self, name: str) -> str | None:
        """The value of a header; None if it is not there, or there twice."""
        found = [value for key, value in self.headers if key == name]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, slots=True)
class Answer:
    """`outcome` is the metric label. A text says what is wrong, for people."""

    status: int
    outcome: str
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


def refused(status: int, outcome: str, text: str, **headers: str) -> Answer:
    """An answer that says no; underscores in header names stand for hyphens."""
    return Answer(
        status,
        outcome,
        text.encode() + b"\n",
        headers={name.replace("_", "-"): value for name, value in headers.items()},
    )


class Exchange:
    """The server's side of one request, without I/O: bytes in, a Request or a refusal out."""

    def __init__(self) -> None:
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEADER_BYTES)
        self._head: h11.Request | None = None
        self._body = bytearray()

    def receive(self, data: bytes) -> Request | Answer | None:
        """Takes what came, b"" for its end; None while more is needed."""
        try:
            self._connection.receive_data(data)
            return self._next()
        except h11.RemoteProtocolError as error:
            status = error.error_status_hint
            return refused(
                status if 400 <= status < 500 else 400, "http_malformed", "this is no HTTP/1.1 request"
            )

    def _next(self) -> Request | Answer | None:
        while True:
            event = self._connection.next_event()
            if event is h11.NEED_DATA:
                return None
            if isinstance(event, h11.Request):
                self._head = event
            elif isinstance(event, h11.Data):
                self._body += event.data
                if len(self._body) > MOST_BODY_BYTES:
                    return refused(413, "body_too_large", f"a body has at most {MOST_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage) and self._head:
                head = self._head
                path, _, query = head.target.decode("ascii", "replace").partition("?")
                return Request(
                    head.method.decode("ascii"),
                    path,
                    tuple((key.decode("ascii"), value.decode("latin-1")) for key, value in head.headers),
                    bytes(self._body),
                    query,
                )
            else:
                return refused(400, "http_malformed", "the request ended in its middle")

    @property
    def wants_continue(self) -> bool:
        """The client waits for leave before it sends its body."""
        return self._connection.they_are_waiting_for_100_continue

    def go_on(self) -> bytes:
        """Leave to send the body."""
        return self._connection.send(h11.InformationalResponse(status_code=100, headers=[])) or b""

    def answer(self, answer: Answer) -> bytes:
        """The whole response; the connection ends with it."""
        headers = [
            ("Content-Type", answer.content_type),
            ("Content-Length", str(len(answer.body))),
            ("Cache-Control", "no-store"),
            ("Connection", "close"),
            *answer.headers.items(),
        ]
        phrase = HTTPStatus(answer.status).phrase
        connection = self._connection
        if connection.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            # After a request that h11 could not read.
            connection = h11.Connection(h11.SERVER)
        response = h11.Response(status_code=answer.status, headers=headers, reason=phrase.encode())
        # An answer to HEAD has the length of a body and none (RFC 9110, 9.3.2).
        is_head = self._head is not None and self._head.method == b"HEAD"
        body = () if is_head else (h11.Data(data=answer.body),)
        return b"".join(connection.send(event) or b"" for event in (response, *body, h11.EndOfMessage()))
