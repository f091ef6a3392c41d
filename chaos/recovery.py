"""When the hub has got over a fault. Pure: time is an argument."""

from dataclasses import dataclass

IN_FLIGHT_SECONDS = 0.4
"""What was on its way when the fault came is answered by then; it proves nothing."""


@dataclass(frozen=True, slots=True)
class Vitals:
    """One look at the hub; `at` in seconds, any clock that only grows."""

    at: float
    links: int
    """Links that edges say they have."""
    sessions: int
    """ACTIVE sessions in the registry; -1: it did not answer."""
    accepted: int
    """Messages that publishers got accepted since the run began."""
    stored: tuple[int, ...]
    """Messages that each node has stored since the run began."""
    pending: int
    """Messages that the hub waits for; -1: it did not answer."""


class Recovery:
    """Follows the hub from a fault on, at `since`; the fault need not be undone.

    Recovered: publishes are accepted again, every node has its link and its session and has stored
    something new since then, and what is pending falls, or is no more than `usual_pending`.
    """

    def __init__(self, since: float, usual_pending: int) -> None:
        self._begins_at = since + IN_FLIGHT_SECONDS
        self._usual_pending = usual_pending
        self._most_pending = 0
        self._accepted: int | None = None
        self._stored: tuple[int, ...] | None = None

    def look(self, vitals: Vitals) -> float | None:
        """The instant of recovery; None while it has not come."""
        if vitals.at < self._begins_at:
            return None
        if self._accepted is None:
            self._accepted = vitals.accepted
        if self._stored is None and vitals.accepted > self._accepted:
            self._stored = vitals.stored
        self._most_pending = max(self._most_pending, vitals.pending)
        nodes = len(vitals.stored)
        whole = vitals.links >= nodes and vitals.sessions >= nodes
        moved = self._stored is not None and all(
            now > before for now, before in zip(vitals.stored, self._stored, strict=True)
        )
        falls = 0 <= vitals.pending < self._most_pending or 0 <= vitals.pending <= self._usual_pending
        return vitals.at if whole and moved and falls else None
