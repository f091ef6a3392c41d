"""Time as an argument: everything that asks for the time asks a Clock."""

import time
from dataclasses import dataclass
from typing import Protocol


class Clock(Protocol):
    """Two clocks: one for intervals, one for rows and the wire."""

    def monotonic(self) -> float:
        """Seconds on a clock that never steps."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the Unix epoch."""
        ...


@dataclass(frozen=True, slots=True)
class SystemClock:
    """The machine's clocks."""

    def monotonic(self) -> float:
        return time.monotonic()

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000
