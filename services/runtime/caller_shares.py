"""What each caller of a gRPC server has under way, and what it may have: connections, calls, bytes of
requests. Pure.

A caller is whoever a certificate names, over all connections that show it. Services are the hub itself:
nothing of theirs is counted. Of the bytes nobody has a fixed share: a caller may hold a third of what is
free, so that one alone comes to a quarter, and of many each finds room for a request.
"""

from dataclasses import dataclass

from services.runtime.errors import Crowded
from services.runtime.names import shown

TOO_MANY_CONNECTIONS, TOO_MANY_CALLS, TOO_MANY_BYTES = (
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_CALLS",
    "TOO_MANY_BYTES",
)
REASONS = (TOO_MANY_CONNECTIONS, TOO_MANY_CALLS, TOO_MANY_BYTES)
"""Why a caller is refused for what it has under way."""
_SHARE_OF_FREE = 3


@dataclass(frozen=True, slots=True)
class CallerLimits:
    """Bounds of one server."""

    max_connections: int = 2048
    """Of all callers together."""
    max_connections_per_caller: int = 256
    max_calls_per_caller: int = 256
    """Open at a time, over all its connections; streams count as long as they last."""
    max_request_bytes: int = 128 * 1024 * 1024
    """Of all callers together: requests that are not whole, or whole and not answered."""
    max_message_bytes: int = 32 * 1024 * 1024
    """Of one message, as the server takes it; a compressed one may become as large."""


class Party:
    """One caller. Made by CallerShares; forgotten with its last connection."""

    __slots__ = ("_of", "calls", "connections", "held_bytes", "name")

    def __init__(self, of: "CallerShares", name: str) -> None:
        self._of = of
        self.name = name
        self.connections = 0
        self.calls = 0
        self.held_bytes = 0

    @property
    def max_message_bytes(self) -> int:
        """Of one message."""
        return self._of.limits.max_message_bytes

    def begin_call(self) -> Crowded | None:
        """One more call; or why it is refused, and then it is not counted."""
        most = self._of.limits.max_calls_per_caller
        if self.calls >= most:
            return Crowded(
                TOO_MANY_CALLS,
                f"{shown(self.name)} has {self.calls} calls under way, and may have {most}: "
                "try again when some have ended",
            )
        self.calls += 1
        return None

    def end_call(self) -> None:
        """A call that was begun is over."""
        self.calls -= 1

    def hold(self, size_bytes: int) -> Crowded | None:
        """So many more bytes of requests (fewer if negative); or why they are refused, and not held."""
        if size_bytes <= 0 or self._of.is_room(self, size_bytes):
            self.held_bytes += size_bytes
            self._of.held_bytes += size_bytes
            return None
        return Crowded(
            TOO_MANY_BYTES,
            f"{shown(self.name)} has {self.held_bytes} bytes of requests under way and is refused "
            f"{size_bytes} more: a caller may have a third of what is free of "
            f"{self._of.limits.max_request_bytes}; try again when some have been answered",
        )


class CallerShares:
    """Of one server."""

    def __init__(self, limits: CallerLimits) -> None:
        self.limits = limits
        self.connections = 0
        self.held_bytes = 0
        self._parties: dict[str, Party] = {}

    def __len__(self) -> int:
        """Callers with a connection."""
        return len(self._parties)

    def is_room(self, party: Party, size_bytes: int) -> bool:
        """Whether a caller may hold so many bytes more."""
        free = self.limits.max_request_bytes - self.held_bytes - size_bytes
        return (party.held_bytes + size_bytes) * _SHARE_OF_FREE <= free

    def connect(self, name: str) -> Party | Crowded:
        """One more connection of a caller; or why it is refused."""
        party = self._parties.get(name)
        mine, most = party.connections if party else 0, self.limits.max_connections_per_caller
        if mine >= most:
            return Crowded(
                TOO_MANY_CONNECTIONS,
                f"{shown(name)} has {mine} connections, and may have {most}: use those that are there",
            )
        if self.connections >= self.limits.max_connections:
            return Crowded(
                TOO_MANY_CONNECTIONS,
                f"the server has {self.connections} connections, as many as it takes: try again later",
            )
        if party is None:
            party = self._parties[name] = Party(self, name)
        party.connections += 1
        self.connections += 1
        return party

    def disconnect(self, party: Party) -> None:
        """A connection that `connect` counted is gone, and its calls were ended."""
        party.connections -= 1
        self.connections -= 1
        if not party.connections:
            del self._parties[party.name]
