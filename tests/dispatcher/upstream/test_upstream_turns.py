"""Turns among the subscribers of a module, and how long one may keep what it does not settle."""

import itertools

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.node_queues import NodeQueues, Stuck
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.room import Bounds

MODULE = "edgecontroller"
ROOMY = Bounds(1000, 1_000_000, 10_000, 10_000_000)
Taken = list[tuple[int, Parcel]]


def parcel(node: str, number: int, module: str = MODULE) -> Parcel:
    return Parcel(module, node, 1, Message(id=f"{node}-{number}"), 10)


def take(queues: NodeQueues, subscriber: int, now: float = 0.0, most: int = 1000) -> Taken:
    return queues.take(subscriber, most, 1 << 40, now)


def settle(queues: NodeQueues, subscriber: int, taken: Taken, now: float = 0.0) -> None:
    assert queues.settle(subscriber, [delivery_id for delivery_id, _ in taken], now)[1] == 0


def names(taken: Taken) -> list[str]:
    return [one.message.id for _, one in taken]


def waiting_for_work(*room: int) -> tuple[NodeQueues, list[int]]:
    """Subscribers that have found nothing yet."""
    queues = NodeQueues(ROOMY)
    subscribers = [queues.subscribe([MODULE], credit) for credit in room]
    for one in subscribers:
        assert take(queues, one) == []
    return queues, subscribers


def test_subscribers_that_wait_for_work_get_a_node_each_in_turn() -> None:
    """C49."""
    queues, subscribers = waiting_for_work(256, 256, 256)
    for node in range(9):
        queues.put(parcel(f"n{node}", 0))
    assert queues.woken() == set(subscribers)
    assert [len(take(queues, one)) for one in subscribers] == [3, 3, 3]


def test_one_without_room_is_passed_over() -> None:
    """C49: what a subscriber may hold weighs its turns."""
    queues, (small, large) = waiting_for_work(2, 256)
    for node in range(10):
        queues.put(parcel(f"n{node}", 0))
    assert [len(take(queues, one)) for one in (small, large)] == [2, 8]


def test_what_one_did_not_take_of_its_turn_is_the_others() -> None:
    """C49: a stream that is slow to be written keeps nothing from anybody."""
    queues, (slow, quick) = waiting_for_work(256, 256)
    for node in range(10):
        queues.put(parcel(f"n{node}", 0))
    assert len(take(queues, slow, most=1)) == 1
    assert len(take(queues, quick)) == 9


def test_one_that_never_settles_keeps_its_share_and_no_more() -> None:
    """C49: of 160 messages it has those of half the nodes; the good one has the others and what follows."""
    queues, (bad, good) = waiting_for_work(256, 256)
    for number, node in itertools.product(range(10), range(16)):
        queues.put(parcel(f"n{node}", number))
    stuck = take(queues, bad)
    assert len(stuck) == 80
    settled = 0
    while taken := take(queues, good):
        settle(queues, good, taken)
        settled += len(taken)
    assert settled == 80
    for node in range(100, 500):
        queues.put(parcel(f"n{node}", 0))
        taken = take(queues, good)
        settle(queues, good, taken)
        settled += len(taken)
    # The bad one has room for 176 more and is offered every second node until that is used up.
    held = stuck + take(queues, bad)
    assert len(held) <= 256
    while taken := take(queues, good):
        settle(queues, good, taken)
        settled += len(taken)
    assert settled == 160 + 400 - len(held)


def test_one_that_comes_later_gets_nodes_of_one_that_always_holds_something() -> None:
    """C49: nodes that never stop talking do not stay with whoever came first."""
    queues, (first,) = waiting_for_work(256)
    numbers = itertools.count()

    def talk() -> None:
        for node in range(10):
            queues.put(parcel(f"n{node}", next(numbers)))

    talk()
    held = take(queues, first)
    second = queues.subscribe([MODULE], 256)
    assert take(queues, second) == []
    got, last = 0, dict[str, int]()
    for _ in range(20):
        talk()
        more = take(queues, first)  # always before it has settled what it has
        settle(queues, first, held)
        assert take(queues, first) == []
        held = more
        taken = take(queues, second)
        settle(queues, second, taken)
        assert take(queues, second) == []
        got += len(taken)
        for _, one in taken:
            number = int(one.message.id.partition("-")[2])
            assert number > last.get(one.node_id, -1), "out of order"
            last[one.node_id] = number
    assert 60 <= got <= 140, "about half of 200"


def test_of_one_busy_node_two_get_turns() -> None:
    """C49: 274 messages of one node do not all go to one while the other waits."""
    queues, (first, second) = waiting_for_work(256, 256)
    for number in range(274):
        queues.put(parcel("a", number))
    counts = dict.fromkeys((first, second), 0)
    order: list[str] = []
    for _ in range(10):
        for one in (first, second):
            taken = take(queues, one)
            counts[one] += len(taken)
            order += names(taken)
            settle(queues, one, taken)
    assert order == [f"a-{number}" for number in range(274)]
    assert sorted(counts.values()) == [128, 146]


def test_a_lane_on_its_way_to_another_stays_whole() -> None:
    """C32, C49: no parcel of it is handed out while the former owner holds one."""
    queues, (first, second) = waiting_for_work(4, 4)
    for number in range(4):
        queues.put(parcel("a", number))
    taken = take(queues, first)
    assert names(taken) == ["a-0", "a-1"], "its turn is over at half its credit: the other one waits"
    assert take(queues, second) == []
    settle(queues, first, taken[:1])
    assert take(queues, second) == take(queues, first) == []
    settle(queues, first, taken[1:])
    assert names(take(queues, second)) == ["a-2", "a-3"]


def test_a_subscriber_that_is_alone_is_never_stuck() -> None:
    """C49: it would get the same again."""
    queues, (only,) = waiting_for_work(8)
    queues.put(parcel("a", 0))
    take(queues, only, 0.0)
    assert queues.stuck(1e6, 60.0) == []
    other = queues.subscribe(["router"], 8)
    assert queues.stuck(1e6, 60.0) == [], "that one has no use for it"
    queues.leave(other)
    queues.subscribe([MODULE], 8)
    assert queues.stuck(1e6, 60.0) == [Stuck(only, 1, 1e6)]


def test_another_dispatcher_with_subscribers_is_somebody_to_give_it_to() -> None:
    """C49: and a relay is never stuck itself, its dispatcher finds out who is."""
    queues, (here,) = waiting_for_work(8)
    relay = queues.subscribe([MODULE], 8, is_relay=True)
    assert take(queues, relay) == []
    for node in "abcd":
        queues.put(parcel(node, 0))
    assert len(take(queues, here, 0.0)) == len(take(queues, relay, 0.0)) == 2
    assert [one.subscriber_id for one in queues.stuck(60.0, 60.0)] == [here]


def test_silence_counts_from_the_last_settlement() -> None:
    """C49: one that is slow but works keeps what it has, whatever the others do."""
    queues, (slow, _) = waiting_for_work(100, 100)
    for node in range(200):
        queues.put(parcel(f"n{node}", 0))
    held = take(queues, slow, 0.0)
    assert len(held) == 100
    for now in range(50, 500, 50):
        settle(queues, slow, [held.pop(0)], float(now))
        assert queues.stuck(now + 49.0, 60.0) == []
    assert [(one.held, one.seconds) for one in queues.stuck(511.0, 60.0)] == [(91, 61.0)]


def test_one_delivery_cannot_be_kept_for_ever_by_settling_others() -> None:
    """C49: ten times as long."""
    queues, (sly, _) = waiting_for_work(100, 100)
    queues.put(parcel("a", 0))
    assert len(take(queues, sly, 0.0)) == 1
    for now in range(30, 600, 30):
        queues.put(parcel("a", now))
        ((delivery_id, _),) = take(queues, sly, float(now))
        queues.settle(sly, [delivery_id], float(now))
        assert queues.stuck(float(now), 60.0) == []
    assert [one.seconds for one in queues.stuck(600.0, 60.0)] == [600.0]


def test_what_a_stuck_one_held_moves_whole_and_in_order() -> None:
    """C49: per node everything it held, before what came since, marked."""
    queues, (stuck, good) = waiting_for_work(256, 256)
    for number in range(3):
        queues.put(parcel("a", number))
    queues.put(parcel("b", 0))
    assert names(take(queues, stuck, 0.0)) == ["a-0", "a-1", "a-2"]
    assert names(take(queues, good, 0.0)) == ["b-0"]
    queues.put(parcel("a", 3))
    (one,) = queues.stuck(60.0, 60.0)[:1]
    assert one.subscriber_id == stuck
    queues.leave(stuck)
    taken = take(queues, good, 60.0)
    assert names(taken) == ["a-0", "a-1", "a-2", "a-3"]
    assert [item.redelivered for _, item in taken] == [True, True, True, False]
    assert queues.oldest_unsettled_at() == 0.0, "b-0 is held still"


def test_relayed_parcels_go_in_turn_to_subscribers_here_alone() -> None:
    """C49: what another dispatcher's nodes say is shared as well, and never relayed on."""
    queues, (first, second) = waiting_for_work(256, 256)
    relay = queues.subscribe([MODULE], 256, is_relay=True)
    assert take(queues, relay) == []
    number = queues.open_relay()
    for node in range(10):
        queues.put(
            Parcel(MODULE, f"n{node}", 1, Message(), 10, Kind.RELAYED, relay=number, place=node),
            by_epoch=True,
        )
    assert [len(take(queues, one)) for one in (first, second, relay)] == [5, 5, 0]
