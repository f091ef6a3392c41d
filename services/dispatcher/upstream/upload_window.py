"""Stored uploads: which of them are in memory, and what must wait behind them. No I/O, no clock.

Each node may have some uploads in memory, and all nodes together some more, of which each has a share; what
is beyond stays on disk and is loaded, node by node in turn, as subscribers settle what is there. Lifecycle
events for the same module pass here, since they have their place among a node's uploads.
"""

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from services.dispatcher.upstream.parcel import Parcel
from services.dispatcher.upstream.shares import Amount, Shares

MOST_REMEMBERED = 65_536
REMEMBERED_SECONDS = 600.0
# Of the nodes that have some on disk, so many are looked at when some may be loaded; then the next ones.
LOOKS_PER_LOAD = 256


@dataclass(frozen=True, slots=True)
class WindowBounds:
    """Uploads in memory, waiting for subscribers or held by them."""

    per_node: int = 256
    bytes_per_node: int = 8 * 1024 * 1024
    total: int = 16_384
    bytes_total: int = 64 * 1024 * 1024
    per_load: int = 64
    nodes_per_load: int = 16
    bytes_per_load: int = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Load:
    """At most `limit` uploads of a node with a place above `after` are wanted, ending once `most_bytes` are
    read; the last known is at `through`."""

    node_id: str
    after: int
    through: int
    limit: int
    most_bytes: int


@dataclass(slots=True)
class _Line:
    """One node. `after` < `through`: uploads in between are on disk, but for those `in_memory`. A load that
    is under way says nothing about those that `is_overtaken` tells of: they came below the last one."""

    after: int
    through: int
    is_overtaken: bool = False
    in_memory: set[int] = field(default_factory=set)
    unstored: deque[int] = field(default_factory=deque)
    behind: deque[tuple[int, Parcel]] = field(default_factory=deque)


class UploadWindow:
    """What of the stored uploads is in memory."""

    def __init__(self, bounds: WindowBounds) -> None:
        self._bounds = bounds
        self._lines: dict[str, _Line] = {}
        self._spilled: OrderedDict[str, None] = OrderedDict()
        self._shares = Shares(
            Amount(bounds.per_node, bounds.bytes_per_node), Amount(bounds.total, bounds.bytes_total)
        )

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def in_memory(self) -> int:
        """Uploads of all nodes that are."""
        return self._shares.used.messages

    @property
    def size_bytes(self) -> int:
        """What they take up."""
        return self._shares.used.size_bytes

    def found(self, node_id: str, first: int, last: int) -> None:
        """A node has uploads on disk that were not known, none before `first` and none behind `last`."""
        self._spill(node_id, self._line(node_id), first, last)

    def expect(self, node_id: str, place: int) -> None:
        """An upload is on its way to the store."""
        self._line(node_id).unstored.append(place)

    def stored(self, parcel: Parcel, *, is_new: bool) -> list[Parcel]:
        """An expected upload is on disk (or was already). Gives back what is to be queued now."""
        line = self._lines[parcel.node_id]
        line.unstored.popleft()
        queue: list[Parcel] = []
        if is_new:
            if line.after == line.through and not self._shares.refusal(parcel.node_id, parcel.size_bytes):
                self._enter(line, parcel)
                line.after = line.through = max(line.through, parcel.place)
                queue.append(parcel)
            else:
                self._spill(parcel.node_id, line, parcel.place, parcel.place)
        return [*queue, *self._released(parcel.node_id, line)]

    def given_up(self, node_id: str) -> list[Parcel]:
        """The first of the node's expected uploads does not come. Gives back what is to be queued now."""
        line = self._lines[node_id]
        line.unstored.popleft()
        return self._released(node_id, line)

    def pass_event(self, parcel: Parcel, place: int) -> list[Parcel]:
        """An event comes after the uploads up to `place`. Gives it back when those are queued."""
        line = self._lines.get(parcel.node_id)
        if line is None:
            return [parcel]
        line.behind.append((place, parcel))
        return self._released(parcel.node_id, line)

    def wanted(self) -> list[Load]:
        """What to load now, at most one load per node; ends with `loaded` for each."""
        bounds = self._bounds
        loads: list[Load] = []
        # Whoever is passed over waits for uploads in memory, and is looked at when those are settled.
        for node_id in list(islice(self._spilled, LOOKS_PER_LOAD)):
            if len(loads) >= bounds.nodes_per_load:
                break
            self._spilled.move_to_end(node_id)
            line, own = self._lines[node_id], self._shares.of(node_id)
            if own.messages * 2 > bounds.per_node or own.size_bytes * 2 > bounds.bytes_per_node:
                continue
            left = self._shares.left(
                node_id, Amount(len(loads) * bounds.per_load, len(loads) * bounds.bytes_per_load)
            )
            if not left.messages or not left.size_bytes:
                continue
            limit = min(bounds.per_load, left.messages)
            line.is_overtaken = False
            most_bytes = min(bounds.bytes_per_load, left.size_bytes)
            loads.append(Load(node_id, line.after, line.through, limit, most_bytes))
        return loads

    def loaded(self, load: Load, parcels: Sequence[Parcel], reached: int) -> list[Parcel]:
        """What the disk had for `load`, up to the place `reached`. Gives back what is to be queued."""
        line = self._lines[load.node_id]
        queue: list[Parcel] = []
        for parcel in parcels:
            if not line.is_overtaken:
                line.after = max(line.after, parcel.place)
            if parcel.place in line.in_memory:
                continue
            self._enter(line, parcel)
            queue += self._released(load.node_id, line, before=parcel.place)
            queue.append(parcel)
        if not line.is_overtaken:
            line.after = max(line.after, reached)
        if line.after >= line.through:
            line.through = line.after
            self._spilled.pop(load.node_id, None)
        return [*queue, *self._released(load.node_id, line)]

    def settled(self, parcel: Parcel) -> None:
        """A subscriber is done with an upload."""
        line = self._lines[parcel.node_id]
        line.in_memory.discard(parcel.place)
        self._shares.remove(parcel.node_id, parcel.size_bytes)
        self._forget_if_idle(parcel.node_id, line)

    def _line(self, node_id: str) -> _Line:
        line = self._lines.get(node_id)
        if line is None:
            line = self._lines[node_id] = _Line(after=0, through=0)
        return line

    def _spill(self, node_id: str, line: _Line, first: int, last: int) -> None:
        """These have to be loaded, though later ones may be in memory."""
        if first <= line.through:
            line.after = min(line.after, first - 1)
            line.is_overtaken = True
        line.through = max(line.through, last)
        self._spilled[node_id] = None

    def _enter(self, line: _Line, parcel: Parcel) -> None:
        line.in_memory.add(parcel.place)
        self._shares.add(parcel.node_id, parcel.size_bytes)

    def _released(self, node_id: str, line: _Line, before: int | None = None) -> list[Parcel]:
        """Events that wait for no upload any more; with `before` those in front of that place."""
        released: list[Parcel] = []
        while line.behind:
            place, parcel = line.behind[0]
            on_disk = line.after < line.through and line.after < place
            if before is not None:
                if place >= before:
                    break
            elif on_disk or (line.unstored and line.unstored[0] <= place):
                break
            line.behind.popleft()
            released.append(parcel)
        self._forget_if_idle(node_id, line)
        return released

    def _forget_if_idle(self, node_id: str, line: _Line) -> None:
        if not (line.in_memory or line.unstored or line.behind or line.after < line.through):
            del self._lines[node_id]


class SettledIds:
    """Message ids of uploads settled lately, so that a repeat of one is answered and not handed on again."""

    def __init__(self) -> None:
        self._at: OrderedDict[tuple[str, str], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._at)

    def add(self, node_id: str, message_id: str, now: float) -> None:
        """An upload was settled."""
        self._at[node_id, message_id] = now
        self._at.move_to_end((node_id, message_id))
        while len(self._at) > MOST_REMEMBERED or next(iter(self._at.values())) < now - REMEMBERED_SECONDS:
            self._at.popitem(last=False)

    def __contains__(self, key: tuple[str, str]) -> bool:
        return key in self._at
