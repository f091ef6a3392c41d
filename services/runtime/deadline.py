"""One call that a connection is to get later: the end of its opening, of a close, of a linger."""

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
