"""Log lines of what any stranger can cause as often as he likes: a few per reason, cause and interval."""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

from services.runtime.logs import Log

INTERVAL_SECONDS = 10.0
_MOST_TOPICS = 256

_Topic = tuple[str, str]


@dataclass(slots=True)
class _Told:
    timer: asyncio.TimerHandle
    lines: int = 1
    count: int = 0
    facts: dict[str, Any] | None = None
    """Of the last one that is not told yet."""


class FailureLog:
    """The first failures of a reason (`burst` of them) are told at once, those of the next seconds together,
    as the last of them with a `count`. Whoever makes it closes it."""

    def __init__(
        self,
        log: Log,
        event: str,
        interval_seconds: float = INTERVAL_SECONDS,
        *,
        burst: int = 1,
        level: int = logging.INFO,
    ) -> None:
        self._log = log
        self._event = event
        self._interval_seconds = interval_seconds
        self._burst = burst
        self._level = level
        self._topics: dict[_Topic, _Told] = {}

    def add(self, reason: str, by: str = "", times: int = 1, **facts: Any) -> None:
        """Something failed, so many times at once. Reasons are of a fixed set; `by` is who caused it, where
        each has lines of his own. Of very many at once those that come late are told together."""
        topic = (reason, by if len(self._topics) < _MOST_TOPICS or (reason, by) in self._topics else "")
        told = self._topics.get(topic)
        if told is None:
            told = self._topics[topic] = _Told(self._set_timer(topic), lines=0)
        if told.lines < self._burst:
            told.lines += 1
            self._log.log(self._level, self._event, reason=reason, **facts)
            times -= 1
        if times:
            told.count += times
            told.facts = facts

    @property
    def waiting(self) -> int:
        """Reasons, each of one cause, of which a line was written within the interval."""
        return len(self._topics)

    def close(self) -> None:
        """Tells what is untold, and nothing more by itself."""
        for topic in list(self._topics):
            self._topics[topic].timer.cancel()
            self._tell(topic)
        self._topics.clear()

    def _set_timer(self, topic: _Topic) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(self._interval_seconds, self._next_interval, topic)

    def _next_interval(self, topic: _Topic) -> None:
        if self._tell(topic):
            told = self._topics[topic]
            told.timer, told.lines = self._set_timer(topic), self._burst
        else:
            del self._topics[topic]

    def _tell(self, topic: _Topic) -> bool:
        """Whether there was anything to tell."""
        told = self._topics[topic]
        if told.facts is None:
            return False
        self._log.log(self._level, self._event, reason=topic[0], count=told.count, **told.facts)
        told.count, told.facts = 0, None
        return True
