"""When the hub has got over a fault. Pure: time is an argument."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look at the hub; `at` in seconds, any clock that only grows."""

    at: float
    links: int
    """Links that edges say they have."""
    sessions: int
    """ACTIVE sessions in the registry; -1: it did not answer."""
    acknowledged: tuple[int, ...]
    """Messages that each fleet has stored since the run began."""
    pending: int
    """Messages that the hub waits for; -1: it did not answer."""


class Recovery:
    """Follows the hub after a fault, from when the fault is undone.

    Recovered: `nodes` links and sessions are there (with a limit on sessions: as many as it admits), every
    fleet has stored something new since that was first so, and what is pending falls, or is no more than
    `usual_pending`.
    """

    def __init__(self, nodes: int, usual_pending: int) -> None:
        self._nodes = nodes
        self._usual_pending = usual_pending
        self._most_pending = 0
        self._whole: Vitals | None = None

    def look(self, vitals: Vitals) -> float | None:
        """The instant of recovery; None while it has not come."""
        self._most_pending = max(self._most_pending, vitals.pending)
        if vitals.links < self._nodes or vitals.sessions < self._nodes:
            self._whole = None
            return None
        if self._whole is None:
            self._whole = vitals
            return None
        moved = all(
            now > then for now, then in zip(vitals.acknowledged, self._whole.acknowledged, strict=True)
        )
        falls = 0 <= vitals.pending < self._most_pending or 0 <= vitals.pending <= self._usual_pending
        return vitals.at if moved and falls else None
