"""The time of a run: seconds since its start, the same for everything that is taken down."""

import time


class RunClock:
    """Starts when it is made."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def now(self) -> float:
        """Seconds since the start, to the millisecond."""
        return round(time.monotonic() - self._started, 3)
