"""What unsettled messages take up, per node and in total, and what is dropped at a bound. No I/O.

What one node may have is bounded, and by what is free (`shares`): few greedy nodes cannot use the room up. At
its bound a node loses its oldest report, else the newcomer. Where many have filled the room all the same, a
node with next to nothing takes from the one with the most, which is never one with next to nothing.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import islice

from services.dispatcher.upstream.event_room import EventRoom
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.shares import Amount, Shares

_Waiting = OrderedDict[int, Parcel]
"""Waiting messages that may be dropped, oldest first, by their number."""

# Of the nodes that have about as much as the one with the most, so many are looked at.
_LOOKS = 16


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most unsettled messages and bytes, of a node and of all. And most lifecycle events that no subscriber
    has seen, of a node for one module and of all."""

    per_node: int
    bytes_per_node: int
    total: int
    bytes_total: int
    events_per_lane: int = 16
    events_total: int = 200_000


@dataclass(slots=True)
class _Droppable:
    """Of one node: what no subscriber has seen."""

    size_bytes: int = 0
    reports: _Waiting = field(default_factory=OrderedDict)
    others: _Waiting = field(default_factory=OrderedDict)

    def __len__(self) -> int:
        return len(self.reports) + len(self.others)

    def of(self, parcel: Parcel) -> _Waiting:
        """Among which the parcel is."""
        return self.reports if parcel.merge_key else self.others

    def victim(self) -> Parcel:
        """The oldest report, of which a later one tells the same; else the newest, as if it had not come."""
        if self.reports:
            return next(iter(self.reports.values()))
        return next(reversed(self.others.values()))


class _Ranks:
    """Nodes by the power of two that their value has reached."""

    __slots__ = ("_nodes_at", "_rank_of")

    def __init__(self) -> None:
        self._rank_of: dict[str, int] = {}
        self._nodes_at: dict[int, OrderedDict[str, None]] = {}

    def set(self, node_id: str, value: int) -> None:
        """A node's value; with 0 it is none."""
        rank, before = value.bit_length(), self._rank_of.get(node_id, 0)
        if rank == before:
            return
        if before:
            nodes = self._nodes_at[before]
            del nodes[node_id]
            if not nodes:
                del self._nodes_at[before]
        if rank:
            self._rank_of[node_id] = rank
            self._nodes_at.setdefault(rank, OrderedDict())[node_id] = None
        else:
            del self._rank_of[node_id]

    def highest(self) -> list[str]:
        """Some of those with the highest rank."""
        return list(islice(self._nodes_at[max(self._nodes_at)], _LOOKS)) if self._nodes_at else []


class Room:
    """Accounts for parcels of kind MESSAGE and, until a subscriber sees them, EVENT; the other kinds have no
    bound here."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._shares = Shares(
            Amount(bounds.per_node, bounds.bytes_per_node), Amount(bounds.total, bounds.bytes_total)
        )
        self._events = EventRoom(bounds.events_per_lane, bounds.events_total)
        self._droppable: dict[str, _Droppable] = {}
        self._by_messages, self._by_bytes = _Ranks(), _Ranks()

    @property
    def messages(self) -> int:
        """Unsettled messages of all nodes."""
        return self._shares.used.messages

    @property
    def size_bytes(self) -> int:
        """Their size."""
        return self._shares.used.size_bytes

    @property
    def nodes(self) -> int:
        """Nodes that have any."""
        return self._shares.nodes

    def add(self, parcel: Parcel) -> None:
        """A message waits."""
        if parcel.kind is Kind.MESSAGE:
            node_id = parcel.node_id
            self._shares.add(node_id, parcel.size_bytes)
            own = self._droppable.get(node_id)
            if own is None:
                own = self._droppable[node_id] = _Droppable()
            own.of(parcel)[parcel.number] = parcel
            own.size_bytes += parcel.size_bytes
            self._rank(node_id, own)
        elif parcel.kind is Kind.EVENT:
            self._events.add(parcel)

    def resize(self, parcel: Parcel, size_bytes: int) -> None:
        """A waiting report's content was replaced by one of this size."""
        self._shares.resize(parcel.node_id, size_bytes - parcel.size_bytes)
        own = self._droppable[parcel.node_id]
        own.size_bytes += size_bytes - parcel.size_bytes
        parcel.size_bytes = size_bytes
        self._rank(parcel.node_id, own)

    def handed(self, parcel: Parcel) -> None:
        """A subscriber holds it: it may no longer be dropped, but still takes up room."""
        if parcel.kind is Kind.MESSAGE:
            self._keep(parcel)
        elif parcel.kind is Kind.EVENT:
            self._events.remove(parcel)

    def remove(self, parcel: Parcel) -> None:
        """It was settled or dropped."""
        if parcel.kind is Kind.MESSAGE:
            self._keep(parcel)
            self._shares.remove(parcel.node_id, parcel.size_bytes)
        elif parcel.kind is Kind.EVENT:
            self._events.remove(parcel)

    def excess(self, newcomer: Parcel, freed_bytes: int = 0) -> tuple[str, Parcel] | None:
        """Which bound is passed with the newcomer, which waits already, and the message or event that has to
        go for it, maybe itself; None if all fits, or if its node gave up `freed_bytes` for it: that is enough
        where it has as much as is left."""
        if newcomer.kind is Kind.EVENT:
            return self._events.excess(newcomer)
        if newcomer.kind is not Kind.MESSAGE:
            return None
        node_id = newcomer.node_id
        bound = self._shares.excess(node_id, newcomer.size_bytes)
        if not bound:
            return None
        own = self._droppable[node_id]
        if bound.startswith("total"):
            if self._shares.is_small(node_id):
                return bound, self._of_the_fattest(bound) or newcomer
            if freed_bytes and freed_bytes >= newcomer.size_bytes:
                return None
        return bound, own.victim() if own.reports else newcomer

    def _of_the_fattest(self, bound: str) -> Parcel | None:
        ranks = self._by_messages if bound == "total_messages" else self._by_bytes
        for node_id in ranks.highest():
            if not self._shares.is_small(node_id):
                return self._droppable[node_id].victim()
        return None

    def _keep(self, parcel: Parcel) -> None:
        """It is not among what may be dropped, if it was."""
        own = self._droppable.get(parcel.node_id)
        if own is None or own.of(parcel).pop(parcel.number, None) is None:
            return
        own.size_bytes -= parcel.size_bytes
        self._rank(parcel.node_id, own)
        if not own:
            del self._droppable[parcel.node_id]

    def _rank(self, node_id: str, own: _Droppable) -> None:
        self._by_messages.set(node_id, len(own))
        self._by_bytes.set(node_id, own.size_bytes)
