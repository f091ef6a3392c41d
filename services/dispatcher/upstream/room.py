"""What unsettled messages take up, per node and in total, and what is dropped at a bound. No I/O."""

from collections import OrderedDict
from dataclasses import dataclass, field

from services.dispatcher.upstream.parcel import Kind, Parcel

Reports = OrderedDict[int, Parcel]
"""Waiting reports that may be dropped, oldest first, by their number."""


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
class _Account:
    messages: int = 0
    size_bytes: int = 0
    reports: Reports = field(default_factory=OrderedDict)

    def add(self, parcel: Parcel, size_bytes: int) -> None:
        self.messages += 1
        self.size_bytes += size_bytes
        if parcel.merge_key:
            self.reports[parcel.number] = parcel

    def remove(self, parcel: Parcel) -> None:
        self.messages -= 1
        self.size_bytes -= parcel.size_bytes
        self.reports.pop(parcel.number, None)


class _Events:
    """Waiting lifecycle events, those of a lane apart: with nobody to ask for them they would pile up."""

    def __init__(self) -> None:
        self.all: Reports = OrderedDict()
        self._lanes: dict[tuple[str, str], Reports] = {}

    def lane(self, parcel: Parcel) -> Reports:
        """Those of the parcel's node for its module."""
        return self._lanes.get((parcel.module, parcel.node_id)) or OrderedDict()

    def add(self, parcel: Parcel) -> None:
        self.all[parcel.number] = parcel
        self._lanes.setdefault((parcel.module, parcel.node_id), OrderedDict())[parcel.number] = parcel

    def remove(self, parcel: Parcel) -> None:
        if self.all.pop(parcel.number, None) is not None:
            lane = self._lanes[parcel.module, parcel.node_id]
            del lane[parcel.number]
            if not lane:
                del self._lanes[parcel.module, parcel.node_id]


class Room:
    """Accounts for parcels of kind MESSAGE and, until a subscriber sees them, EVENT; the other kinds have no
    bound here."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
        self._events = _Events()
        self._all = _Account()
        self._nodes: dict[str, _Account] = {}

    @property
    def messages(self) -> int:
        """Unsettled messages of all nodes."""
        return self._all.messages

    @property
    def size_bytes(self) -> int:
        """Their size."""
        return self._all.size_bytes

    @property
    def nodes(self) -> int:
        """Nodes that have any."""
        return len(self._nodes)

    def add(self, parcel: Parcel) -> None:
        """A message waits."""
        if parcel.kind is Kind.MESSAGE:
            account = self._nodes.setdefault(parcel.node_id, _Account())
            account.add(parcel, parcel.size_bytes)
            self._all.add(parcel, parcel.size_bytes)
        elif parcel.kind is Kind.EVENT:
            self._events.add(parcel)

    def resize(self, parcel: Parcel, size_bytes: int) -> None:
        """A waiting report's content was replaced by one of this size."""
        difference = size_bytes - parcel.size_bytes
        self._nodes[parcel.node_id].size_bytes += difference
        self._all.size_bytes += difference
        parcel.size_bytes = size_bytes

    def handed(self, parcel: Parcel) -> None:
        """A subscriber holds it: it may no longer be dropped, but still takes up room."""
        if parcel.kind is Kind.MESSAGE and parcel.merge_key:
            self._nodes[parcel.node_id].reports.pop(parcel.number, None)
            self._all.reports.pop(parcel.number, None)
        elif parcel.kind is Kind.EVENT:
            self._events.remove(parcel)

    def remove(self, parcel: Parcel) -> None:
        """It was settled or dropped."""
        if parcel.kind is Kind.MESSAGE:
            account = self._nodes[parcel.node_id]
            account.remove(parcel)
            self._all.remove(parcel)
            if not account.messages:
                del self._nodes[parcel.node_id]
        elif parcel.kind is Kind.EVENT:
            self._events.remove(parcel)

    def excess(self, newcomer: Parcel) -> tuple[str, Parcel | None] | None:
        """Which bound is passed, and the oldest report or event whose loss would help; None if all fits."""
        if newcomer.kind is Kind.EVENT:
            return self._excess_of_events(newcomer)
        bounds, account = self._bounds, self._nodes.get(newcomer.node_id)
        if account is not None:
            oldest = next(iter(account.reports.values()), None)
            if account.messages > bounds.per_node:
                return "node_messages", oldest
            if account.size_bytes > bounds.bytes_per_node:
                return "node_bytes", oldest
        if self._all.messages > bounds.total:
            return "total_messages", next(iter(self._all.reports.values()), None)
        if self._all.size_bytes > bounds.bytes_total:
            return "total_bytes", next(iter(self._all.reports.values()), None)
        return None

    def _excess_of_events(self, newcomer: Parcel) -> tuple[str, Parcel | None] | None:
        lane = self._events.lane(newcomer)
        if len(lane) > self._bounds.events_per_lane:
            # An adopted event may come after those of later sessions.
            return "node_events", min(lane.values(), key=lambda parcel: (parcel.epoch, parcel.number))
        if len(self._events.all) > self._bounds.events_total:
            return "total_events", next(iter(self._events.all.values()))
        return None
