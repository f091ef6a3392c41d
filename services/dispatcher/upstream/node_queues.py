"""Who gets which message next: per-node queues, served in turn to the subscribers of each module.

No I/O and no clock. What holds:

- a node's parcels for a module are handed out in order, to one subscriber while it holds any of them;
- each parcel waits, is held by one subscriber, or is gone (settled, merged, dropped with a reason);
- lanes are served by ticket, one parcel a turn: a node with many waiting delays another by one turn.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.dispatcher.upstream.lane import Lane, Turns
from services.dispatcher.upstream.parcel import Parcel
from services.dispatcher.upstream.room import Bounds, Room


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a parcel, and of others for its sake: (parcel, bound) of each that was dropped."""

    merged: bool = False
    dropped: tuple[tuple[Parcel, str], ...] = ()


_PLAIN = Put()
_MERGED = Put(merged=True)


@dataclass(slots=True)
class _Module:
    lanes: dict[str, Lane] = field(default_factory=dict)
    free: Turns = field(default_factory=OrderedDict)
    subscribers: dict[int, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Subscriber:
    modules: tuple[str, ...]
    most_held: int
    held: dict[int, Parcel] = field(default_factory=dict)
    own: Turns = field(default_factory=OrderedDict)
    last_delivery_id: int = 0


class NodeQueues:
    """The queues of all modules and nodes, and the subscribers they are handed to."""

    def __init__(self, bounds: Bounds) -> None:
        self.room = Room(bounds)
        self.waiting = 0
        self._modules: dict[str, _Module] = {}
        self._subscribers: dict[int, _Subscriber] = {}
        self._woken: set[int] = set()
        self._last_subscriber = 0
        self._last_number = 0
        self._last_ticket = 0

    # -- subscribers ---------------------------------------------------------------------------

    @property
    def subscribers(self) -> int:
        """How many there are."""
        return len(self._subscribers)

    @property
    def lanes(self) -> int:
        """Queues in memory."""
        return sum(len(module.lanes) for module in self._modules.values())

    def served(self) -> list[str]:
        """The modules that have a subscriber."""
        return [name for name, module in self._modules.items() if module.subscribers]

    def is_served(self, name: str) -> bool:
        """True if the module has a subscriber."""
        module = self._modules.get(name)
        return module is not None and bool(module.subscribers)

    def subscribe(self, modules: Iterable[str], most_held: int) -> int:
        """A subscriber comes; gives back its id."""
        self._last_subscriber += 1
        subscriber_id = self._last_subscriber
        subscriber = _Subscriber(tuple(dict.fromkeys(modules)), most_held)
        self._subscribers[subscriber_id] = subscriber
        for name in subscriber.modules:
            self._modules.setdefault(name, _Module()).subscribers[subscriber_id] = None
        return subscriber_id

    def leave(self, subscriber_id: int) -> list[Parcel]:
        """A subscriber goes; what it held is first in line again, in its order. Gives back those parcels."""
        subscriber = self._subscribers.pop(subscriber_id)
        self._woken.discard(subscriber_id)
        for name in subscriber.modules:
            del self._modules[name].subscribers[subscriber_id]
        # Lanes it owns that have both waiting and held parcels are among those of the held ones.
        returned = list(subscriber.held.values())
        for parcel in reversed(returned):
            lane = self._modules[parcel.module].lanes[parcel.node_id]
            lane.put_back(parcel)
            lane.held -= 1
            parcel.redelivered = True
            if not lane.held:
                self._release(lane)
        self.waiting += len(returned)
        for name in subscriber.modules:
            self._tidy(name)
        return returned

    def woken(self) -> set[int]:
        """Subscribers that may have something to take since the last call."""
        woken, self._woken = self._woken, set()
        return woken

    # -- parcels -------------------------------------------------------------------------------

    def put(self, parcel: Parcel, *, by_epoch: bool = False) -> Put:
        """Adds a parcel: at the end, or with `by_epoch` before what later sessions of the node said."""
        self._last_number += 1
        parcel.number = self._last_number
        module = self._modules.setdefault(parcel.module, _Module())
        lane = module.lanes.get(parcel.node_id)
        if lane is None:
            lane = module.lanes[parcel.node_id] = Lane(parcel.module, parcel.node_id)
        earlier = lane.mergeable(parcel)
        if earlier is not None:
            earlier.message = parcel.message
            self.room.resize(earlier, parcel.size_bytes)
        else:
            self.room.add(parcel)
            if by_epoch:
                lane.insert_by_epoch(parcel)
            else:
                lane.append(parcel)
            self.waiting += 1
            self._line_up(lane)
        dropped = self._make_room(parcel if earlier is None else earlier)
        if dropped:
            return Put(earlier is not None, dropped)
        return _PLAIN if earlier is None else _MERGED

    def take(self, subscriber_id: int, most: int, most_bytes: int) -> list[tuple[int, Parcel]]:
        """Up to `most` parcels with their delivery ids, ending once `most_bytes` are reached."""
        subscriber = self._subscribers[subscriber_id]
        most = min(most, subscriber.most_held - len(subscriber.held))
        taken: list[tuple[int, Parcel]] = []
        size = 0
        while len(taken) < most and size < most_bytes:
            lane = self._next_lane(subscriber)
            if lane is None:
                break
            self._leave_line(lane)
            parcel = lane.pop()
            self.waiting -= 1
            self.room.handed(parcel)
            lane.owner = subscriber_id
            lane.held += 1
            self._line_up(lane)
            subscriber.last_delivery_id += 1
            subscriber.held[subscriber.last_delivery_id] = parcel
            taken.append((subscriber.last_delivery_id, parcel))
            size += parcel.size_bytes
        return taken

    def settle(self, subscriber_id: int, delivery_ids: Iterable[int]) -> tuple[list[Parcel], int]:
        """A subscriber is done with deliveries. Gives back their parcels and how many ids it did not hold."""
        subscriber = self._subscribers[subscriber_id]
        settled: list[Parcel] = []
        unknown = 0
        for delivery_id in delivery_ids:
            parcel = subscriber.held.pop(delivery_id, None)
            if parcel is None:
                unknown += 1
                continue
            settled.append(parcel)
            self.room.remove(parcel)
            lane = self._modules[parcel.module].lanes[parcel.node_id]
            lane.held -= 1
            if not lane.held:
                self._release(lane)
        if settled:
            self._woken.add(subscriber_id)
        return settled, unknown

    # -- turns ---------------------------------------------------------------------------------

    def _next_lane(self, subscriber: _Subscriber) -> Lane | None:
        first = next(iter(subscriber.own), None)
        for name in subscriber.modules:
            lane = next(iter(self._modules[name].free), None)
            if lane is not None and (first is None or lane.ticket < first.ticket):
                first = lane
        return first

    def _line_up(self, lane: Lane) -> None:
        if lane.turns is not None or not len(lane):
            return
        self._last_ticket += 1
        lane.ticket = self._last_ticket
        if lane.owner:
            lane.turns = self._subscribers[lane.owner].own
            self._woken.add(lane.owner)
        else:
            module = self._modules[lane.module]
            lane.turns = module.free
            self._woken.update(module.subscribers)
        lane.turns[lane] = None

    def _leave_line(self, lane: Lane) -> None:
        if lane.turns is not None:
            del lane.turns[lane]
            lane.turns = None

    def _release(self, lane: Lane) -> None:
        """Nobody holds parcels of the lane any more: whoever is next may take it."""
        lane.owner = 0
        self._leave_line(lane)
        self._line_up(lane)
        self._forget_if_empty(lane)

    # -- room ----------------------------------------------------------------------------------

    def _make_room(self, newcomer: Parcel) -> tuple[tuple[Parcel, str], ...]:
        dropped: list[tuple[Parcel, str]] = []
        while True:
            excess = self.room.excess(newcomer.node_id)
            if excess is None:
                return tuple(dropped)
            bound, oldest = excess
            parcel = newcomer if oldest is None else oldest
            self._drop(parcel)
            dropped.append((parcel, bound))

    def _drop(self, parcel: Parcel) -> None:
        lane = self._modules[parcel.module].lanes[parcel.node_id]
        lane.remove(parcel)
        self.waiting -= 1
        self.room.remove(parcel)
        if not len(lane):
            self._leave_line(lane)
            self._forget_if_empty(lane)

    def _forget_if_empty(self, lane: Lane) -> None:
        if not len(lane) and not lane.held:
            del self._modules[lane.module].lanes[lane.node_id]
            self._tidy(lane.module)

    def _tidy(self, name: str) -> None:
        module = self._modules[name]
        if not module.lanes and not module.subscribers:
            del self._modules[name]
