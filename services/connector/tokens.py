"""A token bucket with time as an argument."""


class TokenBucket:
    """Holds up to `burst` tokens and gains `rate` of them per second. Starts full."""

    __slots__ = ("_at", "_burst", "_rate", "_tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Takes one token; False if that was the last, so that the caller pauses for `refill_seconds`."""
        self._refill(now)
        self._tokens -= 1.0
        return self._tokens >= 1.0

    def take_if_any(self, now: float) -> bool:
        """Takes one token if there is one; False, and none taken, if there is not."""
        self._refill(now)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def _refill(self, now: float) -> None:
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now

    def refill_seconds(self, tokens: float) -> float:
        """How long from the last `take` until that many tokens (at most the burst) are there."""
        return max(0.0, (min(tokens, self._burst) - self._tokens) / self._rate)
