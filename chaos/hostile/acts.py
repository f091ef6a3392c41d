"""What hostile parties do, how much of it and how often: the same seed gives the same acts. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class ActKind(StrEnum):
    """One way to misbehave; those of one kind come one after the other, different kinds side by side."""

    SILENT = "silent sockets"
    """Connections to a port of the hub that say nothing, or half a word, until the hub ends them."""
    POISON = "poison message"
    """A message on which its edge ends the link, each time, and another one behind it."""
    MUTE = "mute subscriber"
    """A subscriber that takes what it gets and acknowledges nothing."""
    FLAPPING = "flapping edge"
    """A node whose links end as soon as they have brought something, unacknowledged."""
    UPLOADS = "storm of uploads"
    """A node that sends uploads without waiting for an answer."""
    UNKNOWN = "unknown nodes"
    """A message to nodes that there are not."""
    REFUSED = "refused publishes"
    """Messages that no hub may take."""


@dataclass(frozen=True, slots=True)
class Act:
    """One of them. `number` counts those of its kind from 1; `size` is how many sockets, links, nodes or
    messages it takes."""

    kind: ActKind
    number: int
    size: int
    hold_seconds: float
    """How long it keeps what it took, if nobody takes it away."""
    pause_seconds: float
    """Until the next one of its kind."""


@dataclass(frozen=True, slots=True)
class _Range:
    size: tuple[int, int]
    hold_seconds: tuple[float, float]
    pause_seconds: tuple[float, float]


_RANGES = {
    ActKind.SILENT: _Range((5, 60), (0.1, 3.0), (0.2, 1.0)),
    ActKind.POISON: _Range((1, 1), (0.0, 0.0), (1.0, 4.0)),
    ActKind.MUTE: _Range((1, 3), (0.5, 4.0), (0.5, 2.0)),
    ActKind.FLAPPING: _Range((1, 8), (0.0, 0.1), (0.3, 1.5)),
    ActKind.UPLOADS: _Range((5, 60), (0.1, 0.5), (0.5, 2.0)),
    ActKind.UNKNOWN: _Range((1, 60), (0.0, 0.0), (0.3, 1.5)),
    ActKind.REFUSED: _Range((1, 12), (0.0, 0.0), (0.2, 1.0)),
}


def acts(seed: int, kind: ActKind) -> Iterator[Act]:
    """Acts of a kind without end."""
    chance = random.Random(f"{seed} {kind}")
    ranges = _RANGES[kind]
    number = 0
    while True:
        number += 1
        yield Act(
            kind,
            number,
            chance.randint(*ranges.size),
            round(chance.uniform(*ranges.hold_seconds), 2),
            round(chance.uniform(*ranges.pause_seconds), 2),
        )
