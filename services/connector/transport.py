"""What a link needs of the thing that carries its frames: WebSocket or QUIC."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from cloudhub.v1 import link_pb2
from services.connector.admission import CertificateNames, HttpRefusal
from services.connector.codec import FrameCodec


@dataclass(frozen=True, slots=True)
class LinkRequest:
    """A peer with a verified certificate asks for a link. `path` is None over transports without one."""

    certificate: CertificateNames
    path: str | None
    headers: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class TransportEnd:
    """Why a transport ended by itself. `fault` is a metric label, empty if the peer broke no rule. `by_edge`:
    the edge ended it, and not silence or a network that gave up; with this `close_code`, if it said one."""

    reason: link_pb2.CloseReason.ValueType
    detail: str
    fault: str = ""
    by_edge: bool = False
    close_code: int = 0


class EdgeTransport(Protocol):
    """One connection of an edge. After `close`, `refuse` or the end it tells its handler nothing more."""

    @property
    def kind(self) -> str:
        """ "websocket" or "quic"."""
        ...

    @property
    def codec(self) -> FrameCodec:
        """How its frames are read and written."""
        ...

    @property
    def peer_address(self) -> str:
        """HOST:PORT of the peer, for people."""
        ...

    @property
    def blocked(self) -> bool:
        """Whether bytes handed over are not yet with the operating system."""
        ...

    @property
    def given_bytes(self) -> int:
        """What went into the connection so far."""
        ...

    def confirmed_bytes(self) -> int:
        """How many of them the peer's host has acknowledged; all, if that cannot be known."""
        ...

    def accept(self) -> None:
        """Answers the request: from here on frames flow."""
        ...

    def refuse(self, refusal: HttpRefusal) -> None:
        """Answers the request with a refusal and closes; the status is HTTP's over every transport."""
        ...

    def send(self, frames: Sequence[bytes]) -> bool:
        """Writes frames; True if the operating system has them all, else `drained` follows."""
        ...

    def close(self, code: int, text: str) -> None:
        """Closes with a close frame, for a bounded time waiting for the peer's."""
        ...

    def ping(self) -> None:
        """Asks the peer for a sign of life, which `idle_seconds` tells of when it comes."""
        ...

    def hold_input(self, held: bool) -> None:
        """Stops or resumes handing over frames; what the peer can send meanwhile is bounded."""
        ...

    def idle_seconds(self, now: float) -> float:
        """How long ago the last byte came in. 0 while input is held: it cannot be told then."""
        ...


class LinkHandler(Protocol):
    """What a transport tells the link. None of these may raise."""

    def frame_received(self, frame: bytes) -> None:
        """A whole frame that holds a message."""
        ...

    def binary_received(self) -> None:
        """A binary frame, which no edge has a reason to send."""
        ...

    def control_received(self) -> None:
        """A ping, pong or part of a fragmented frame: work that counts against the rate."""
        ...

    def holding(self, size_bytes: int) -> None:
        """So many bytes that came in are kept, since they are no whole frame yet; told where it is much."""
        ...

    def drained(self) -> None:
        """The operating system has all that was sent."""
        ...

    def ended(self, end: TransportEnd) -> None:
        """The connection is over, by the peer or by a fault; told at most once."""
        ...
