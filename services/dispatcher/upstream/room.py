"""What unsettled messages take up, per node and in total, and what is dropped at a bound. No I/O."""

from collections import OrderedDict
from dataclasses import dataclass, field

from services.dispatcher.upstream.parcel import Kind, Parcel

Reports = OrderedDict[int, Parcel]
"""Waiting reports that may be dropped, oldest first, by their number."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Most unsettled messages and bytes, of a node and of all."""

    per_node: int
    bytes_per_node: int
    total: int
    bytes_total: int


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


class Room:
    """Accounts for parcels of kind MESSAGE; the other kinds have no bound here."""

    def __init__(self, bounds: Bounds) -> None:
        self._bounds = bounds
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

    def remove(self, parcel: Parcel) -> None:
        """It was settled or dropped."""
        if parcel.kind is Kind.MESSAGE:
            account = self._nodes[parcel.node_id]
            account.remove(parcel)
            self._all.remove(parcel)
            if not account.messages:
                del self._nodes[parcel.node_id]

    def excess(self, node_id: str) -> tuple[str, Parcel | None] | None:
        """Which bound is passed, and the oldest report whose loss would help; None if all fits."""
        bounds, account = self._bounds, self._nodes.get(node_id)
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
