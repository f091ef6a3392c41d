"""When silence counts: leases of dispatchers and ends that nobody confirms. Pure.

A reaper looks every so often and says what it sees and when, on its monotonic clock. Only time
in which it looked counts: after a gap (its process was stopped, the database was away) nobody
could have renewed, so every wait begins anew, as at its start.
"""

from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


class Patience(Generic[K]):
    """How long each of the things last seen has been seen without a gap."""

    def __init__(self, most_gap_seconds: float) -> None:
        self._most_gap_seconds = most_gap_seconds
        self._since: dict[K, float] = {}
        self._last: float | None = None

    def look(self, seen: Iterable[K], now: float) -> list[tuple[K, float]]:
        """The age in seconds of each thing seen; what is not seen any more is forgotten."""
        gap = self._last is None or now - self._last > self._most_gap_seconds
        former = {} if gap else self._since
        self._last = now
        self._since = {key: former.get(key, now) for key in seen}
        return [(key, now - since) for key, since in self._since.items()]


@dataclass(frozen=True, slots=True)
class Observation:
    """A lease as the reaper finds it; `renewals` grows with every renewal."""

    dispatcher_id: str
    renewals: int


class Verdict(Enum):
    """What is to be done about a silent dispatcher."""

    LOSE = "orphan its sessions"
    EXPIRE = "close its orphaned sessions"


@dataclass(frozen=True, slots=True)
class Due:
    """To be carried out only while the lease is still as observed."""

    lease: Observation
    verdict: Verdict


class LeaseWatch:
    """Judges leases: lost after one lease of silence, expired after two more."""

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._patience: Patience[Observation] = Patience(lease_seconds / 3)
        self._done: set[Due] = set()

    def look(self, leases: Iterable[Observation], now: float) -> list[Due]:
        """What is due and not reported as done; repeated until it is."""
        ages = self._patience.look(leases, now)
        due = [
            Due(lease, verdict)
            for lease, age in ages
            for verdict, after in ((Verdict.LOSE, 1), (Verdict.EXPIRE, 3))
            if age >= after * self._lease_seconds
        ]
        self._done &= set(due)
        return [item for item in due if item not in self._done]

    def done(self, item: Due) -> None:
        """That verdict was carried out; it is not given again while the lease stays silent."""
        self._done.add(item)
