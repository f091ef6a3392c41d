"""What happens in a day: the night's lull, the morning's wave, updates, weak links, restarts. Pure."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class What(StrEnum):
    """One thing that happens to the hub or to its edges."""

    LEAVE = "the second site goes home"
    """Its links are dropped and not dialled again; what is published to it waits."""
    RETURN = "the second site comes back"
    """All of its links at once, each to a backlog."""
    UPDATE = "rolling update"
    """Publishers work ten times as fast as at night."""
    CALM = "end of the update"
    CUT = "cable cut"
    """Every link of the first site is dropped at once; they come back by themselves."""
    WEAK = "weak links"
    """Some nodes are black-holed, one after the other, for longer and shorter than a keepalive."""
    RESTART = "restart"
    """A process is told to end (SIGTERM) and started again when it has."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens at an hour of the day, 0 to 24."""

    hour: float
    what: What
    service: str = ""
    """Which service restarts."""

    def __str__(self) -> str:
        return f"{self.what.value} of {self.service}" if self.service else self.what.value


# Services are restarted while everybody is there, at quiet and at busy hours.
_DAY = (
    Event(0.0, What.LEAVE),
    Event(6.0, What.RETURN),
    Event(8.0, What.UPDATE),
    Event(9.5, What.WEAK),
    Event(11.0, What.CALM),
    Event(11.5, What.CUT),
    Event(12.5, What.RESTART, "connector"),
    Event(14.0, What.UPDATE),
    Event(14.5, What.RESTART, "dispatcher"),
    Event(16.0, What.RESTART, "sessions"),
    Event(17.0, What.CALM),
    Event(17.5, What.WEAK),
    Event(19.0, What.CUT),
)
HOURS = 24.0
NIGHT_ENDS = 5.8
"""What there is at this hour is held against the same hour of other days."""


def days(count: int) -> Iterator[tuple[int, Event]]:
    """Everything that happens, with the number of the day, from 0. No service is restarted on the first and
    every other day, so that what piles up has days to show."""
    for day in range(count):
        for event in _DAY:
            if event.what is not What.RESTART or day % 2:
                yield day, event
