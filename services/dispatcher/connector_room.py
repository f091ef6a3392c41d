"""How much may be on its way to one connector, and which node is next to send more. Pure."""

from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class RoomLimits:
    """`max_queued_bytes`: what waits for the stream to take it, so that a small message for another node is
    behind no more than that. `max_unwritten_bytes`: what the connector has, or is about to get, and no link
    has written to its socket. `free_bytes`: what a node may have unwritten whatever others have.
    `max_held_bytes`: distinct NO-ACK messages that wait here."""

    max_queued_bytes: int = 8 * 1024 * 1024
    max_unwritten_bytes: int = 128 * 1024 * 1024
    free_bytes: int = 32 * 1024
    max_held_bytes: int = 64 * 1024 * 1024


class ConnectorRoom(Generic[T]):
    """The bytes of all nodes of one connector. Nodes that find no room wait as `T`, and have it in turn.

    Policies count what they send, fetch and hear of; the stream counts what it queues and passes on.
    """

    __slots__ = (
        "_held",
        "_held_bytes",
        "_is_serving",
        "_limits",
        "_waiting",
        "fetching_bytes",
        "queued_bytes",
        "unwritten_bytes",
    )

    def __init__(self, limits: RoomLimits | None = None) -> None:
        self._limits = limits or RoomLimits()
        self.queued_bytes = 0
        self.unwritten_bytes = 0
        self.fetching_bytes = 0
        self._waiting: OrderedDict[T, None] = OrderedDict()
        self._is_serving = False
        self._held: Counter[int] = Counter()
        self._held_bytes = 0

    @property
    def waiting(self) -> int:
        """Nodes that wait."""
        return len(self._waiting)

    @property
    def is_full(self) -> bool:
        """Whether links have to write before more is sent: who writes nothing stands in the others' way."""
        return self.unwritten_bytes + self.fetching_bytes >= self._limits.max_unwritten_bytes

    @property
    def is_half_empty(self) -> bool:
        """Whether those who wait can go on for a while."""
        return 2 * self.unwritten_bytes <= self._limits.max_unwritten_bytes

    @property
    def has_room(self) -> bool:
        """Whether one more message may go, whatever its size."""
        return not self.is_full and self.queued_bytes + self.fetching_bytes < self._limits.max_queued_bytes

    def admits(self, own_bytes: int, size_bytes: int, *, in_turn: bool = False) -> bool:
        """Whether a node that has `own_bytes` unwritten may have so many more. `in_turn`: it had its turn."""
        if own_bytes + size_bytes <= self._limits.free_bytes:
            return True
        return self.has_room and (in_turn or self._is_serving or not self._waiting)

    def wait(self, waiter: T) -> bool:
        """The waiter has a turn when there is room; False if it waits already."""
        if waiter in self._waiting:
            return False
        self._waiting[waiter] = None
        return True

    def begin_turns(self) -> None:
        """Until `end_turns` whoever asks is one that `next` gave."""
        self._is_serving = True

    def next(self) -> T | None:
        """Who has waited longest, if there is room; it waits no more."""
        if not self._waiting or not self.has_room:
            return None
        return self._waiting.popitem(last=False)[0]

    def end_turns(self) -> None:
        """See `begin_turns`."""
        self._is_serving = False

    def leave(self, waiter: T) -> None:
        """It wants nothing any more."""
        self._waiting.pop(waiter, None)

    def hold(self, message: object, size_bytes: int) -> bool:
        """A node keeps a NO-ACK message that waits; False if there are too many bytes of those. One that goes
        to many nodes is in memory once."""
        place = id(message)
        if place not in self._held:
            if self._held_bytes + size_bytes > self._limits.max_held_bytes:
                return False
            self._held_bytes += size_bytes
        self._held[place] += 1
        return True

    def unhold(self, message: object, size_bytes: int) -> None:
        """A node keeps it no more."""
        place = id(message)
        self._held[place] -= 1
        if not self._held[place]:
            del self._held[place]
            self._held_bytes -= size_bytes
