"""Invariants 1 to 3: what became of the messages that were accepted. Pure.

Each check answers one sentence per breach; none means that the invariant held.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from chaos.history import Held, Key, Outcome, Place, Publish, Step, Waiting


@dataclass(slots=True)
class _Object:
    """All that was published about one object."""

    accepted: int = 0
    """The highest accepted version that deletes nothing."""
    unknown: set[int] = field(default_factory=set)
    deleted: bool = False
    """A delete was accepted."""
    maybe_deleted: bool = False

    def add(self, publish: Publish) -> None:
        known = publish.outcome is Outcome.ACCEPTED
        if publish.deletes:
            self.deleted |= known
            self.maybe_deleted |= not known
        elif known:
            self.accepted = max(self.accepted, publish.version)
        else:
            self.unknown.add(publish.version)

    def supersedes(self, version: int) -> bool:
        """Whether something about it may have taken the place of this version."""
        return self.deleted or self.maybe_deleted or max(self.accepted, *self.unknown, 0) > version

    @property
    def counts(self) -> bool:
        """Whether the hub is bound to anything about it."""
        return bool(self.accepted) or self.deleted

    def may_end_as(self, uid: str) -> set[Held | None]:
        """What a place may hold if this is its last object; None: nothing."""
        if self.deleted:
            return {None}
        ends: set[Held | None] = {Held(uid, version) for version in self.unknown if version > self.accepted}
        if self.accepted:
            ends.add(Held(uid, self.accepted))
        if self.maybe_deleted or not self.accepted:
            ends.add(None)
        return ends


def _relevant(publishes: Iterable[Publish]) -> Iterable[Publish]:
    return (one for one in publishes if one.outcome in (Outcome.ACCEPTED, Outcome.UNKNOWN))


def _objects(publishes: Iterable[Publish]) -> dict[Key, _Object]:
    found: dict[Key, _Object] = {}
    for publish in _relevant(publishes):
        found.setdefault(publish.key, _Object()).add(publish)
    return found


def lost(publishes: list[Publish], steps: Iterable[Step], waiting: Iterable[Waiting]) -> list[str]:
    """Invariant 1: an accepted message was applied, superseded, or is where the hub says it is."""
    applied: set[tuple[Key, int]] = set()
    gone: set[Key] = set()
    for step in steps:
        if step.operation == "delete":
            gone.add(step.key)
        else:
            applied.add((step.key, step.version))
    excused = {Key(one.node_id, one.uid): one.version for one in waiting}
    objects = _objects(publishes)
    breaches = []
    for publish in publishes:
        if publish.outcome is not Outcome.ACCEPTED:
            continue
        # Any one of an object's deletes ends it: they supersede each other.
        if publish.key in gone if publish.deletes else (publish.key, publish.version) in applied:
            continue
        if publish.version <= excused.get(publish.key, -1):
            continue
        if not publish.deletes and objects[publish.key].supersedes(publish.version):
            continue
        breaches.append(
            f"{publish.node_id} {publish.resource}: {publish.operation} of {publish.uid} "
            f"version {publish.version} was accepted and is gone"
        )
    return breaches


def not_newest(
    publishes: Iterable[Publish], held: Mapping[Place, Held], waiting: Iterable[Waiting]
) -> list[str]:
    """Invariant 3: what a quiet node holds is the newest accepted version of every object."""
    excused = {Key(one.node_id, one.uid) for one in waiting}
    places: dict[Place, dict[str, _Object]] = {}
    for publish in _relevant(publishes):
        places.setdefault(publish.place, {}).setdefault(publish.uid, _Object()).add(publish)
    breaches = []
    for place, objects in places.items():
        allowed: set[Held | None] = {None}
        for uid, one in objects.items():
            # An object that may not have come to be leaves what was there before possible.
            allowed = one.may_end_as(uid) | (set() if one.counts else allowed)
        found = held.get(place)
        if found not in allowed and not any(Key(place.node_id, uid) in excused for uid in objects):
            wanted = " or ".join(sorted(_name(one) for one in allowed))
            breaches.append(f"{place.node_id} {place.resource}: holds {_name(found)}, not {wanted}")
    breaches += [
        f"{place.node_id} {place.resource}: holds {_name(found)}, which nobody published"
        for place, found in held.items()
        if place not in places
    ]
    return breaches


def refused_wrongly(publishes: list[Publish]) -> list[str]:
    """C13: what the hub would not take although nothing newer of its object was ever published."""
    newest: dict[Key, int] = {}
    deletes: Counter[Key] = Counter()
    for publish in publishes:
        if publish.deletes:
            deletes[publish.key] += 1
        else:
            newest[publish.key] = max(newest.get(publish.key, 0), publish.version)
    return [
        f"{one.node_id} {one.resource}: {one.operation} of {one.uid} version {one.version} "
        f"was {one.outcome.value}"
        for one in publishes
        if one.outcome is Outcome.REJECTED
        or (
            one.outcome is Outcome.STALE
            and newest.get(one.key, 0) <= one.version
            and deletes[one.key] <= one.deletes
        )
    ]


def stale_overwrites(steps: Iterable[Step]) -> list[str]:
    """Invariant 2: after a version of an object no lower one comes; after its deletion nothing of it but
    the deletion again; after a later object of its path (C15) nothing of it at all."""
    highest: dict[Key, int] = {}
    gone: set[Key] = set()
    order: dict[Place, list[str]] = {}
    breaches = []
    for step in steps:
        where = f"{step.node_id} {step.resource}: {step.operation} of {step.uid} version {step.version}"
        if step.operation == "delete":
            gone.add(step.key)
        elif step.key in gone:
            breaches.append(f"{where} came after its deletion")
        elif step.version < highest.get(step.key, 0):
            breaches.append(f"{where} came after {highest[step.key]}")
        highest[step.key] = max(highest.get(step.key, 0), step.version)
        seen = order.setdefault(step.place, [])
        if step.uid not in seen:
            seen.append(step.uid)
        elif seen[-1] != step.uid:
            breaches.append(f"{where} came after {seen[-1]}")
    return breaches


def uploads_lost(confirmed: Mapping[str, Iterable[int]], handed: Mapping[str, Iterable[int]]) -> list[str]:
    """C31: every upload that was confirmed to its node was handed to a subscriber."""
    return [
        f"{node_id}: upload {number} was confirmed and never handed on"
        for node_id, numbers in confirmed.items()
        for number in sorted(set(numbers).difference(handed.get(node_id, ())))
    ]


def uploads_out_of_order(handed: Mapping[str, Iterable[int]]) -> list[str]:
    """C31: leaving repetitions aside, a node's uploads are handed on in the order of their numbers."""
    return [
        f"{node_id}: upload {later} came before {earlier}"
        for node_id, numbers in handed.items()
        for later, earlier in pairwise(dict.fromkeys(numbers))
        if earlier < later
    ]


def _name(held: Held | None) -> str:
    return f"{held.uid} version {held.version}" if held else "nothing"
