"""When a QUIC connection wants to be called, on the loop's clock."""

import asyncio
from collections.abc import Callable

from services.connector.quic.connection import HubConnection

# uvloop's clock ticks in milliseconds: a timer fires up to one early.
_TIMER_SECONDS = 0.001
# What may be put off while datagrams wait to be read, and how often that is looked at.
_MOST_LATE_SECONDS = 2.0
_LOOK_SECONDS = 0.02


class QuicTimer:
    """One timer; it may fire too early, and then looks again, which is cheaper than to move it.

    It says that nothing came, so what came is read first: while the hub is `behind`, the answer is likelier
    in its socket than lost, and whatever was sent again would put it further behind. Acknowledgements wait
    too, unless something else is sent: on time they cost a busy hub more than their delay costs edges.
    """

    __slots__ = ("_at", "_behind", "_loop", "_quic", "_timer")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, quic: HubConnection, behind: Callable[[], bool]
    ) -> None:
        self._loop = loop
        self._quic = quic
        self._behind = behind
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
        if due is not None:
            if due > now + _TIMER_SECONDS:
                self.arm(now, call)
                return
            now = max(now, due)
            if now - due < _MOST_LATE_SECONDS and self._behind():
                self._timer = self._loop.call_later(_LOOK_SECONDS, self._fired, call)
                return
        call(now)
