"""How long the processes of the hub have been silent, as this one sees it. Pure.

Every process counts its signs of life in a row; whoever looks at the rows sees whether the count grew.
"""

from collections.abc import Iterable
from typing import NamedTuple

from services.sessions.leases import Patience


class Sign(NamedTuple):
    """A process and how often it has been heard of."""

    instance_id: str
    heard: int


class Presence:
    """Fed by whoever looks regularly; looks more than `most_gap_seconds` apart begin anew."""

    def __init__(self, most_gap_seconds: float) -> None:
        self._patience: Patience[Sign] = Patience(most_gap_seconds)
        self._since: dict[Sign, float] = {}

    def look(self, seen: Iterable[Sign], now: float) -> list[tuple[Sign, float]]:
        """The silence in seconds of each process seen; those that are not seen any more are forgotten."""
        ages = self._patience.look(seen, now)
        self._since = {sign: now - age for sign, age in ages}
        return ages

    def silent_seconds(self, sign: Sign, now: float) -> float:
        """Since a process was last heard of; 0 if that was after the last look."""
        return max(0.0, now - self._since.get(sign, now))
