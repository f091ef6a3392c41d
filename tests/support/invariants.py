"""What must be true of a hub once it is quiet: pure checks over what was accepted and what edges hold.

Each check answers one sentence per breach; none means that the invariant held.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple


class Place(NamedTuple):
    """Where an edge keeps an object: an edge knows objects by their resource path."""

    node_id: str
    resource: str


class Held(NamedTuple):
    """One version of one object."""

    uid: str
    version: int


class Step(NamedTuple):
    """One message that an edge applied; `version` is None where the message carried none."""

    place: Place
    uid: str
    version: int | None
    operation: str


@dataclass(slots=True)
class Acceptances:
    """The newest accepted object of every place; None once its deletion was accepted."""

    newest: dict[Place, Held | None] = field(default_factory=dict)
    count: int = 0

    def stored(self, place: Place, uid: str, version: int) -> None:
        """An insert or update was accepted."""
        self.newest[place] = Held(uid, version)
        self.count += 1

    def deleted(self, place: Place) -> None:
        """A delete was accepted."""
        self.newest[place] = None
        self.count += 1


def not_arrived(acceptances: Acceptances, held: Mapping[Place, Held]) -> list[str]:
    """Invariants 1 and 3: what a quiet node ends with is the newest accepted version of every key."""
    breaches = []
    for place, wanted in acceptances.newest.items():
        found = held.get(place)
        if found != wanted:
            breaches.append(f"{place.node_id} {place.resource}: holds {_name(found)}, not {_name(wanted)}")
    breaches += [
        f"{place.node_id} {place.resource}: holds {_name(found)}, which nobody published"
        for place, found in held.items()
        if place not in acceptances.newest
    ]
    return breaches


def steps_back(history: Iterable[Step]) -> list[str]:
    """Invariant 2: after a version of an object no lower one came; after its deletion nothing came but
    the deletion again."""
    highest: dict[tuple[str, str], int] = {}
    gone: set[tuple[str, str]] = set()
    breaches = []
    for step in history:
        key = (step.place.node_id, step.uid or step.place.resource)
        if step.operation == "delete":
            gone.add(key)
        elif key in gone:
            breaches.append(f"{key[0]} {key[1]}: version {step.version} came after the deletion")
        if step.version is None:
            continue
        if step.version < highest.get(key, 0):
            breaches.append(f"{key[0]} {key[1]}: version {step.version} came after {highest[key]}")
        highest[key] = max(highest.get(key, 0), step.version)
    return breaches


def hidden_successors(history: Iterable[Step]) -> list[str]:
    """C15: once a later object of a path came, nothing of an earlier one comes, not even its deletion."""
    order: dict[Place, list[str]] = {}
    breaches = []
    for step in history:
        seen = order.setdefault(step.place, [])
        if step.uid not in seen:
            seen.append(step.uid)
        elif seen[-1] != step.uid:
            breaches.append(
                f"{step.place.node_id} {step.place.resource}: "
                f"{step.operation} of {step.uid} came after {seen[-1]}"
            )
    return breaches


def numbers_missing(confirmed: Mapping[str, Iterable[int]], handed: Mapping[str, list[int]]) -> list[str]:
    """C31: every upload number that was confirmed to a node was handed to a subscriber."""
    return [
        f"{node_id}: upload {number} was confirmed and never handed on"
        for node_id, numbers in confirmed.items()
        for number in sorted(set(numbers).difference(handed.get(node_id, ())))
    ]


def numbers_out_of_order(handed: Mapping[str, Iterable[int]]) -> list[str]:
    """C31: leaving repetitions aside, a node's uploads are handed on in the order of their numbers."""
    breaches = []
    for node_id, numbers in handed.items():
        first_seen = list(dict.fromkeys(numbers))
        breaches += [
            f"{node_id}: upload {later} came before {earlier}"
            for later, earlier in pairwise(first_seen)
            if earlier < later
        ]
    return breaches


def _name(held: Held | None) -> str:
    return f"{held.uid} version {held.version}" if held else "nothing"
