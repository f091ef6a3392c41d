"""Whose connections may be in their opening, and who gives way when there are too many. Pure: the time is an
argument.

An opening lasts from the first byte of a stranger until he is known (a link, an answered request, a
handshake that is done) or refused. Few may be at work at a time (`max_openings`), since they cost memory and
processor time. Connections that have not sent a byte, that wait for their turn, or that only have to read our
last words cost a descriptor: of these there may be many more (`max_waiting`).

A network (`rate_limit.network_of`) has no fixed share: a fleet behind one address may have all there is, as
long as nobody else asks for it. When there is no room, the network with the most gives way to those with
fewer.
"""

from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)
# Networks that are looked at for one that may have another's room, whenever time has passed.
_MOST_TRIED = 32
PATIENCE_SECONDS = 0.5
"""More than an opening waits for another one to end where they do end."""


@dataclass(frozen=True, slots=True)
class OpeningLimits:
    """Bounds of a listener. Times in seconds."""

    max_openings: int
    """At work at a time."""
    max_waiting: int
    """Connections that are neither at work nor known: silent, waiting for their turn, or being closed."""
    patience: float = PATIENCE_SECONDS
    """So long one waits for its turn before an opening of a network with more has to give way, and so long
    nobody has to who has just begun."""
    hurried: float = 10.0
    """So long an opening may take at each of its steps while others wait, whosever they are."""


@dataclass(frozen=True, slots=True)
class Turn(Generic[Item]):
    """`begins` is an opening at work from here on; who `gives_way` is forgotten, and to be cut."""

    begins: Item
    gives_way: Item | None = None


class Openings(Generic[Item]):
    """Connections by their network, from `arrive` (or `begin`) to `end`. Whoever is returned to give way is
    forgotten already; `end` is harmless for what is not known."""

    def __init__(self, limits: OpeningLimits) -> None:
        self._limits = limits
        self._idle: _Stage[Item] = _Stage()
        self._ready: _Stage[Item] = _Stage()
        self._working: _Stage[Item] = _Stage()
        self._deciding: _Stage[Item] = _Stage()
        # Networks with somebody ready, in the order of their turns.
        self._turns: deque[str] = deque()

    @property
    def at_work(self) -> int:
        """Openings at work, those included whose request is being decided."""
        return len(self._working) + len(self._deciding)

    @property
    def waiting(self) -> int:
        """Silent, ready and lingering ones."""
        return len(self._idle) + len(self._ready)

    @property
    def ready(self) -> int:
        """Of these, how many have sent something and wait for their turn."""
        return len(self._ready)

    @property
    def has_room(self) -> bool:
        """Whether one more may be at work."""
        return self.at_work < self._limits.max_openings

    def networks(self) -> int:
        """How many networks there is anything known of."""
        stages = (self._idle, self._ready, self._working, self._deciding)
        return len(set().union(*(stage.networks() for stage in stages)))

    # The life of a connection.

    def arrive(self, item: Item, network: str, now: float) -> Item | None:
        """A connection that has sent nothing yet. Returns who has to be cut for it: nobody, another, or
        `item` itself if it has the least right to be here."""
        gone: Item | None = None
        if self.waiting >= self._limits.max_waiting:
            gone = self._leaves_for(network, now)
            if gone is None:
                return item
            self.end(gone)
        self._idle.add(item, network, now)
        return gone

    def heard(self, item: Item, now: float) -> None:
        """Its first bytes came: it waits for its turn, see `next_turn`."""
        network = self._idle.remove(item)
        if network is not None:
            if not self._ready.count(network):
                self._turns.append(network)
            self._ready.add(item, network, now)

    def next_turn(self, now: float) -> Turn[Item] | None:
        """Whose turn it is; None: nobody's for now. To be asked until then after `heard`, `linger` and `end`,
        and from time to time while somebody is `ready`. Networks take turns, in each the oldest."""
        if not self._turns:
            return None
        if self.has_room:
            return self._turn(None, now)
        for _ in range(min(len(self._turns), _MOST_TRIED)):
            network = self._turns[0]
            _, since = self._ready.oldest_of(network)
            if now - since >= self._limits.patience:
                gone = self.give_way(network, now)
                if gone is not None:
                    return self._turn(gone, now)
            self._turns.rotate(-1)
        return None

    def _turn(self, gone: Item | None, now: float) -> Turn[Item]:
        network = self._turns.popleft()
        item, _ = self._ready.oldest_of(network)
        self._ready.remove(item)
        if self._ready.count(network):
            self._turns.append(network)
        self._working.add(item, network, now)
        return Turn(item, gone)

    def begin(self, item: Item, network: str, now: float) -> None:
        """An opening that is at work from its arrival on, where nobody can be made to wait: after `has_room`
        or `give_way` found a place for it."""
        self._working.add(item, network, now)

    def progressed(self, item: Item, now: float) -> None:
        """An opening at work has done one of its steps (a handshake, not a byte)."""
        network = self._working.remove(item)
        if network is not None:
            self._working.add(item, network, now)

    def decide(self, item: Item, now: float) -> None:
        """Its request is whole and waits for an answer, which has a time of its own: it gives way no more."""
        network = self._working.remove(item)
        if network is not None:
            self._deciding.add(item, network, now)

    def linger(self, item: Item, network: str, now: float) -> None:
        """It is being closed: its place at work is free, and it is among the first to give way."""
        self.end(item)
        self._idle.add(item, network, now)

    def end(self, item: Item) -> None:
        """It is gone, or known."""
        for stage in (self._idle, self._working, self._deciding):
            if stage.remove(item) is not None:
                return
        network = self._ready.remove(item)
        if network is not None and not self._ready.count(network):
            self._turns.remove(network)

    # Who gives way.

    def give_way(self, network: str, now: float) -> Item | None:
        """There is no room at work for a newcomer of `network`: whose opening ends for it, if anybody's."""
        largest = self._working.largest()
        if largest is None:
            return None
        if largest != network and self._held(largest) > self._held(network) + 1:
            item, since = self._working.oldest_of(largest)
            if now - since < self._limits.patience and self._held(largest) * 2 > self._limits.max_openings:
                # All of it is young, as in a flood: the least is lost with the youngest.
                item, since = self._working.newest_of(largest), now - self._limits.patience
            if now - since >= self._limits.patience:
                self._working.remove(item)
                return item
        item, since = self._working.oldest()
        if now - since >= self._limits.hurried:
            self._working.remove(item)
            return item
        return None

    def spare(self) -> Item | None:
        """Descriptors have run out: who is missed least, if anybody waits."""
        for stage in (self._idle, self._ready):
            largest = stage.largest()
            if largest is not None:
                item, _ = stage.oldest_of(largest)
                self.end(item)
                return item
        return None

    def _held(self, network: str) -> int:
        return self._working.count(network) + self._deciding.count(network)

    def _waits(self, network: str) -> int:
        return self._idle.count(network) + self._ready.count(network)

    def _leaves_for(self, network: str, now: float) -> Item | None:
        """Silent ones first: of the network with the most of them, or who has been silent for long. Then who
        waits for a turn that its network has more of than the newcomer's."""
        silent = self._idle.largest()
        if silent is not None:
            if silent == network or self._idle.count(silent) > self._idle.count(network) + 1:
                return self._idle.oldest_of(silent)[0]
            item, since = self._idle.oldest()
            if now - since >= self._limits.patience:
                return item
        ready = self._ready.largest()
        if ready is not None and self._waits(ready) > self._waits(network) + 1:
            return self._ready.newest_of(ready)
        return self._idle.oldest_of(network)[0] if self._idle.count(network) else None


class _Stage(Generic[Item]):
    """Connections at one stage, the oldest first, and how many each network has; every question is O(1)."""

    def __init__(self) -> None:
        self._all: dict[Item, tuple[str, float]] = {}
        self._of: dict[str, dict[Item, None]] = {}
        # Networks by how many they have.
        self._with: dict[int, dict[str, None]] = {}
        self._most = 0

    def __len__(self) -> int:
        return len(self._all)

    def networks(self) -> Iterable[str]:
        return self._of.keys()

    def count(self, network: str) -> int:
        found = self._of.get(network)
        return len(found) if found else 0

    def add(self, item: Item, network: str, now: float) -> None:
        self._all[item] = (network, now)
        of = self._of.setdefault(network, {})
        of[item] = None
        self._rank(network, len(of) - 1, len(of))

    def remove(self, item: Item) -> str | None:
        """Its network; None if it is not here."""
        found = self._all.pop(item, None)
        if found is None:
            return None
        network = found[0]
        of = self._of[network]
        del of[item]
        self._rank(network, len(of) + 1, len(of))
        if not of:
            del self._of[network]
        return network

    def _rank(self, network: str, former: int, present: int) -> None:
        if former:
            peers = self._with[former]
            del peers[network]
            if not peers:
                del self._with[former]
        if present:
            self._with.setdefault(present, {})[network] = None
        if present > self._most or (former == self._most and former not in self._with):
            self._most = present

    def largest(self) -> str | None:
        """The network with the most; of several the one that has had as many for longest."""
        return next(iter(self._with[self._most])) if self._most else None

    def oldest(self) -> tuple[Item, float]:
        """And since when it is here."""
        item, (_, since) = next(iter(self._all.items()))
        return item, since

    def oldest_of(self, network: str) -> tuple[Item, float]:
        """And since when it is here."""
        item = next(iter(self._of[network]))
        return item, self._all[item][1]

    def newest_of(self, network: str) -> Item:
        return next(reversed(self._of[network]))
