"""What the queues promise, under any interleaving of arrivals, hand-outs, settlements and departures."""

from collections import Counter, defaultdict

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.merging import merge_key
from services.dispatcher.upstream.node_queues import NodeQueues
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.room import Bounds

MODULES = ("edgecontroller", "router")
NODES = ("a", "b", "c", "d")
BOUNDS = Bounds(6, 400, 14, 800, events_per_lane=3, events_total=8)
Key = tuple[str, str]


class QueueMachine(RuleBasedStateMachine):
    """C30, C32: order per node and module, nothing lost, nothing held by two, fair turns, bounds kept."""

    subscribers: Bundle[int] = Bundle("subscribers")

    def __init__(self) -> None:
        super().__init__()
        self.queues = NodeQueues(BOUNDS)
        self.credit: dict[int, int] = {}
        self.modules: dict[int, tuple[str, ...]] = {}
        # The model: waiting parcels per lane in order, held ones per subscriber.
        self.waiting: dict[Key, list[Parcel]] = defaultdict(list)
        self.held: dict[int, dict[int, Parcel]] = {}
        self.asking: set[int] = set()  # found nothing the last time, though it had room
        self.seen: set[int] = set()  # numbers of parcels that were handed out once
        # How often others were served since a waiting lane that could be served was.
        self.passed: dict[Key, dict[Key, int]] = {}

    # -- rules ---------------------------------------------------------------------------------

    @rule(
        target=subscribers,
        modules=st.sampled_from([("edgecontroller",), ("router",), MODULES]),
        credit=st.integers(1, 4),
    )
    def subscribe(self, modules: tuple[str, ...], credit: int) -> int:
        subscriber = self.queues.subscribe(modules, credit)
        self.credit[subscriber], self.modules[subscriber] = credit, modules
        self.held[subscriber] = {}
        return subscriber

    @rule(
        module=st.sampled_from(MODULES),
        node=st.sampled_from(NODES),
        resource=st.sampled_from(["default/podstatus/p", "default/podstatus/q", "default/podstatus"]),
        operation=st.sampled_from(["update", "update", "delete"]),
        kind=st.sampled_from([Kind.MESSAGE, Kind.MESSAGE, Kind.MESSAGE, Kind.EVENT, Kind.UPLOAD]),
        size=st.integers(1, 150),
        sync=st.booleans(),
    )
    def put(
        self, module: str, node: str, resource: str, operation: str, kind: Kind, size: int, sync: bool
    ) -> None:
        message = Message(resource=resource, operation=operation, sync=sync, id=str(len(self.seen)))
        key = merge_key(message) if kind is Kind.MESSAGE else ""
        parcel = Parcel(module, node, 1, message, size, kind, resource, key)
        lane = self.waiting[module, node]
        last = next((one for one in reversed(lane) if one.resource == resource), None)
        put = self.queues.put(parcel)
        if put.merged:
            assert key, "only reports are merged"
            assert last is not None
            assert last.merge_key
            assert last.number not in self.seen
            assert last.message is message
        else:
            may = key and last is not None and last.merge_key and last.number not in self.seen
            assert not may, "a report that could be merged was not"
            lane.append(parcel)
        for lost, bound in put.dropped:
            assert lost.kind is kind, "events make room for events, messages for messages"
            if kind is Kind.EVENT:
                self._check_lost_event(lost, bound, parcel)
            else:
                self._check_lost_message(lost, bound, parcel)
            assert lost.number not in self.seen, "what a subscriber saw is never dropped"
            self.waiting[lost.module, lost.node_id].remove(lost)

    def _check_lost_event(self, lost: Parcel, bound: str, newcomer: Parcel) -> None:
        events = self._unseen_events()
        if bound == "node_events":
            lane = [(one.module, one.node_id) == (newcomer.module, newcomer.node_id) for one in events]
            assert lost is events[lane.index(True)], "the oldest"
            return
        modules = Counter(one.module for one in events)
        assert modules[lost.module] == max(modules.values()), "of the module with the most"
        nodes = Counter(one.node_id for one in events if one.module == lost.module)
        assert nodes[lost.node_id] == max(nodes.values()), "of the node with the most"

    def _check_lost_message(self, lost: Parcel, bound: str, newcomer: Parcel) -> None:
        assert lost.kind is Kind.MESSAGE
        if lost.node_id == newcomer.node_id:
            assert lost.merge_key or lost is newcomer
            return
        assert bound.startswith("total"), "a node's own bound costs nobody else"
        of = Counter(one.node_id for one in self._unsettled() if one.kind is Kind.MESSAGE)
        assert of[newcomer.node_id] == 1, "others lose for a node with next to nothing alone"
        assert of[lost.node_id] > 1, "never one with next to nothing"

    @rule(subscriber=subscribers, most=st.integers(1, 5))
    def take(self, subscriber: int, most: int) -> None:
        for _ in range(most):
            if not self._take_one(subscriber):
                return

    def _take_one(self, subscriber: int) -> bool:
        room = self.credit[subscriber] - len(self.held[subscriber])
        self.asking.discard(subscriber)
        eligible = self._eligible(subscriber)
        taken = self.queues.take(subscriber, 1, 1000, 0.0)
        if not taken:
            if room > 0:
                kept = {(one.module, one.node_id) for one in self.held[subscriber].values()}
                for key in eligible - kept:
                    assert self._somebody_else_asks(subscriber, key), "a lane waits and nobody gets it"
                self.asking.add(subscriber)
            return False
        assert room > 0
        ((delivery_id, parcel),) = taken
        key = (parcel.module, parcel.node_id)
        assert key in eligible, "a lane went to two subscribers"
        assert self.waiting[key].pop(0) is parcel, "out of order"
        assert delivery_id not in self.held[subscriber]
        assert parcel.redelivered == (parcel.number in self.seen)
        self.held[subscriber][delivery_id] = parcel
        self.seen.add(parcel.number)
        self._count_turn(key, {one for one in eligible if not self._may_be_anothers(subscriber, one)})
        return True

    @rule()
    def everybody_takes(self) -> None:
        """C49: once all have asked, nothing waits that anybody with room could have."""
        while sum(self._take_one(subscriber) for subscriber in self.held):
            pass
        held = {(one.module, one.node_id) for parcels in self.held.values() for one in parcels.values()}
        for key, lane in self.waiting.items():
            for subscriber in self.held:
                if lane and key not in held and key[0] in self.modules[subscriber]:
                    assert self.credit[subscriber] == len(self.held[subscriber])

    @rule(subscriber=subscribers, data=st.data())
    def settle(self, subscriber: int, data: st.DataObject) -> None:
        held = self.held[subscriber]
        ids = data.draw(st.lists(st.sampled_from([*held, 9999]), unique=True))
        settled, unknown = self.queues.settle(subscriber, ids, 0.0)
        assert unknown == ids.count(9999)
        assert settled == [held.pop(one) for one in ids if one != 9999]
        self.passed.clear()

    @rule(subscriber=consumes(subscribers))
    def leave(self, subscriber: int) -> None:
        returned = self.queues.leave(subscriber)
        held = list(self.held.pop(subscriber).values())
        assert returned == held
        for parcel in reversed(held):
            self.waiting[parcel.module, parcel.node_id].insert(0, parcel)
        self.asking.discard(subscriber)
        self.passed.clear()

    @rule()
    def wake(self) -> None:
        woken = self.queues.woken()
        assert woken <= set(self.held)

    # -- what always holds ---------------------------------------------------------------------

    @invariant()
    def accounts_are_right(self) -> None:
        assert self.queues.waiting == sum(map(len, self.waiting.values()))
        bounded = [one for one in self._unsettled() if one.kind is Kind.MESSAGE]
        assert self.queues.room.messages == len(bounded) <= BOUNDS.total
        assert self.queues.room.size_bytes == sum(one.size_bytes for one in bounded) <= BOUNDS.bytes_total
        for node in NODES:
            of_node = [one for one in bounded if one.node_id == node]
            assert len(of_node) <= BOUNDS.per_node
            assert sum(one.size_bytes for one in of_node) <= BOUNDS.bytes_per_node
        events = self._unseen_events()
        assert len(events) <= BOUNDS.events_total
        lanes = Counter((one.module, one.node_id) for one in events)
        assert all(count <= BOUNDS.events_per_lane for count in lanes.values())
        keys = {(one.module, one.node_id) for one in self._unsettled()}
        assert self.queues.lanes == len(keys)

    @invariant()
    def nothing_is_held_by_two(self) -> None:
        owners: dict[Key, set[int]] = defaultdict(set)
        for subscriber, parcels in self.held.items():
            for parcel in parcels.values():
                owners[parcel.module, parcel.node_id].add(subscriber)
        assert all(len(one) == 1 for one in owners.values())

    # -- parts ---------------------------------------------------------------------------------

    def _unsettled(self) -> list[Parcel]:
        """All that waits or is held."""
        waiting = [one for lane in self.waiting.values() for one in lane]
        return waiting + [one for parcels in self.held.values() for one in parcels.values()]

    def _unseen_events(self) -> list[Parcel]:
        """Waiting events that no subscriber has seen, oldest first."""
        waiting = [one for lane in self.waiting.values() for one in lane]
        events = [one for one in waiting if one.kind is Kind.EVENT and one.number not in self.seen]
        return sorted(events, key=lambda one: one.number)

    def _eligible(self, subscriber: int) -> set[Key]:
        """Lanes with something waiting that no other subscriber holds."""
        others = {
            (one.module, one.node_id)
            for other, parcels in self.held.items()
            if other != subscriber
            for one in parcels.values()
        }
        return {
            key
            for key, lane in self.waiting.items()
            if lane and key[0] in self.modules[subscriber] and key not in others
        }

    def _may_be_anothers(self, subscriber: int, key: Key) -> bool:
        """Whether the lane may be promised to another one, or on its way from this one to another."""
        held = {(one.module, one.node_id) for one in self.held[subscriber].values()}
        is_alone = not any(key[0] in self.modules[one] for one in self.held if one != subscriber)
        return self._somebody_else_asks(subscriber, key) or (key in held and not is_alone)

    def _somebody_else_asks(self, subscriber: int, key: Key) -> bool:
        """Whether the lane may be promised to another one."""
        return any(key[0] in self.modules[one] for one in self.asking - {subscriber})

    def _count_turn(self, served: Key, eligible: set[Key]) -> None:
        """No other lane is served twice while one waits that the same subscriber could have got."""
        self.passed.pop(served, None)
        for key in list(self.passed):
            if not self.waiting[key]:
                del self.passed[key]
        for key in eligible - {served}:
            turns = self.passed.setdefault(key, {})
            turns[served] = turns.get(served, 0) + 1
            assert turns[served] <= 1, f"{served} was served twice before {key}"


QueueMachine.TestCase.settings = settings(max_examples=120, stateful_step_count=60, deadline=None)
TestQueues = QueueMachine.TestCase
