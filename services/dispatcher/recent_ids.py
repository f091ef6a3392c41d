"""Ids of messages that were sent to a node and are over: it may answer them yet. Pure."""

from collections import deque

# Late acknowledgements are known by their content; these are for late refusals, which are rare.
MAX_RECENT_IDS = 16


class RecentIds:
    """The last ones, at most `MAX_RECENT_IDS`; the oldest is forgotten first."""

    __slots__ = ("_ids",)

    def __init__(self) -> None:
        self._ids: deque[str] | None = None  # many a node has a link and gets nothing

    def add(self, message_id: str) -> None:
        """The message is over."""
        if self._ids is None:
            self._ids = deque(maxlen=MAX_RECENT_IDS)
        self._ids.append(message_id)

    def __contains__(self, message_id: str) -> bool:
        return self._ids is not None and message_id in self._ids
