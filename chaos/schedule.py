"""Which faults are injected, in which order, for how long: the same seed gives the same schedule. Pure."""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from chaos.settings import StoreKind


class FaultKind(StrEnum):
    """What is done to a part of the system."""

    KILL = "kill"
    """kill -9; started again after the hold."""
    PAUSE = "pause"
    """SIGSTOP for less than a lease, then SIGCONT."""
    LONG_PAUSE = "long pause"
    """SIGSTOP for longer than a lease, then SIGCONT."""
    DRAIN = "drain"
    """SIGTERM: it must end by itself; then started again."""
    OVERTAKE = "overtake"
    """SIGSTOP and SIGCONT, for less than a lease; meanwhile links move to another replica that has just come,
    and when it wakes it does not hear of that for a while."""
    CUT = "cut"
    """Every link of an edge fleet is dropped at once."""
    RESTART = "restart"
    """The database is stopped as by a crash, and started again after the hold."""
    FAILOVER = "failover"
    """The primary is killed, the standby promoted; the former primary comes back as the standby."""
    SWITCHOVER = "switchover"
    """The standby is told to take over from a primary that lives."""


SERVICES = ("sessions", "dispatcher", "connector")
EDGES = "edges"
EARLY = 2
"""An `overtake` is among the first so many faults, and the next one ends enrolment."""
ENROLMENT = "enrolment"
"""One process; links need none."""
DATABASE = "database"


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault, and how long the run goes on undisturbed after the recovery from it."""

    kind: FaultKind
    target: str
    """A service, `enrolment`, `edges` or `database`."""
    replica: int
    """Which of the target's processes, from 0."""
    hold_seconds: float
    """From the fault until it is undone."""
    calm_seconds: float

    @property
    def name(self) -> str:
        """As the table counts it."""
        return f"{self.kind.value} {self.target}"

    def leaves_others(self, replicas: int, *, edges_know_all: bool = True) -> bool:
        """Whether somebody else can do the target's work until the fault is undone: not that of a connector,
        if it is the only one that its edges know."""
        if self.target == ENROLMENT:
            return True
        if self.target == "connector" and not edges_know_all:
            return False
        return self.target in SERVICES and replicas > 1 and self.kind is not FaultKind.OVERTAKE

    def __str__(self) -> str:
        return f"{self.kind.value} of {self.target} {self.replica + 1} for {self.hold_seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Stage:
    """What there is to break. `lease_seconds` tells short pauses from long ones."""

    replicas: int
    fleets: int
    lease_seconds: float
    store: StoreKind
    """SQLite is left alone; of two PostgreSQL servers one can be restarted and the other take over."""


def schedule(seed: int, stage: Stage) -> Iterator[Fault]:
    """Faults without end. Every kind comes once, in an order of chance, before any comes again; an `overtake`
    and an end of enrolment are among the first."""
    chance = random.Random(seed)
    overtake, enrolment = (FaultKind.OVERTAKE, "dispatcher"), (FaultKind.KILL, ENROLMENT)
    while True:
        deck = _deck(stage)
        chance.shuffle(deck)
        if overtake in deck:
            # Every run is to have it, also one too short for all kinds.
            deck.remove(overtake)
            deck.insert(chance.randrange(EARLY), overtake)
        deck.remove(enrolment)
        deck.insert(EARLY, enrolment)
        for kind, target in deck:
            count = {EDGES: stage.fleets, DATABASE: 1, ENROLMENT: 1}.get(target, stage.replicas)
            yield Fault(
                kind,
                target,
                chance.randrange(count),
                round(_hold_seconds(kind, stage, chance), 2),
                round(chance.uniform(0.2, 1.0), 2),
            )


def _deck(stage: Stage) -> list[tuple[FaultKind, str]]:
    kinds = (FaultKind.KILL, FaultKind.PAUSE, FaultKind.LONG_PAUSE, FaultKind.DRAIN)
    deck = [(kind, service) for service in SERVICES for kind in kinds]
    if stage.replicas > 1:
        deck += [(FaultKind.OVERTAKE, "dispatcher")]
    deck += [(FaultKind.CUT, EDGES), (FaultKind.KILL, EDGES), (FaultKind.KILL, ENROLMENT)]
    if stage.store is not StoreKind.SQLITE:
        deck += [(FaultKind.RESTART, DATABASE), (FaultKind.FAILOVER, DATABASE)]
    if stage.store is StoreKind.PATRONI:
        deck += [(FaultKind.SWITCHOVER, DATABASE)]
    return deck


def _hold_seconds(kind: FaultKind, stage: Stage, chance: random.Random) -> float:
    lease = stage.lease_seconds
    match kind:
        case FaultKind.PAUSE:
            return chance.uniform(0.2, 0.6) * lease
        case FaultKind.LONG_PAUSE:
            return chance.uniform(1.3, 1.8) * lease
        case FaultKind.OVERTAKE:
            # Long enough for what it sent before to be due again; its streams live on for a lease.
            return chance.uniform(0.5, 0.56) * lease
        case FaultKind.KILL | FaultKind.RESTART:
            # Often back before anybody has noticed, sometimes after the lease.
            return chance.choice((0.0, 0.3 * lease, 1.5 * lease))
        case FaultKind.DRAIN | FaultKind.CUT | FaultKind.FAILOVER | FaultKind.SWITCHOVER:
            return 0.0
