"""Who gets which message next: per-node queues, served in turn to the subscribers of each module.

No I/O and no clock. What holds:

- a node's parcels for a module are handed out in order, to one subscriber while it holds any of them;
- each parcel waits, is held by one subscriber, or is gone (settled, merged, dropped with a reason);
- what another dispatcher relayed is handed to subscribers of this one, never relayed on;
- lanes are served by ticket, one parcel a turn: a node with many waiting delays another by one turn;
- of the subscribers that wait for work each gets a lane in turn, and a lane that another has too many of
  (`lines`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from services.dispatcher.upstream.lane import Lane
from services.dispatcher.upstream.lines import Lines, Module
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.relayed_parcels import RelayedParcels
from services.dispatcher.upstream.room import Bounds, Room
from services.dispatcher.upstream.subscriber import Subscriber

# That another dispatcher may hold at a time, in its memory; its last delivery may pass it.
MAX_RELAYED_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Put:
    """What became of a parcel, and of others for its sake: (parcel, bound) of each that was dropped."""

    merged: bool = False
    dropped: tuple[tuple[Parcel, str], ...] = ()


_PLAIN = Put()
_MERGED = Put(merged=True)


@dataclass(frozen=True, slots=True)
class Stuck:
    """A subscriber that has held `held` deliveries for `seconds` without settling any, while another one
    could have them."""

    subscriber_id: int
    held: int
    seconds: float


class NodeQueues:
    """The queues of all modules and nodes, and the subscribers they are handed to."""

    def __init__(self, bounds: Bounds) -> None:
        self.room = Room(bounds)
        self.waiting = 0
        self._lines = Lines()
        self._modules = self._lines.modules
        self._subscribers = self._lines.subscribers
        self._relayed = RelayedParcels()
        self._last_subscriber = 0
        self._last_number = 0

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
        return [name for name, module in self._modules.items() if module.crowd.all]

    def served_here(self) -> list[str]:
        """The modules that have a subscriber that is no relay."""
        return [name for name, module in self._modules.items() if module.crowd.local]

    def credit_here(self) -> int:
        """How much the subscribers that are no relays may hold together."""
        return sum(one.most_held for one in self._subscribers.values() if not one.is_relay)

    def is_served(self, name: str) -> bool:
        """True if the module has a subscriber."""
        module = self._modules.get(name)
        return module is not None and bool(module.crowd.all)

    def subscribe(self, modules: Iterable[str], most_held: int, *, is_relay: bool = False) -> int:
        """A subscriber comes, or another dispatcher with some of its own; gives back its id."""
        self._last_subscriber += 1
        max_bytes = MAX_RELAYED_BYTES if is_relay else math.inf
        subscriber = Subscriber(self._last_subscriber, dict.fromkeys(modules), most_held, is_relay, max_bytes)
        self._subscribers[subscriber.number] = subscriber
        for name in subscriber.modules:
            self._lines.enter(name, subscriber)
        return subscriber.number

    def resubscribe(self, subscriber_id: int, modules: Iterable[str], most_held: int) -> None:
        """A subscriber changes what it wants; what it holds it keeps."""
        subscriber, lines = self._subscribers[subscriber_id], self._lines
        former, subscriber.modules = subscriber.modules, dict.fromkeys(modules)
        subscriber.most_held = most_held
        for name in subscriber.modules:
            if name not in former:
                lines.enter(name, subscriber)
                for lane in list(subscriber.lanes_of(name)):
                    lines.line_up(lane)
        for name in former:
            if name not in subscriber.modules:
                lines.exit(name, subscriber)
                for lane in list(subscriber.lanes_of(name)):
                    lines.unline(lane)  # until what is held of it is settled, if anything is
                    lines.line_up(lane)
                lines.tidy(name)
        lines.woken.add(subscriber_id)

    def leave(self, subscriber_id: int) -> list[Parcel]:
        """A subscriber goes; what it held is first in line again, in its order. Gives back those parcels."""
        subscriber, lines = self._subscribers[subscriber_id], self._lines
        for name in subscriber.modules:
            lines.exit(name, subscriber)
        lines.break_promises(subscriber)
        del self._subscribers[subscriber_id]
        lines.woken.discard(subscriber_id)
        # Lanes it owns that have both waiting and held parcels are among those of the held ones.
        returned = list(subscriber.held.values())
        for parcel in reversed(returned):
            self._put_back(parcel)
            lane = self._lane(parcel)
            if not lane.held:
                lane.returned.clear()
                lines.release(lane)
        for name in subscriber.modules:
            lines.tidy(name)
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
            lane = self._lane(parcel)
            lane.returned[delivery_id] = parcel
            self._lines.leave_line(lane)  # nothing more of it before those
            self._release_if_done(lane)
        self._lines.woken.add(subscriber_id)
        return unknown

    def stuck(self, now: float, most_seconds: float) -> list[Stuck]:
        """Subscribers that settle nothing while somebody else could have what they hold: another subscriber,
        or another dispatcher's. One that is alone with its modules is not among them, however slow it is:
        nobody would be better off. Nor are relays: the dispatcher behind each finds its own."""
        found: list[Stuck] = []
        for one in self._subscribers.values():
            seconds = None if one.is_relay else one.silent_seconds(now, most_seconds)
            if seconds is None:
                continue
            modules = {parcel.module for parcel in one.held.values()}
            if any(len(self._modules[name].crowd.all) > (name in one.modules) for name in modules):
                found.append(Stuck(one.number, len(one.held), seconds))
        return found

    def oldest_unsettled_at(self) -> float | None:
        """When the oldest delivery that a subscriber here has not settled was handed out; None if there is
        none."""
        ats = (one.oldest_at() for one in self._subscribers.values() if not one.is_relay)
        return min((at for at in ats if at is not None), default=None)

    def _put_back(self, parcel: Parcel) -> None:
        """A held parcel is first in its lane again, unless nobody asks for it: its relay is over."""
        lane = self._lane(parcel)
        lane.held -= 1
        parcel.redelivered = True
        if parcel.kind is Kind.RELAYED:
            if not self._relayed.is_open(parcel.relay):
                return
            self._relayed.add(parcel)
            lane.relayed += 1
        lane.put_back(parcel)
        self.waiting += 1

    def woken(self) -> set[int]:
        """Subscribers that may have something to take since the last call."""
        woken, self._lines.woken = self._lines.woken, set()
        return woken

    # -- parcels -------------------------------------------------------------------------------

    def put(self, parcel: Parcel, *, by_epoch: bool = False) -> Put:
        """Adds a parcel: at the end, or with `by_epoch` before what later sessions of the node said. One of
        kind RELAYED must come of an open relay, and its module have a subscriber that is no relay."""
        self._last_number += 1
        parcel.number = self._last_number
        module = self._modules.get(parcel.module)
        if module is None:
            module = self._modules[parcel.module] = Module()
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
                self._relayed.add(parcel)
                if not lane.relayed:
                    self._lines.unline(lane)  # its place is now among those for subscribers here
                lane.relayed += 1
            if by_epoch:
                lane.insert_by_epoch(parcel)
            else:
                lane.append(parcel)
            self.waiting += 1
            self._lines.line_up(lane)
        dropped = self._make_room(parcel if earlier is None else earlier)
        if dropped:
            return Put(earlier is not None, dropped)
        return _PLAIN if earlier is None else _MERGED

    def take(self, subscriber_id: int, most: int, most_bytes: int, now: float) -> list[tuple[int, Parcel]]:
        """Up to `most` parcels with their delivery ids, of at most `most_bytes` together; one of any size.

        Whoever gets nothing though it has room waits for work from here on, and is woken when some comes.
        """
        subscriber, lines = self._subscribers[subscriber_id], self._lines
        lines.busy(subscriber)
        room = subscriber.most_held - len(subscriber.held)
        most = min(most, room)
        room_bytes = min(most_bytes, subscriber.max_held_bytes - subscriber.held_bytes)
        taken: list[tuple[int, Parcel]] = []
        size = 0
        while len(taken) < most and size < room_bytes:
            lane = lines.next_lane(subscriber)
            if lane is None or (taken and size + lane.first().size_bytes > room_bytes):
                break
            lines.leave_line(lane)
            parcel = lane.pop()
            self.waiting -= 1
            self.room.handed(parcel)
            if parcel.kind is Kind.RELAYED:
                lane.relayed -= 1
                self._relayed.remove(parcel)
            lines.hand(lane, subscriber)
            parcel.handed_at = now
            taken.append((subscriber.hold(parcel), parcel))
            size += parcel.size_bytes
        lines.break_promises(subscriber)
        if not taken and room > 0 and room_bytes > 0:
            lines.ask(subscriber)
        return taken

    def settle(self, subscriber_id: int, delivery_ids: Iterable[int], now: float) -> tuple[list[Parcel], int]:
        """A subscriber is done with deliveries. Gives back their parcels and how many ids it did not hold."""
        subscriber = self._subscribers[subscriber_id]
        settled: list[Parcel] = []
        unknown = 0
        for delivery_id in delivery_ids:
            parcel = subscriber.let_go(delivery_id)
            if parcel is None:
                unknown += 1
                continue
            settled.append(parcel)
            self.room.remove(parcel)
            lane = self._lane(parcel)
            lane.held -= 1
            if lane.returned:
                lane.returned.pop(delivery_id, None)
            self._release_if_done(lane)
        if settled:
            subscriber.progress_at = now
            self._lines.woken.add(subscriber_id)
        return settled, unknown

    def _lane(self, parcel: Parcel) -> Lane:
        return self._modules[parcel.module].lanes[parcel.node_id]

    def _release_if_done(self, lane: Lane) -> None:
        """Its owner has settled all it holds of the lane, or does not want the rest."""
        if lane.held > len(lane.returned):
            return
        if lane.returned:
            owner = self._subscribers[lane.owner]
            for delivery_id in sorted(lane.returned, reverse=True):
                owner.let_go(delivery_id)
                self._put_back(lane.returned[delivery_id])
            lane.returned.clear()
        self._lines.release(lane)

    # -- relays from other dispatchers -------------------------------------------------------------

    def open_relay(self) -> int:
        """Another dispatcher hands on what nodes say there; gives back the relay's number."""
        return self._relayed.open()

    def close_relay(self, relay: int) -> None:
        """It is over: what waits here waits there again; what is held here is settled to nobody."""
        for parcel in self._relayed.close(relay):
            self._withdraw(parcel)

    def withdraw_unserved(self) -> list[Parcel]:
        """Takes out the relayed parcels of modules that have no subscriber here any more."""
        found = list(self._relayed.having(lambda one: not self._modules[one.module].crowd.local))
        for parcel in found:
            self._withdraw(parcel)
        return found

    def _withdraw(self, parcel: Parcel) -> None:
        lane = self._lane(parcel)
        lane.remove(parcel)
        lane.relayed -= 1
        self._relayed.remove(parcel)
        self.waiting -= 1
        if not lane.relayed:
            self._lines.unline(lane)
            self._lines.line_up(lane)
        self._lines.forget_if_empty(lane)

    # -- room ----------------------------------------------------------------------------------

    def _make_room(self, newcomer: Parcel) -> tuple[tuple[Parcel, str], ...]:
        dropped: list[tuple[Parcel, str]] = []
        freed_bytes = 0
        while True:
            excess = self.room.excess(newcomer, freed_bytes)
            if excess is None:
                return tuple(dropped)
            bound, parcel = excess
            self._drop(parcel)
            dropped.append((parcel, bound))
            if parcel is newcomer:
                return tuple(dropped)
            if parcel.node_id == newcomer.node_id:
                freed_bytes += parcel.size_bytes

    def _drop(self, parcel: Parcel) -> None:
        lane = self._lane(parcel)
        lane.remove(parcel)
        self.waiting -= 1
        self.room.remove(parcel)
        if not len(lane):
            self._lines.unline(lane)
            self._lines.forget_if_empty(lane)

    def drop_unserved_requests(self) -> list[Parcel]:
        """Takes out the requests of modules that have no subscriber; gives them back."""
        found = [
            parcel
            for module in self._modules.values()
            if not module.crowd.all
            for lane in module.lanes.values()
            for parcel in lane.waiting()
            if parcel.kind is Kind.MESSAGE and parcel.wants_answer
        ]
        for parcel in found:
            self._drop(parcel)
        return found
