"""Whether a database takes writes, by what became of them. Pure: instants are monotonic seconds."""

from dataclasses import dataclass
from math import isfinite

PROBE_SECONDS = 5.0
"""Without a write for so long, one is tried: a disk that filled up is noticed before somebody needs it."""
AGAIN_SECONDS = 1.0
"""While it takes none. Also the least time from a write that failed to one that makes it well again: where
small writes pass and large ones fail, it is not."""
MOST_AGAIN_SECONDS = 30.0
"""Where what is tried passes and what is asked for fails, the time doubles up to this."""
_RELAPSE_SECONDS = 60.0


@dataclass(slots=True)
class StoreHealth:
    """Of one database, as one process sees it; not well until the first write passed."""

    detail: str = "no write was tried yet"
    """Why it takes no writes."""
    takes_writes: bool = False
    _failed_at: float = float("-inf")
    _recovered_at: float = float("-inf")
    _tried_at: float = float("-inf")
    _again_seconds: float = AGAIN_SECONDS

    def failed(self, detail: str, now: float) -> None:
        """A write could not be committed; those that were refused for their values are none of these."""
        if self.takes_writes:
            relapsed = now - self._recovered_at < _RELAPSE_SECONDS
            self._again_seconds = (
                min(MOST_AGAIN_SECONDS, 2 * self._again_seconds) if relapsed else AGAIN_SECONDS
            )
        self.detail, self.takes_writes = detail, False
        self._failed_at = self._tried_at = now

    def passed(self, now: float) -> None:
        """A transaction that wrote is durable."""
        self._tried_at = now
        if not self.takes_writes and now - self._failed_at >= self._again_seconds:
            self.takes_writes, self.detail = True, ""
            if isfinite(self._failed_at):
                self._recovered_at = now

    def tried(self, now: float) -> None:
        """A write was tried that says nothing of the database, since somebody held its row."""
        self._tried_at = now

    def wants_probe(self, now: float) -> bool:
        """Whether it is time to try a write for no other reason."""
        return now - self._tried_at >= (PROBE_SECONDS if self.takes_writes else AGAIN_SECONDS)
