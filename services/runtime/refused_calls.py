"""Callers that go on and on with calls for which they have no room. Pure: the time is an argument.

A call that is refused has cost the server nearly as much as one that is served, and whoever is cut off for it
comes again over another connection. So refusals of a caller count over all its connections, and while there
were too many of them it gets no new one.
"""

from collections import OrderedDict

CALLS_PER_SECOND = 128.0
"""Refused of one caller before it has to wait."""
MAX_CALLERS = 1024


class RefusedCalls:
    """Of one server. Of more than MAX_CALLERS the one that was refused longest ago is forgotten."""

    def __init__(self) -> None:
        self._settled_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._settled_at)

    def add(self, name: str, calls: int, now: float) -> None:
        """So many more of a caller's calls were refused."""
        settled_at = max(now, self._settled_at.pop(name, now)) + calls / CALLS_PER_SECOND
        self._settled_at[name] = settled_at
        if len(self._settled_at) > MAX_CALLERS:
            self._settled_at.popitem(last=False)

    def wait_seconds(self, name: str, now: float) -> float:
        """How long until the caller may connect anew; 0: it may now."""
        settled_at = self._settled_at.get(name)
        if settled_at is None:
            return 0.0
        if settled_at <= now:
            del self._settled_at[name]
        return max(0.0, settled_at - now - 1.0)
