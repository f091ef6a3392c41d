"""How many log lines one party may cause. Pure: the time is an argument.

A node that comes and goes a hundred times a second must not fill the disk: each has so many lines at once and
one more every few seconds; the next line that it gets says how many were left out.
"""

from collections import OrderedDict

from services.runtime.rate_limit import RateLimit

LINES_AT_ONCE = 10
SECONDS_PER_LINE = 10.0
MAX_PARTIES = 16_384


class LineBudget:
    """For lines of one kind. Of more than `max_parties` that had lines lately, the one that has had none for
    longest begins anew."""

    def __init__(
        self,
        at_once: int = LINES_AT_ONCE,
        seconds_per_line: float = SECONDS_PER_LINE,
        max_parties: int = MAX_PARTIES,
    ) -> None:
        self._limit = RateLimit(1.0 / seconds_per_line, at_once, max_parties)
        self._left_out: OrderedDict[str, int] = OrderedDict()
        self._max_parties = max_parties

    def __len__(self) -> int:
        return len(self._left_out)

    def take(self, party: str, now: float) -> dict[str, int] | None:
        """Facts for the party's line: how many were `left_out` before it, if any. None: leave it out."""
        if self._limit.take(party, now):
            self._left_out[party] = self._left_out.pop(party, 0) + 1
            if len(self._left_out) > self._max_parties:
                self._left_out.popitem(last=False)
            return None
        left_out = self._left_out.pop(party, 0)
        return {"left_out": left_out} if left_out else {}
