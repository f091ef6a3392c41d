"""Growing, jittered delays."""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential delays between `first_seconds` and `most_seconds`, spread by `jitter` (0 to 1)."""

    first_seconds: float
    most_seconds: float
    factor: float = 2.0
    jitter: float = 0.2

    def delay(self, attempt: int, spread: float) -> float:
        """Seconds to wait after attempt 1, 2, ...; `spread` in [0, 1) places it in the jitter."""
        base = min(self.most_seconds, self.first_seconds * self.factor ** min(attempt - 1, 64))
        return base * (1.0 - self.jitter + 2.0 * self.jitter * spread)

    def random_delay(self, attempt: int) -> float:
        """`delay` with a spread of its own."""
        return self.delay(attempt, random.random())
