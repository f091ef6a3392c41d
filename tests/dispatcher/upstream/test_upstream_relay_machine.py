"""Two dispatchers that relay to each other, under any interleaving of what happens at both and between."""

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule
from prometheus_client import CollectorRegistry

from cloudhub.v1.dispatcher_pb2 import UpstreamDelivery
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.peer_pb2 import RelayRequest, RelayResponse
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.node_queues import NodeQueues
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.relays import RelayEnd, Relays
from services.dispatcher.upstream.room import Bounds

MODULES = ("edgecontroller", "router")
NODES = (("a", "b"), ("c", "d"))  # by dispatcher
SIDES = st.sampled_from((0, 1))
Who = tuple[int, int]  # dispatcher, subscriber
Key = tuple[str, str]


class Dispatcher:
    """The queues of one, with its ends of relays."""

    def __init__(self) -> None:
        self.queues = NodeQueues(Bounds(10_000, 10_000_000, 10_000, 10_000_000, events_per_lane=10_000))
        self.relays = Relays(self.queues, self.queue, UpstreamMetrics(CollectorRegistry()))

    def queue(self, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            assert not self.queues.put(parcel, by_epoch=True).dropped


@dataclass
class Stream:
    """A relay at work: what is on its way in both directions."""

    serving: Dispatcher
    calling: Dispatcher
    end: RelayEnd
    subscriber: int
    heard: int
    down: deque[RelayResponse] = field(default_factory=deque)
    up: deque[RelayRequest] = field(default_factory=deque)

    def hand_out(self, most: int = 3) -> None:
        taken = self.serving.queues.take(self.subscriber, most, 1000, 0.0)
        if taken:
            deliveries = [
                UpstreamDelivery(
                    delivery_id=delivery_id,
                    module=one.module,
                    node_id=one.node_id,
                    epoch=one.epoch,
                    redelivered=one.redelivered,
                    message=one.message,
                )
                for delivery_id, one in taken
            ]
            self.down.append(RelayResponse(deliveries=deliveries, subscription=self.heard))

    def say(self) -> None:
        self.up.append(self.end.say(self.calling.relays.wanted))

    def hear(self) -> None:
        if self.up:
            request = self.up.popleft()
            if request.HasField("subscription"):
                wanted = request.subscription
                self.serving.queues.resubscribe(self.subscriber, wanted.modules, wanted.max_unacknowledged)
                self.heard = wanted.number
            assert self.serving.queues.give_back(self.subscriber, request.returned) == 0
            assert self.serving.queues.settle(self.subscriber, request.acknowledged, 0.0)[1] == 0

    def arrive(self) -> None:
        if self.down:
            self.calling.relays.received(self.end, self.down.popleft())


class RelayMachine(RuleBasedStateMachine):
    """C32, C39: order per node and module at whatever subscribers, nothing lost, nothing held by two."""

    subscribers: Bundle[Who] = Bundle("subscribers")

    def __init__(self) -> None:
        super().__init__()
        self.sides = (Dispatcher(), Dispatcher())
        self.streams: list[Stream] = []  # by the dispatcher that calls
        self.held: dict[Who, dict[int, Parcel]] = {}
        self.put_in: dict[Key, list[str]] = defaultdict(list)
        self.first_seen: dict[Key, list[str]] = defaultdict(list)
        self.settled: set[str] = set()
        self.cuts = 0

    @initialize()
    def open_streams(self) -> None:
        self.streams = [self._open(0), self._open(1)]

    def _open(self, calling: int) -> Stream:
        here, there = self.sides[calling], self.sides[1 - calling]
        end = here.relays.open()
        first = end.say(here.relays.wanted).subscription
        subscriber = there.queues.subscribe(first.modules, first.max_unacknowledged, is_relay=True)
        return Stream(there, here, end, subscriber, first.number)

    # -- what happens at a dispatcher ------------------------------------------------------------

    @rule(
        target=subscribers,
        side=SIDES,
        modules=st.sampled_from([("edgecontroller",), ("router",), MODULES]),
        credit=st.integers(1, 4),
    )
    def subscribe(self, side: int, modules: tuple[str, ...], credit: int) -> Who:
        who = (side, self.sides[side].queues.subscribe(modules, credit))
        self.held[who] = {}
        self.sides[side].relays.subscribers_changed()
        return who

    @rule(who=consumes(subscribers))
    def leave(self, who: Who) -> None:
        del self.held[who]
        self.sides[who[0]].queues.leave(who[1])
        self.sides[who[0]].relays.subscribers_changed()

    @rule(side=SIDES, node=st.integers(0, 1), module=st.sampled_from(MODULES), count=st.integers(1, 3))
    def put(self, side: int, node: int, module: str, count: int) -> None:
        node_id = NODES[side][node]
        for _ in range(count):
            numbers = self.put_in[module, node_id]
            message = Message(id=f"{module} {node_id} {len(numbers)}")
            numbers.append(message.id)
            self.sides[side].queue([Parcel(module, node_id, 1, message, 10, Kind.EVENT)])

    @rule(who=subscribers, most=st.integers(1, 4))
    def take(self, who: Who, most: int) -> None:
        for delivery_id, parcel in self.sides[who[0]].queues.take(who[1], most, 1000, 0.0):
            self.held[who][delivery_id] = parcel
            seen = self.first_seen[parcel.module, parcel.node_id]
            if parcel.message.id in seen:
                assert parcel.redelivered or self.cuts, "seen twice without a word"
            else:
                seen.append(parcel.message.id)
                expected = self.put_in[parcel.module, parcel.node_id][: len(seen)]
                assert seen == expected, "out of order"

    @rule(who=subscribers, data=st.data())
    def settle(self, who: Who, data: st.DataObject) -> None:
        ids = data.draw(st.lists(st.sampled_from([*self.held[who], 9999]), unique=True))
        self._settle(who, [one for one in ids if one != 9999])

    def _settle(self, who: Who, ids: list[int]) -> None:
        for one in ids:
            self.settled.add(self.held[who].pop(one).message.id)
        side = self.sides[who[0]]
        for parcel in side.queues.settle(who[1], ids, 0.0)[0]:
            if parcel.kind is Kind.RELAYED:
                side.relays.settled(parcel)

    # -- what happens between them -----------------------------------------------------------------

    @rule(calling=SIDES, most=st.integers(1, 3))
    def hand_out(self, calling: int, most: int) -> None:
        self.streams[calling].hand_out(most)

    @rule(calling=SIDES)
    def arrive(self, calling: int) -> None:
        self.streams[calling].arrive()

    @rule(calling=SIDES)
    def say(self, calling: int) -> None:
        self.streams[calling].say()

    @rule(calling=SIDES)
    def hear(self, calling: int) -> None:
        self.streams[calling].hear()

    @rule(calling=SIDES)
    def cut(self, calling: int) -> None:
        """What was on its way is lost."""
        stream = self.streams[calling]
        self.cuts += 1
        stream.calling.relays.close(stream.end)
        stream.serving.queues.leave(stream.subscriber)
        self.streams[calling] = self._open(calling)

    # -- what always holds -------------------------------------------------------------------------

    @invariant()
    def a_nodes_messages_are_with_one_subscriber(self) -> None:
        owners: dict[Key, set[Who]] = defaultdict(set)
        for who, parcels in self.held.items():
            for parcel in parcels.values():
                owners[parcel.module, parcel.node_id].add(who)
        # What a subscriber got over a relay that was cut is somebody else's too.
        assert self.cuts or all(len(one) == 1 for one in owners.values())

    def teardown(self) -> None:
        """With a subscriber at one side only, everything ends with it, and nothing is left anywhere."""
        if not self.streams:
            return
        for who in list(self.held):
            self.leave(who)
        last = (0, self.sides[0].queues.subscribe(MODULES, 3))
        self.held[last] = {}
        self.sides[0].relays.subscribers_changed()
        for _ in range(300):
            for stream in self.streams:
                stream.hand_out()
                stream.arrive()
                stream.say()
                stream.hear()
            self.take(last, 3)
            self._settle(last, list(self.held[last]))
            if not any(side.queues.lanes for side in self.sides):
                break
        assert self.settled == {one for numbers in self.put_in.values() for one in numbers}
        for side in self.sides:
            assert side.queues.waiting == 0
            assert side.queues.lanes == 0


RelayMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
TestRelays = RelayMachine.TestCase
