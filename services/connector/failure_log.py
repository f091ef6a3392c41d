"""Log lines of what any stranger can cause as often as he likes: one per reason and interval."""

import asyncio
from dataclasses import dataclass
from typing import Any

from services.runtime.logs import Log

INTERVAL_SECONDS = 10.0


@dataclass(slots=True)
class _Reason:
    timer: asyncio.TimerHandle
    count: int = 0
    facts: dict[str, Any] | None = None
    """Of the last one that is not told yet."""


class FailureLog:
    """The first failure of a reason is told at once, those of the next seconds together, as the last of them
    with a `count`. Whoever makes it closes it."""

    def __init__(self, log: Log, event: str, interval_seconds: float = INTERVAL_SECONDS) -> None:
        self._log = log
        self._event = event
        self._interval_seconds = interval_seconds
        self._reasons: dict[str, _Reason] = {}

    def add(self, reason: str, **facts: Any) -> None:
        """Something failed. Reasons are of a fixed set."""
        known = self._reasons.get(reason)
        if known is None:
            self._log.info(self._event, reason=reason, **facts)
            self._reasons[reason] = _Reason(self._set_timer(reason))
        else:
            known.count += 1
            known.facts = facts

    @property
    def waiting(self) -> int:
        """Reasons of which a line was written within the interval."""
        return len(self._reasons)

    def close(self) -> None:
        """Tells what is untold, and nothing more by itself."""
        for reason in list(self._reasons):
            self._reasons[reason].timer.cancel()
            self._tell(reason)
        self._reasons.clear()

    def _set_timer(self, reason: str) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._interval_seconds, self._next_interval, reason)

    def _next_interval(self, reason: str) -> None:
        if self._tell(reason):
            self._reasons[reason].timer = self._set_timer(reason)
        else:
            del self._reasons[reason]

    def _tell(self, reason: str) -> bool:
        """Whether there was anything to tell."""
        known = self._reasons[reason]
        if known.facts is None:
            return False
        self._log.info(self._event, reason=reason, count=known.count, **known.facts)
        known.count, known.facts = 0, None
        return True
