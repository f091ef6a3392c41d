"""Which lane is handed out next, and to whom. No I/O and no clock.

A lane that nobody owns is promised to a subscriber that waits for work, each in turn; if nobody does, it
stands in its module's line until somebody comes. An owner keeps a lane while it holds parcels of it, but if
another one waits for work it gets no more of it (the lane is `draining`) once it has had a turn of it, or has
more lanes.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from itertools import takewhile

from services.dispatcher.upstream.lane import Lane, Turns
from services.dispatcher.upstream.subscriber import Crowd, Subscriber


@dataclass(slots=True)
class Module:
    """The lanes of one module and its subscribers. `local_free` are lanes with relayed parcels, for those
    that are no relays."""

    lanes: dict[str, Lane] = field(default_factory=dict)
    free: Turns = field(default_factory=OrderedDict)
    local_free: Turns = field(default_factory=OrderedDict)
    crowd: Crowd = field(default_factory=Crowd)


class Lines:
    """The lanes of all modules, in line."""

    def __init__(self) -> None:
        self.modules: dict[str, Module] = {}
        self.subscribers: dict[int, Subscriber] = {}
        self.woken: set[int] = set()
        self._last_ticket = 0

    # -- subscribers ---------------------------------------------------------------------------

    def enter(self, name: str, subscriber: Subscriber) -> None:
        """It wants a module's messages."""
        self.modules.setdefault(name, Module()).crowd.enter(subscriber)

    def exit(self, name: str, subscriber: Subscriber) -> None:
        """It does not any more; `tidy` the module when its lanes are dealt with."""
        self.modules[name].crowd.exit(subscriber)

    def busy(self, subscriber: Subscriber) -> None:
        """It does not wait for work."""
        for name in subscriber.modules:
            self.modules[name].crowd.busy(subscriber)

    def ask(self, subscriber: Subscriber) -> None:
        """It has room and found nothing: it gets what comes next, and of what others have more of."""
        for name in subscriber.modules:
            crowd = self.modules[name].crowd
            crowd.ask(subscriber)
            if len(crowd.all) == 1 or crowd.draining:
                continue
            richest = crowd.richest(name)
            theirs = richest.lanes_of(name)
            spare = (len(theirs) - len(subscriber.lanes_of(name))) // 2
            for lane in list(theirs)[: max(0, spare)]:
                if not (lane.relayed and subscriber.is_relay):
                    self._drain(lane)

    def break_promises(self, subscriber: Subscriber) -> None:
        """It did not take all that was promised to it: others may have the rest."""
        if subscriber.promised:
            for lane in [lane for lane in subscriber.own if lane.is_promised]:
                self.unline(lane)
                self.line_up(lane, lane.ticket)

    # -- lanes ---------------------------------------------------------------------------------

    def next_lane(self, subscriber: Subscriber) -> Lane | None:
        """The one with the lowest ticket of those that it may have now."""
        first = next(iter(subscriber.own), None)
        for name in subscriber.modules:
            module = self.modules[name]
            lane = next(iter(module.free), None)
            if lane is not None and (first is None or lane.ticket < first.ticket):
                first = lane
            if module.local_free and not subscriber.is_relay:
                lane = next(iter(module.local_free))
                if first is None or lane.ticket < first.ticket:
                    first = lane
        return first

    def hand(self, lane: Lane, subscriber: Subscriber) -> None:
        """Its first parcel, just taken out, goes to a subscriber."""
        if not lane.owner:
            self._own(lane, subscriber)
        elif lane.is_promised:
            subscriber.promised -= 1
        lane.held += 1
        lane.handed += 1
        if lane.handed >= subscriber.turn and not lane.draining:
            crowd = self.modules[lane.module].crowd
            if crowd.waits_beside(subscriber, is_local=bool(lane.relayed)):
                self._drain(lane)
        self.line_up(lane)

    def line_up(self, lane: Lane, ticket: int = 0) -> None:
        """It takes its place in line, at the end or by its former ticket, if it has anything for anybody and
        no place yet."""
        if lane.turns is not None or not len(lane):
            return
        if not ticket:
            self._last_ticket += 1
            lane.ticket = self._last_ticket
        if lane.owner:
            owner = self.subscribers[lane.owner]
            if (
                lane.returned
                or lane.draining
                or lane.module not in owner.modules
                or (lane.relayed and owner.is_relay)
            ):
                return  # not for its owner: it waits until that has settled what it holds
            lane.turns = owner.own
            self.woken.add(lane.owner)
        else:
            module = self.modules[lane.module]
            chosen = module.crowd.next(is_local=bool(lane.relayed))
            if chosen is not None:
                self._own(lane, chosen)
                chosen.promised += 1
                lane.turns = chosen.own
                self.woken.add(chosen.number)
            else:
                lane.turns = module.local_free if lane.relayed else module.free
        lane.turns[lane] = None
        if ticket:
            _to_its_place(lane, lane.turns)

    def leave_line(self, lane: Lane) -> None:
        """It gives its place up."""
        if lane.turns is not None:
            del lane.turns[lane]
            lane.turns = None

    def unline(self, lane: Lane) -> None:
        """It gives its place up, and is promised to nobody."""
        self.leave_line(lane)
        if lane.is_promised:
            self.subscribers[lane.owner].promised -= 1
            self._disown(lane)

    def release(self, lane: Lane) -> None:
        """Nobody holds parcels of the lane any more: whoever is next may take it."""
        self._disown(lane)
        self.leave_line(lane)
        self.line_up(lane)
        self.forget_if_empty(lane)

    def forget_if_empty(self, lane: Lane) -> None:
        """A lane without parcels is none."""
        if not len(lane) and not lane.held:
            self.unline(lane)
            del self.modules[lane.module].lanes[lane.node_id]
            self.tidy(lane.module)

    def tidy(self, name: str) -> None:
        """A module without lanes and subscribers is none."""
        module = self.modules.get(name)
        if module is not None and not module.lanes and not module.crowd.all:
            del self.modules[name]

    def _drain(self, lane: Lane) -> None:
        """Its owner gets no more of it, so that another one does when what it holds is settled."""
        if lane.is_promised:
            return
        if not lane.draining:
            lane.draining = True
            self.modules[lane.module].crowd.draining += 1
        self.leave_line(lane)

    def _own(self, lane: Lane, subscriber: Subscriber) -> None:
        lane.owner = subscriber.number
        subscriber.lanes.setdefault(lane.module, {})[lane] = None

    def _disown(self, lane: Lane) -> None:
        owner = self.subscribers.get(lane.owner)
        if owner is not None:
            lanes = owner.lanes[lane.module]
            del lanes[lane]
            if not lanes:
                del owner.lanes[lane.module]
        if lane.draining:
            lane.draining = False
            self.modules[lane.module].crowd.draining -= 1
        lane.owner = lane.handed = 0


def _to_its_place(lane: Lane, turns: Turns) -> None:
    """The last one goes before those with a higher ticket; few have a lower one."""
    before = list(takewhile(lambda other: other.ticket < lane.ticket, turns))
    for one in (lane, *reversed(before)):
        turns.move_to_end(one, last=False)
