"""When this dispatcher's lease was last renewed."""

from services.runtime.clock import Clock


class Lease:
    """Counted on the monotonic clock, from the start of the process while there was no renewal."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._renewed_at = clock.monotonic()

    def renewed(self) -> None:
        """Sessions answered a renewal."""
        self._renewed_at = self._clock.monotonic()

    def age_seconds(self) -> float:
        """How long ago that was; connectors hear of it with every heartbeat."""
        return self._clock.monotonic() - self._renewed_at
