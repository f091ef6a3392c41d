"""When a QUIC connection wants to be called, on the loop's clock."""

import asyncio
from collections.abc import Callable

from services.connector.quic.connection import HubConnection

# uvloop's clock ticks in milliseconds: a timer fires up to one early.
_TIMER_SECONDS = 0.001


class QuicTimer:
    """One timer; it may fire too early, and then looks again, which is cheaper than to move it."""

    __slots__ = ("_at", "_loop", "_quic", "_timer")

    def __init__(self, loop: asyncio.AbstractEventLoop, quic: HubConnection) -> None:
        self._loop = loop
        self._quic = quic
        self._at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def arm(self, now: float, call: Callable[[float], None]) -> None:
        """After anything that may have changed when it is due; `call` gets the time then."""
        at = self._quic.get_timer()
        if at is None:
            self.cancel()
        elif self._timer is None or self._at > at:
            self.cancel()
            self._at = at
            self._timer = self._loop.call_at(max(at, now), self._fired, call)

    def cancel(self) -> None:
        """Nothing is to be called any more."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def _fired(self, call: Callable[[float], None]) -> None:
        self._timer = None
        now = self._loop.time()
        due = self._quic.get_timer()
        if due is not None and due > now:
            if due > now + _TIMER_SECONDS:
                self.arm(now, call)
                return
            now = due
        call(now)
