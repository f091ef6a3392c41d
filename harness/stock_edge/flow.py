"""How much a stock edge takes and sends. Pure: time is an argument, in seconds."""

from collections import deque
from typing import Generic, TypeVar

T = TypeVar("T")

MAX_INBOUND = 100
SENDS_PER_SECOND = 30.0
MAX_BURST = 60.0


class Inbound(Generic[T]):
    """Messages that were read and are not handled yet: beyond a hundred the oldest are dropped, and nobody is
    told."""

    def __init__(self) -> None:
        self._waiting: deque[T] = deque()
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: T) -> None:
        """One more came in."""
        if len(self._waiting) == MAX_INBOUND:
            self._waiting.popleft()
            self.dropped += 1
        self._waiting.append(message)

    def take(self) -> T | None:
        """The oldest one; None if nothing waits."""
        return self._waiting.popleft() if self._waiting else None

    def clear(self) -> None:
        """The link is gone, and they with it."""
        self._waiting.clear()


class SendRate:
    """A bucket of sixty that is filled by thirty a second."""

    def __init__(self, now: float, pace: float = 1.0) -> None:
        self._tokens = MAX_BURST
        self._per_second = SENDS_PER_SECOND * pace
        self._at = now

    def take(self, wanted: int, now: float) -> int:
        """How many of so many may be sent now."""
        self._tokens = min(MAX_BURST, self._tokens + (now - self._at) * self._per_second)
        self._at = now
        sent = min(wanted, int(self._tokens))
        self._tokens -= sent
        return sent

    def next_in(self) -> float:
        """Seconds until one may be sent."""
        return max(0.0, (1.0 - self._tokens) / self._per_second)
