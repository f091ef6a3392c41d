"""Time that is left: one call that a connection is to get later, and what to wait for others meanwhile."""

import asyncio
from collections.abc import Callable


class Deadline:
    """Calls once after so long, unless it is taken back; set anew it counts from there."""

    __slots__ = ("_loop", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_set(self) -> bool:
        """Whether it was set since it was last taken back; also after the call."""
        return self._timer is not None

    def set(self, seconds: float, call: Callable[[], None]) -> None:
        """In place of what it was set to before."""
        self.cancel()
        self._timer = self._loop.call_later(seconds, call)

    def cancel(self) -> None:
        """Takes it back."""
        if self._timer:
            self._timer.cancel()
            self._timer = None


def half_of(seconds_left: float | None, most_seconds: float) -> float:
    """How long to wait for another process, so that whoever waits `seconds_left` for us (None: without end)
    still hears that it did not answer."""
    return most_seconds if seconds_left is None else min(most_seconds, max(0.0, seconds_left / 2))
