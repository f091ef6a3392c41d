"""Ids of events: they grow with time, and two processes that write to one history do not share any.

An id is a count of microseconds and, in its lowest bits, the process that gave it out. Should two processes
have drawn the same number, the later commit meets the earlier one's row and is run again with new ids.
"""

import random

_WRITERS = 2048  # leaves microseconds until the year 2112 in 63 bits


def first_id_of(at_ms: int) -> int:
    """The lowest id of an instant, for comparing."""
    return at_ms * 1000 * _WRITERS


class EventIds:
    """`last` is the highest id that was given out before, by whomever."""

    def __init__(self, last: int = 0) -> None:
        self._last = last // _WRITERS
        self._writer = random.randrange(_WRITERS)

    def next(self, at_ms: int) -> int:
        """An id of this instant, or one just above the last."""
        self._last = max(self._last + 1, at_ms * 1000)
        return self._last * _WRITERS + self._writer
