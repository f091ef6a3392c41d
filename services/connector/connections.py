"""What a connection and its owner know of each other."""

import enum
from dataclasses import dataclass
from typing import Any, Protocol

from services.connector.admission import HttpRefusal
from services.connector.transport import EdgeTransport, LinkHandler, LinkRequest


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Bounds of one connection. Times in seconds."""

    frame_most_bytes: int = 4 * 1024 * 1024
    # From the first byte to a whole request: TLS handshake and request together.
    opening_timeout: float = 30.0
    # For the peer's part of the closing handshake.
    close_timeout: float = 5.0
    # For the peer to read a refusal before the connection is cut.
    linger_timeout: float = 2.0


class Phase(enum.Enum):
    """Where a connection is in its life."""

    HANDSHAKE = enum.auto()
    REQUEST = enum.auto()
    # The request is whole, its answer is being decided; nothing the peer sends is looked at.
    DECIDING = enum.auto()
    OPEN = enum.auto()
    # A close frame or a refusal is on its way; input is discarded but for the peer's close frame.
    CLOSING = enum.auto()
    # Our direction is closed; waiting for the peer's end.
    FINISHED = enum.auto()
    GONE = enum.auto()


def opening_timeout(phase: Phase, seconds: float) -> tuple[str, str]:
    """Of an opening that is out of its time in that phase: the metric label, and what happened in words."""
    reason = "handshake_timeout" if phase is Phase.HANDSHAKE else "request_timeout"
    return reason, f"not finished within {seconds:g} s"


CROWDED_OUT = ("crowded_out", "others had to get in")
"""Of an opening that gave way: the metric label, and what happened in words."""


def shown_address(peer: tuple[Any, ...]) -> str:
    """HOST:PORT of a socket's address, for people."""
    host, port = peer[0], peer[1]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class HostedConnection(EdgeTransport, Protocol):
    """One connection as its owner sees it."""

    phase: Phase

    def crowded_out(self) -> None:
        """It has to give way to others, and is cut."""
        ...

    def start(self, handler: LinkHandler) -> None:
        """The link that is told from here on; before `accept`, only its end."""
        ...

    def abort(self) -> None:
        """Cuts the connection without a word."""
        ...


class ConnectionHost(Protocol):
    """Who owns connections: their listener."""

    limits: ConnectionLimits

    def requested(self, connection: "HostedConnection", request: LinkRequest) -> None:
        """A peer asks for a link. Answered by `start` and `accept`, or by `refuse`, now or later."""
        ...

    def progressed(self, connection: "HostedConnection") -> None:
        """The peer has shown a good certificate; its request is next."""
        ...

    def opened(self, connection: "HostedConnection") -> None:
        """The opening is over: admitted."""
        ...

    def closing(self, connection: "HostedConnection") -> None:
        """The opening has failed, or the link is over: all that is left is to close the connection."""
        ...

    def handshake_failed(self, connection: "HostedConnection", reason: str, detail: str) -> None:
        """TLS, or the request in it, failed before there was anything to answer."""
        ...

    def refused(self, connection: "HostedConnection", refusal: HttpRefusal) -> None:
        """A request was refused."""
        ...

    def gone(self, connection: "HostedConnection") -> None:
        """The connection is closed; nothing of it is left."""
        ...
