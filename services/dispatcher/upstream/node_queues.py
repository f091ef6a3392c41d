"""Who gets which message next: per-node queues, served in turn to the subscribers of each module.

No I/O and no clock. What holds:

- a node's parcels for a module are handed out in order, to one subscriber while it holds any of them;
- each parcel waits, is held by one subscriber, or is gone (settled, merged, dropped with a reason);
- what another dispatcher relayed is handed to subscribers of this one, never relayed on;
- lanes are served by ticket, one parcel a turn: a node with many waiting delays another by one turn.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.dispatcher.upstream.lane import Lane, Turns
from services.dispatcher.upstream.parcel import Kind, Parcel
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
    # Lanes with relayed parcels, and the subscribers that may have them: those that are no relays.
    local_free: Turns = field(default_factory=OrderedDict)
    local: dict[int, None] = field(default_factory=dict)
    subscribers: dict[int, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Subscriber:
    modules: dict[str, None]
    most_held: int
    is_relay: bool
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
        self._relayed: dict[int, dict[int, Parcel]] = {}  # relay -> number -> waiting parcel
        self._last_subscriber = 0
        self._last_relay = 0
        self._last_number = 0
        self._last_ticket = 0

    # -- subscribers ---------------------------------------------------------------------------

    @property
    def subscribers(self) -> int:
        """How many there are, relays to other dispatchers aside."""
        return sum(not one.is_relay for one in self._subscribers.values())

    @property
    def lanes(self) -> int:
        """Queues in memory."""
        return sum(len(module.lanes) for module in self._modules.values())

    def served(self) -> list[str]:
        """The modules that have a subscriber, here or at another dispatcher."""
        return [name for name, module in self._modules.items() if module.subscribers]

    def served_here(self) -> list[str]:
        """The modules that have a subscriber that is no relay."""
        return [name for name, module in self._modules.items() if module.local]

    def credit_here(self) -> int:
        """How much the subscribers that are no relays may hold together."""
        return sum(one.most_held for one in self._subscribers.values() if not one.is_relay)

    def is_served(self, name: str) -> bool:
        """True if the module has a subscriber."""
        module = self._modules.get(name)
        return module is not None and bool(module.subscribers)

    def subscribe(self, modules: Iterable[str], most_held: int, *, is_relay: bool = False) -> int:
        """A subscriber comes, or another dispatcher with some of its own; gives back its id."""
        self._last_subscriber += 1
        subscriber_id = self._last_subscriber
        subscriber = _Subscriber(dict.fromkeys(modules), most_held, is_relay)
        self._subscribers[subscriber_id] = subscriber
        for name in subscriber.modules:
            self._enter(name, subscriber_id, subscriber)
        return subscriber_id

    def resubscribe(self, subscriber_id: int, modules: Iterable[str], most_held: int) -> None:
        """A subscriber changes what it wants; what it holds it keeps."""
        subscriber = self._subscribers[subscriber_id]
        former, subscriber.modules = subscriber.modules, dict.fromkeys(modules)
        subscriber.most_held = most_held
        for name in subscriber.modules:
            if name not in former:
                self._enter(name, subscriber_id, subscriber)
                for lane in self._owned(name, subscriber_id):
                    self._line_up(lane)
        for name in former:
            if name not in subscriber.modules:
                for lane in self._owned(name, subscriber_id):
                    self._leave_line(lane)  # until what is held of it is settled
                self._exit(name, subscriber_id)
        self._woken.add(subscriber_id)

    def leave(self, subscriber_id: int) -> list[Parcel]:
        """A subscriber goes; what it held is first in line again, in its order. Gives back those parcels."""
        subscriber = self._subscribers.pop(subscriber_id)
        self._woken.discard(subscriber_id)
        modules = subscriber.modules
        for name in modules:
            module = self._modules[name]
            module.subscribers.pop(subscriber_id)
            module.local.pop(subscriber_id, None)
        # Lanes it owns that have both waiting and held parcels are among those of the held ones.
        returned = list(subscriber.held.values())
        for parcel in reversed(returned):
            self._put_back(parcel)
            lane = self._modules[parcel.module].lanes[parcel.node_id]
            if not lane.held:
                lane.returned.clear()
                self._release(lane)
        for name in modules:
            self._tidy(name)
        return returned

    def give_back(self, subscriber_id: int, delivery_ids: Iterable[int]) -> int:
        """A subscriber does not want these any more: they go to another, in their order, once it has
        settled what else it holds of those nodes. Gives back how many ids it did not hold."""
        subscriber = self._subscribers[subscriber_id]
        unknown = 0
        for delivery_id in delivery_ids:
            parcel = subscriber.held.get(delivery_id)
            if parcel is None:
                unknown += 1
                continue
            lane = self._modules[parcel.module].lanes[parcel.node_id]
            lane.returned[delivery_id] = parcel
            self._leave_line(lane)  # nothing more of it before those
            self._release_if_done(lane)
        self._woken.add(subscriber_id)
        return unknown

    def _enter(self, name: str, subscriber_id: int, subscriber: _Subscriber) -> None:
        module = self._modules.setdefault(name, _Module())
        module.subscribers[subscriber_id] = None
        if not subscriber.is_relay:
            module.local[subscriber_id] = None

    def _exit(self, name: str, subscriber_id: int) -> None:
        module = self._modules[name]
        module.subscribers.pop(subscriber_id)
        module.local.pop(subscriber_id, None)
        self._tidy(name)

    def _owned(self, name: str, subscriber_id: int) -> list[Lane]:
        return [lane for lane in self._modules[name].lanes.values() if lane.owner == subscriber_id]

    def _put_back(self, parcel: Parcel) -> None:
        """A held parcel is first in its lane again, unless nobody asks for it: its relay is over."""
        lane = self._modules[parcel.module].lanes[parcel.node_id]
        lane.held -= 1
        parcel.redelivered = True
        if parcel.kind is Kind.RELAYED:
            waiting = self._relayed.get(parcel.relay)
            if waiting is None:
                return
            waiting[parcel.number] = parcel
            lane.relayed += 1
        lane.put_back(parcel)
        self.waiting += 1

    def woken(self) -> set[int]:
        """Subscribers that may have something to take since the last call."""
        woken, self._woken = self._woken, set()
        return woken

    # -- parcels -------------------------------------------------------------------------------

    def put(self, parcel: Parcel, *, by_epoch: bool = False) -> Put:
        """Adds a parcel: at the end, or with `by_epoch` before what later sessions of the node said. One of
        kind RELAYED must come of an open relay, and its module have a subscriber that is no relay."""
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
            if parcel.kind is Kind.RELAYED:
                self._relayed[parcel.relay][parcel.number] = parcel
                if not lane.relayed:
                    self._leave_line(lane)  # its place is now among those for subscribers here
                lane.relayed += 1
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
        """Up to `most` parcels with their delivery ids, of at most `most_bytes` together; one of any size."""
        subscriber = self._subscribers[subscriber_id]
        most = min(most, subscriber.most_held - len(subscriber.held))
        taken: list[tuple[int, Parcel]] = []
        size = 0
        while len(taken) < most and size < most_bytes:
            lane = self._next_lane(subscriber)
            if lane is None or (taken and size + lane.first().size_bytes > most_bytes):
                break
            self._leave_line(lane)
            parcel = lane.pop()
            self.waiting -= 1
            self.room.handed(parcel)
            if parcel.kind is Kind.RELAYED:
                lane.relayed -= 1
                del self._relayed[parcel.relay][parcel.number]
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
            if lane.returned:
                lane.returned.pop(delivery_id, None)
            self._release_if_done(lane)
        if settled:
            self._woken.add(subscriber_id)
        return settled, unknown

    # -- relays from other dispatchers -------------------------------------------------------------

    def open_relay(self) -> int:
        """Another dispatcher hands on what nodes say there; gives back the relay's number."""
        self._last_relay += 1
        self._relayed[self._last_relay] = {}
        return self._last_relay

    def close_relay(self, relay: int) -> None:
        """It is over: what waits here waits there again; what is held here is settled to nobody."""
        for parcel in list(self._relayed[relay].values()):
            self._withdraw(parcel)
        del self._relayed[relay]

    def withdraw_unserved(self) -> list[Parcel]:
        """Takes out the relayed parcels of modules that have no subscriber here any more."""
        found = [
            parcel
            for waiting in self._relayed.values()
            for parcel in waiting.values()
            if not self._modules[parcel.module].local
        ]
        for parcel in found:
            self._withdraw(parcel)
        return found

    def _withdraw(self, parcel: Parcel) -> None:
        lane = self._modules[parcel.module].lanes[parcel.node_id]
        lane.remove(parcel)
        lane.relayed -= 1
        del self._relayed[parcel.relay][parcel.number]
        self.waiting -= 1
        if not lane.relayed:
            self._leave_line(lane)
            self._line_up(lane)
        self._forget_if_empty(lane)

    # -- turns ---------------------------------------------------------------------------------

    def _next_lane(self, subscriber: _Subscriber) -> Lane | None:
        first = next(iter(subscriber.own), None)
        for name in subscriber.modules:
            module = self._modules[name]
            lane = next(iter(module.free), None)
            if lane is not None and (first is None or lane.ticket < first.ticket):
                first = lane
            if module.local_free and not subscriber.is_relay:
                lane = next(iter(module.local_free))
                if first is None or lane.ticket < first.ticket:
                    first = lane
        return first

    def _line_up(self, lane: Lane) -> None:
        if lane.turns is not None or not len(lane):
            return
        self._last_ticket += 1
        lane.ticket = self._last_ticket
        if lane.owner:
            owner = self._subscribers[lane.owner]
            if lane.returned or lane.module not in owner.modules or (lane.relayed and owner.is_relay):
                return  # not for its owner: it waits until that has settled what it holds
            lane.turns = owner.own
            self._woken.add(lane.owner)
        elif lane.relayed:
            module = self._modules[lane.module]
            lane.turns = module.local_free
            self._woken.update(module.local)
        else:
            module = self._modules[lane.module]
            lane.turns = module.free
            self._woken.update(module.subscribers)
        lane.turns[lane] = None

    def _leave_line(self, lane: Lane) -> None:
        if lane.turns is not None:
            del lane.turns[lane]
            lane.turns = None

    def _release_if_done(self, lane: Lane) -> None:
        """Its owner has settled all it holds of the lane, or does not want the rest."""
        if lane.held > len(lane.returned):
            return
        if lane.returned:
            held = self._subscribers[lane.owner].held
            for delivery_id in sorted(lane.returned, reverse=True):
                self._put_back(held.pop(delivery_id))
            lane.returned.clear()
        self._release(lane)

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
            excess = self.room.excess(newcomer)
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

    def drop_unserved_requests(self) -> list[Parcel]:
        """Takes out the synchronous requests of modules that have no subscriber; gives them back."""
        found = [
            parcel
            for module in self._modules.values()
            if not module.subscribers
            for lane in module.lanes.values()
            for parcel in lane.waiting()
            if parcel.kind is Kind.MESSAGE and parcel.message.sync
        ]
        for parcel in found:
            self._drop(parcel)
        return found

    def _forget_if_empty(self, lane: Lane) -> None:
        if not len(lane) and not lane.held:
            del self._modules[lane.module].lanes[lane.node_id]
            self._tidy(lane.module)

    def _tidy(self, name: str) -> None:
        module = self._modules.get(name)
        if module is not None and not module.lanes and not module.subscribers:
            del self._modules[name]
