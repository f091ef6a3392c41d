"""When the hub has got over a fault. Pure: time is an argument."""

from dataclasses import dataclass

IN_FLIGHT_SECONDS = 0.4
"""What was on its way when the fault came is stored by then; it proves nothing."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look at the hub; `at` in seconds, any clock that only grows."""

    at: float
    links: int
    """Links that edges say they have."""
    sessions: int
    """ACTIVE sessions in the registry; -1: it did not answer."""
    stored: tuple[int, ...]
    """Messages that each node has stored since the run began."""
    pending: int
    """Messages that the hub waits for; -1: it did not answer."""


class Recovery:
    """Follows the hub from a fault on, at `since`; the fault need not be undone.

    Recovered: every node has its link and its session and has stored something new since the fault,
    and what is pending falls, or is no more than `usual_pending`.
    """

    def __init__(self, since: float, usual_pending: int) -> None:
        self._begins_at = since + IN_FLIGHT_SECONDS
        self._usual_pending = usual_pending
        self._most_pending = 0
        self._before: tuple[int, ...] | None = None

    def look(self, vitals: Vitals) -> float | None:
        """The instant of recovery; None while it has not come."""
        if vitals.at < self._begins_at:
            return None
        if self._before is None:
            self._before = vitals.stored
        self._most_pending = max(self._most_pending, vitals.pending)
        nodes = len(vitals.stored)
        whole = vitals.links >= nodes and vitals.sessions >= nodes
        moved = all(now > before for now, before in zip(vitals.stored, self._before, strict=True))
        falls = 0 <= vitals.pending < self._most_pending or 0 <= vitals.pending <= self._usual_pending
        return vitals.at if whole and moved and falls else None
