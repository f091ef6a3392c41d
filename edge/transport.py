"""What a node needs of a link, over whatever transport, and which transport to dial next.

Pure: time is an argument.
"""

import asyncio
from collections.abc import Iterable
from typing import Literal, Protocol

from edge.reconnect import LinkEnd

Transport = Literal["websocket", "quic", "auto"]
# After UDP seemed to be blocked, this long all dials are WebSocket's; each further time longer.
_FIRST_PAUSE_SECONDS = 60.0
_MOST_PAUSE_SECONDS = 3600.0
# RFC 9002, 6.2.2. aioquic assumes 0.1 s, and fills narrow wires with copies of handshakes that only wait.
_USUAL_ROUND_TRIP_SECONDS = 0.333
MOST_ROUND_TRIP_SECONDS = 4.0
"""Assumed at most, so that a packet that is lost is sent again before the dial is given up."""


class EdgeLink(Protocol):
    """A link from its dial to its end. `ended` is set exactly once."""

    ended: asyncio.Future[LinkEnd]
    received_at: float
    """When the last bytes came in, on the loop's clock."""

    @property
    def is_open(self) -> bool:
        """Admitted and not closing: `send` has an effect."""
        ...

    def send(self, frames: Iterable[bytes]) -> None:
        """Writes JSON messages, together. Does nothing unless the link is open."""
        ...

    def ping(self) -> None:
        """Asks for a sign of life."""
        ...

    def pause(self, reason: str) -> None:
        """Hands over nothing until every reason is resumed."""
        ...

    def resume(self, reason: str) -> None:
        """Takes a reason back; with none left, messages go on."""
        ...

    def block(self) -> None:
        """Behaves as behind a black hole."""
        ...

    def unblock(self) -> None:
        """Ends the black hole."""
        ...

    def close(self) -> None:
        """Ends the link politely; it is cut if the hub does not answer in time."""
        ...

    def abort(self, end: LinkEnd) -> None:
        """Drops the connection."""
        ...


class Receiver(Protocol):
    """Whom a link tells what happens to it."""

    def link_opened(self, link: EdgeLink) -> None:
        """The hub has admitted the link; messages may be sent."""

    def frame_received(self, link: EdgeLink, frame: bytes) -> None:
        """One whole message came in, as JSON."""


class TransportChoice:
    """Of one node. With `auto` it is QUIC, until no answer comes in time; then WebSocket for a while."""

    def __init__(self, wanted: Transport) -> None:
        self._wanted = wanted
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self._quic_again_at = 0.0

    def next(self, now: float) -> Literal["websocket", "quic"]:
        """The transport of the next dial."""
        if self._wanted == "auto":
            return "quic" if now >= self._quic_again_at else "websocket"
        return self._wanted

    def ended(self, transport: Literal["websocket", "quic"], end: LinkEnd, now: float) -> bool:
        """Takes note of how a dial or link ended; True if the other transport is to be dialled at once."""
        if self._wanted != "auto" or transport == "websocket":
            return False
        if end.open_seconds > 0:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
            return False
        if end.cause != "failed" or end.answered:
            return False
        self._quic_again_at = now + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, _MOST_PAUSE_SECONDS)
        return True


class FirstRoundTrip:
    """What QUIC assumes of one node's round trip until it has measured it: copies go after twice as long.

    On a narrow wire that many edges share a packet waits for seconds, and copies of it would fill the wire
    for good: so each dial that had no answer in time makes the next one more patient.
    """

    def __init__(self) -> None:
        self.seconds = _USUAL_ROUND_TRIP_SECONDS

    def ended(self, end: LinkEnd) -> None:
        """Takes note of how a dial or link over QUIC ended."""
        if end.open_seconds > 0 or end.answered:
            self.seconds = _USUAL_ROUND_TRIP_SECONDS
        elif end.cause == "failed":
            self.seconds = min(2 * self.seconds, MOST_ROUND_TRIP_SECONDS)
