"""Uploads on their way to the hub: in order, few at a time, repeated until confirmed.

Pure: time is an argument, in seconds. Uploads enter when they are durable and leave when the hub
has answered `OK`. Without progress for a growing while everything in flight is sent again, in
order, so that the hub sees the numbers of a node in order even if it lost some.
"""

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple


class Upload(NamedTuple):
    """One durable message upstream; `number` counts 1, 2, 3, ... within the node, for ever."""

    node_id: str
    number: int
    msg_id: str
    resource: str
    content: bytes
    """One JSON value."""
    at_ms: int


class SetAside(NamedTuple):
    """An upload that the hub does not take, and why."""

    upload: Upload
    reason: str


class UploadWindow:
    """The unconfirmed uploads of one node and which of them the present link has carried.

    When the hub ends a link over what it was sent, the uploads in flight are sent one at a time from then on:
    the one that is alone in flight when it does so again is the culprit.

    `most_in_flight` uploads are unanswered on a link at once. `repeat_seconds` without an answer
    start over; the time doubles with each repeat that brings none, up to `most_repeat_seconds`.
    """

    def __init__(self, most_in_flight: int, repeat_seconds: float, most_repeat_seconds: float = 60.0) -> None:
        self._most_in_flight = most_in_flight
        self._first_repeat_seconds = repeat_seconds
        self._most_repeat_seconds = most_repeat_seconds
        self._repeat_seconds = repeat_seconds
        self._waiting: dict[str, Upload] = {}
        self._sent_through = 0
        self._in_flight = 0
        self._repeat_at = 0.0
        # The last one of which the hub may not take one; 0: it takes them all.
        self._doubtful_through = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, msg_id: object) -> bool:
        return msg_id in self._waiting

    def __iter__(self) -> Iterator[Upload]:
        return iter(self._waiting.values())

    @property
    def in_flight(self) -> int:
        """Sent over the present link and not answered."""
        return self._in_flight

    def add(self, upload: Upload) -> None:
        """Takes an upload that is durable; numbers must grow."""
        self._waiting[upload.msg_id] = upload

    def start_over(self) -> None:
        """Nothing is in flight any more: the link is new."""
        self._sent_through = 0
        self._in_flight = 0
        self._repeat_seconds = self._first_repeat_seconds

    def take(self, now: float) -> list[Upload]:
        """What to send now, in order; counts as sent. Also starts over when the time is up."""
        if self._in_flight and now >= self._repeat_at:
            self._sent_through = 0
            self._in_flight = 0
            self._repeat_seconds = min(self._most_repeat_seconds, self._repeat_seconds * 2)
        # Numbers are answered in any order, but what is in flight is always the waiting ones' start.
        chosen = list(islice(self._waiting.values(), self._in_flight, self._most_at_once()))
        if chosen:
            if not self._in_flight:
                self._repeat_at = now + self._repeat_seconds
            self._in_flight += len(chosen)
            self._sent_through = chosen[-1].number
        return chosen

    def _most_at_once(self) -> int:
        if self._doubtful_through:
            first = next(iter(self._waiting.values()), None)
            if first is not None and first.number <= self._doubtful_through:
                return 1
            self._doubtful_through = 0
        return self._most_in_flight

    def sent(self) -> list[Upload]:
        """What is in flight."""
        return list(islice(self._waiting.values(), self._in_flight))

    def objected(self) -> Upload | None:
        """The hub ended the link over something that was sent: the upload that is to be set aside, out of the
        waiting ones already. None if it is not known which, or none was in flight."""
        if not self._in_flight:
            return None
        if self._in_flight > 1 or not self._doubtful_through:
            self._doubtful_through = max(self._doubtful_through, self._sent_through)
            return None
        upload = next(iter(self._waiting.values()))
        del self._waiting[upload.msg_id]
        self._in_flight = 0
        return upload

    def confirm(self, msg_id: str, now: float) -> Upload | None:
        """The hub has it: gives back the upload to be forgotten, None if it is not waited for."""
        upload = self._waiting.pop(msg_id, None)
        if upload is None:
            return None
        if upload.number <= self._sent_through:
            self._in_flight -= 1
        self._repeat_seconds = self._first_repeat_seconds
        self._repeat_at = now + self._repeat_seconds
        return upload
