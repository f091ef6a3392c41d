"""The wall clock, and the time that was seen to pass. Pure: both clocks are arguments.

What is kept for a while goes when that while has passed, not because somebody set the clock: a step forward
of the wall clock, larger than `slack_seconds`, is not believed at once. What was stamped before it is judged
by a clock that goes on from there as fast as time passes; what was stamped after it, by the wall clock. After
`hold_seconds`, in which everything from before the step has been kept for as long as it should, the wall
clock counts alone.
"""

import math


class SeenTime:
    """`seen_ms`, where given, is what a former process had seen: time in which no process ran was not seen to
    pass, but for `away_seconds`, as a restart takes."""

    def __init__(
        self,
        *,
        slack_seconds: float,
        hold_seconds: float = math.inf,
        seen_ms: int = 0,
        away_seconds: float = 600.0,
    ) -> None:
        self._slack_ms = slack_seconds * 1000
        self._away_ms = away_seconds * 1000
        self._hold_seconds = hold_seconds
        self._wall_ms = seen_ms
        self._monotonic: float | None = None
        self._former_ms: float | None = None  # what the clock would show without the step
        self.stepped_at_ms = 0
        """What is stamped earlier is from before the last step; 0: there was none."""
        self._stepped_at = 0.0

    @property
    def seen_ms(self) -> int:
        """The wall clock, or while a step of it is not believed the time without it."""
        return self._wall_ms if self._former_ms is None else int(self._former_ms)

    def look(self, wall_ms: int, monotonic: float) -> float:
        """Compares the clocks; by how many seconds the wall clock has just stepped forward, 0 if it has
        not."""
        if self._monotonic is None:
            elapsed_ms, slack_ms = 0.0, self._away_ms if self._wall_ms else math.inf
        else:
            elapsed_ms, slack_ms = max(0.0, monotonic - self._monotonic) * 1000, self._slack_ms
        expected_ms = self._wall_ms + elapsed_ms
        step_ms = wall_ms - expected_ms
        self._wall_ms, self._monotonic = wall_ms, monotonic
        if self._former_ms is not None:
            self._former_ms += elapsed_ms
            if wall_ms <= self._former_ms or monotonic - self._stepped_at >= self._hold_seconds:
                self._former_ms, self.stepped_at_ms = None, 0
        if step_ms <= slack_ms:
            return 0.0
        if self._former_ms is None:
            self._former_ms = expected_ms
        self.stepped_at_ms = int(expected_ms) + 1
        self._stepped_at = monotonic
        return step_ms / 1000

    def now_ms(self, of_ms: int) -> int:
        """The present time for what was stamped `of_ms`."""
        return self.seen_ms if of_ms < self.stepped_at_ms else self._wall_ms

    def before_ms(self, seconds: float) -> int:
        """What was stamped earlier has been kept for so long."""
        kept_ms = int(seconds * 1000)
        if self._former_ms is None:
            return self._wall_ms - kept_ms
        assert self._monotonic is not None
        is_over = (self._monotonic - self._stepped_at) * 1000 >= kept_ms
        return (self._wall_ms if is_over else int(self._former_ms)) - kept_ms
