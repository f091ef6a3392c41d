"""The queues by example."""

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.merging import merge_key
from services.dispatcher.upstream.node_queues import NodeQueues
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.room import Bounds

MODULE = "edgecontroller"
ROOMY = Bounds(1000, 1_000_000, 10_000, 10_000_000)


def parcel(
    node: str,
    text: str,
    *,
    resource: str = "",
    operation: str = "query",
    module: str = MODULE,
    epoch: int = 1,
    size: int = 10,
    kind: Kind = Kind.MESSAGE,
    sync: bool = False,
) -> Parcel:
    message = Message(
        id=text,
        resource=resource or f"default/thing/{text}",
        operation=operation,
        content=text.encode(),
        sync=sync,
    )
    return Parcel(module, node, epoch, message, size, kind, message.resource, merge_key(message))


def update(node: str, text: str, name: str = "p1", *, epoch: int = 1, size: int = 10) -> Parcel:
    return parcel(
        node, text, resource=f"default/podstatus/{name}", operation="update", epoch=epoch, size=size
    )


def texts(taken: list[tuple[int, Parcel]]) -> list[str]:
    return [one.message.content.decode() for _, one in taken]


def take(queues: NodeQueues, subscriber: int, most: int = 1000) -> list[tuple[int, Parcel]]:
    return queues.take(subscriber, most, 1 << 40, 0.0)


def test_update_delete_update_stays_so() -> None:
    """C30: a report is merged only into the last waiting message of its resource."""
    queues = NodeQueues(ROOMY)
    gone = parcel("a", "gone", resource="default/podstatus/p1", operation="delete")
    outcomes = [queues.put(one).merged for one in (update("a", "1"), update("a", "2"), gone)]
    outcomes += [queues.put(one).merged for one in (update("a", "3"), update("a", "4"))]
    assert outcomes == [False, True, False, False, True]
    subscriber = queues.subscribe([MODULE], 10)
    assert texts(take(queues, subscriber)) == ["2", "gone", "4"]


def test_reports_of_other_resources_and_sessions_are_not_merged() -> None:
    """C8, C30: a report of a new session never moves in front of that session's `connected`."""
    queues = NodeQueues(ROOMY)
    queues.put(update("a", "1"))
    queues.put(update("a", "2", "p2"))
    assert not queues.put(update("a", "3", epoch=2)).merged
    assert not queues.put(
        parcel("a", "4", resource="default/podstatus/p1", operation="update", sync=True)
    ).merged
    assert not queues.put(update("a", "5", epoch=2)).merged
    subscriber = queues.subscribe([MODULE], 10)
    assert texts(take(queues, subscriber)) == ["1", "2", "3", "4", "5"]


def test_a_report_is_not_merged_into_one_that_a_subscriber_has_seen() -> None:
    queues = NodeQueues(ROOMY)
    subscriber = queues.subscribe([MODULE], 10)
    queues.put(update("a", "1"))
    take(queues, subscriber)
    assert not queues.put(update("a", "2")).merged
    queues.leave(subscriber)
    assert queues.put(update("a", "3")).merged
    other = queues.subscribe([MODULE], 10)
    assert texts(take(queues, other)) == ["1", "3"]


def test_a_thousand_waiting_messages_delay_another_node_by_one_turn() -> None:
    """C30: nodes are served in turn."""
    queues = NodeQueues(ROOMY)
    subscriber = queues.subscribe([MODULE], 5000)
    for number in range(1000):
        queues.put(parcel("busy", f"b{number}"))
    assert texts(take(queues, subscriber, 10)) == [f"b{number}" for number in range(10)]
    queues.put(parcel("calm", "c0"))
    queues.put(parcel("calm", "c1"))
    assert texts(take(queues, subscriber, 4)) == ["b10", "c0", "b11", "c1"]


def test_a_node_stays_with_one_subscriber_until_all_is_settled() -> None:
    queues = NodeQueues(ROOMY)
    first, second = queues.subscribe([MODULE], 10), queues.subscribe([MODULE], 10)
    queues.put(parcel("a", "1"))
    queues.put(parcel("a", "2"))
    (held,) = take(queues, first, 1)
    assert take(queues, second) == []
    queues.put(parcel("a", "3"))
    assert take(queues, second) == []
    queues.settle(first, [held[0]], 0.0)
    assert queues.woken() >= {first, second}
    assert texts(take(queues, second)) == ["2", "3"]
    assert take(queues, first) == []
    queues.put(parcel("a", "4"))
    assert queues.woken() == {second}


def test_what_a_subscriber_held_goes_to_another_in_order_and_marked() -> None:
    """C32: a subscriber that dies loses nothing."""
    queues = NodeQueues(ROOMY)
    first, second = queues.subscribe([MODULE], 10), queues.subscribe([MODULE], 10)
    assert take(queues, first) == []
    for number in range(5):
        queues.put(parcel("a", str(number)))
    held = take(queues, first, 4)
    assert take(queues, second) == []
    queues.settle(first, [held[1][0]], 0.0)
    assert [one.message.id for one in queues.leave(first)] == ["0", "2", "3"]
    assert queues.woken() == {second}
    taken = take(queues, second)
    assert texts(taken) == ["0", "2", "3", "4"]
    assert [one.redelivered for _, one in taken] == [True, True, True, False]
    assert [delivery_id for delivery_id, _ in taken] == [1, 2, 3, 4]


def test_a_subscriber_gets_no_more_than_its_credit() -> None:
    queues = NodeQueues(ROOMY)
    subscriber = queues.subscribe([MODULE], 2)
    for number in range(5):
        queues.put(parcel("a", str(number)))
    taken = take(queues, subscriber)
    assert texts(taken) == ["0", "1"]
    assert take(queues, subscriber) == []
    assert queues.settle(subscriber, [taken[0][0], taken[0][0], 99], 0.0) == ([taken[0][1]], 2)
    assert texts(take(queues, subscriber)) == ["2"]


def test_a_batch_ends_at_its_size() -> None:
    queues = NodeQueues(ROOMY)
    subscriber = queues.subscribe([MODULE], 10)
    for number in range(3):
        queues.put(parcel("a", str(number), size=100))
    assert texts(queues.take(subscriber, 10, 250, 0.0)) == ["0", "1"]


def test_modules_are_apart() -> None:
    queues = NodeQueues(ROOMY)
    edge = queues.subscribe([MODULE], 10)
    both = queues.subscribe([MODULE, "router", "router"], 10)
    assert take(queues, edge) == take(queues, both) == []
    assert sorted(queues.served()) == [MODULE, "router"]
    queues.put(parcel("a", "1", module="router"))
    queues.put(parcel("a", "2", module="devicecontroller"))
    assert queues.woken() == {both}
    assert take(queues, edge) == []
    assert texts(take(queues, both)) == ["1"]
    assert not queues.is_served("devicecontroller")
    queues.leave(both)
    assert queues.served() == [MODULE]


def test_overflow_of_a_node_drops_its_oldest_reports_first() -> None:
    queues = NodeQueues(Bounds(3, 1000, 100, 100_000))
    for one in (parcel("a", "q1"), update("a", "u1", "p1"), update("a", "u2", "p2")):
        assert queues.put(one).dropped == ()
    put = queues.put(parcel("a", "q2"))
    assert [(one.message.id, bound) for one, bound in put.dropped] == [("u1", "node_messages")]
    put = queues.put(update("a", "u3", "p3"))
    assert [one.message.id for one, _ in put.dropped] == ["u2"]
    put = queues.put(parcel("a", "q3"))
    assert [one.message.id for one, _ in put.dropped] == ["u3"]
    put = queues.put(parcel("a", "q4"))
    assert [(one.message.id, bound) for one, bound in put.dropped] == [("q4", "node_messages")]
    put = queues.put(update("a", "u4"))
    assert [one.message.id for one, _ in put.dropped] == ["u4"]
    assert queues.put(parcel("b", "other")).dropped == ()


def test_overflow_in_bytes_counts_merged_growth() -> None:
    queues = NodeQueues(Bounds(100, 100, 1000, 10_000))
    queues.put(update("a", "u1", "p1", size=40))
    queues.put(update("a", "u2", "p2", size=40))
    put = queues.put(update("a", "u3", "p2", size=70))
    assert put.merged
    assert [(one.message.id, bound) for one, bound in put.dropped] == [("u1", "node_bytes")]
    assert queues.room.size_bytes == 70
    put = queues.put(update("a", "u4", "p2", size=101))
    assert put.merged
    assert [one.message.id for one, _ in put.dropped] == ["u4"]
    assert (queues.room.size_bytes, queues.room.messages, queues.waiting, queues.lanes) == (0, 0, 0, 0)


def test_what_a_subscriber_holds_takes_up_room_but_is_not_dropped() -> None:
    queues = NodeQueues(Bounds(2, 1000, 100, 1000))
    subscriber = queues.subscribe([MODULE], 10)
    queues.put(update("a", "u1", "p1"))
    queues.put(update("a", "u2", "p2"))
    taken = take(queues, subscriber)
    assert [one.message.id for one, _ in queues.put(update("a", "u3", "p3")).dropped] == ["u3"]
    queues.settle(subscriber, [taken[0][0]], 0.0)
    assert queues.put(update("a", "u4", "p4")).dropped == ()


def lost(queues: NodeQueues, node: str, text: str, *, epoch: int = 1, module: str = MODULE) -> list[str]:
    """What an event of a node throws out."""
    put = queues.put(parcel(node, text, kind=Kind.EVENT, epoch=epoch, module=module), by_epoch=True)
    return [f"{one.message.id} {bound}" for one, bound in put.dropped]


def test_of_events_that_nobody_asks_for_a_node_keeps_the_last() -> None:
    """C3: a hub whose modules have no subscriber does not grow with every link that comes and goes."""
    queues = NodeQueues(Bounds(1, 10, 1, 10, events_per_lane=2, events_total=100))
    assert lost(queues, "a", "1") == lost(queues, "a", "2") == lost(queues, "b", "3") == []
    assert lost(queues, "a", "other module", module="devicecontroller") == []
    assert lost(queues, "a", "4", epoch=2) == ["1 node_events"]
    assert lost(queues, "a", "adopted late", epoch=1) == ["2 node_events"]
    subscriber = queues.subscribe([MODULE], 100)
    assert sorted(texts(take(queues, subscriber))) == ["3", "4", "adopted late"]
    assert lost(queues, "a", "5", epoch=3) == lost(queues, "a", "6", epoch=3) == []


def test_events_are_bounded_in_all() -> None:
    queues = NodeQueues(Bounds(1, 10, 1, 10, events_per_lane=2, events_total=3))
    assert [lost(queues, node, node) for node in ("a", "b", "c")] == [[], [], []]
    assert lost(queues, "d", "d") == ["a total_events"]
    assert queues.lanes == 3


def test_an_event_that_a_subscriber_has_seen_is_not_dropped() -> None:
    queues = NodeQueues(Bounds(1, 10, 1, 10, events_per_lane=1, events_total=1))
    subscriber = queues.subscribe([MODULE], 1)
    assert lost(queues, "a", "1") == []
    take(queues, subscriber)
    assert lost(queues, "a", "2") == []
    queues.leave(subscriber)
    assert lost(queues, "a", "3") == ["2 node_events"]
    assert texts(take(queues, queues.subscribe([MODULE], 10))) == ["1", "3"]


def test_events_and_uploads_are_not_dropped_for_messages() -> None:
    queues = NodeQueues(Bounds(1, 10, 1, 10, events_per_lane=25))
    for number in range(50):
        kind = Kind.EVENT if number % 2 else Kind.UPLOAD
        assert queues.put(parcel("a", str(number), kind=kind)).dropped == ()
    assert queues.put(parcel("a", "message")).dropped == ()
    subscriber = queues.subscribe([MODULE], 100)
    assert len(take(queues, subscriber)) == 51


def test_an_adopted_event_goes_before_what_later_sessions_said() -> None:
    """C8: `disconnected` of a session comes before `connected` of the next where both still wait."""
    queues = NodeQueues(ROOMY)
    queues.put(parcel("a", "report of 5", epoch=5))
    queues.put(parcel("a", "connected 6", epoch=6, kind=Kind.EVENT))
    queues.put(parcel("a", "report of 6", epoch=6))
    queues.put(parcel("a", "disconnected 5", epoch=5, kind=Kind.EVENT), by_epoch=True)
    queues.put(parcel("a", "disconnected 6", epoch=6, kind=Kind.EVENT), by_epoch=True)
    subscriber = queues.subscribe([MODULE], 100)
    assert texts(take(queues, subscriber)) == [
        "report of 5",
        "disconnected 5",
        "connected 6",
        "report of 6",
        "disconnected 6",
    ]


def test_nothing_stays_in_memory_when_all_is_settled() -> None:
    """C2, C3: no queue outlives its messages."""
    queues = NodeQueues(ROOMY)
    subscriber = queues.subscribe([MODULE], 10_000)
    for number in range(1000):
        queues.put(parcel(f"node-{number}", "1"))
        queues.put(update(f"node-{number}", "2"))
    taken = take(queues, subscriber, 5000)
    queues.settle(subscriber, [delivery_id for delivery_id, _ in taken], 0.0)
    queues.leave(subscriber)
    assert (queues.lanes, queues.waiting, queues.subscribers) == (0, 0, 0)
    assert (queues.room.nodes, queues.room.messages, queues.room.size_bytes) == (0, 0, 0)
    assert queues.served() == []


def relayed(node: str, relay: int, number: int, epoch: int = 1, module: str = "edgecontroller") -> Parcel:
    message = Message(id=f"relayed-{number}")
    return Parcel(module, node, epoch, message, 1, Kind.RELAYED, place=number, relay=relay)


def test_what_was_relayed_goes_to_subscribers_here_alone() -> None:
    """C39: never back, never on to a third dispatcher."""
    queues = NodeQueues(ROOMY)
    other = queues.subscribe(["edgecontroller"], 10, is_relay=True)
    here = queues.subscribe(["edgecontroller"], 10)
    relay = queues.open_relay()
    queues.put(relayed("a", relay, 1), by_epoch=True)
    assert queues.take(other, 10, 1000, 0.0) == []
    assert [one.place for _, one in queues.take(here, 10, 1000, 0.0)] == [1]


def test_what_was_relayed_of_an_earlier_session_goes_first() -> None:
    """C39: a node came from another dispatcher; what that still had is before what waits here."""
    queues = NodeQueues(ROOMY)
    here = queues.subscribe(["edgecontroller"], 10)
    relay = queues.open_relay()
    queues.put(Parcel("edgecontroller", "a", 2, Message(id="new"), 1))
    queues.put(relayed("a", relay, 1, epoch=1), by_epoch=True)
    assert [one.message.id for _, one in queues.take(here, 10, 1000, 0.0)] == ["relayed-1", "new"]


def test_a_lane_that_a_relay_holds_waits_for_it_when_relayed_parcels_come() -> None:
    queues = NodeQueues(ROOMY)
    other = queues.subscribe(["edgecontroller"], 10, is_relay=True)
    queues.put(Parcel("edgecontroller", "a", 2, Message(id="held"), 1))
    ((delivery_id, _),) = queues.take(other, 10, 1000, 0.0)
    here = queues.subscribe(["edgecontroller"], 10)
    relay = queues.open_relay()
    queues.put(relayed("a", relay, 1), by_epoch=True)
    assert queues.take(here, 10, 1000, 0.0) == queues.take(other, 10, 1000, 0.0) == []
    queues.settle(other, [delivery_id], 0.0)
    assert queues.take(other, 10, 1000, 0.0) == []
    assert [one.place for _, one in queues.take(here, 10, 1000, 0.0)] == [1]


def test_a_relay_that_ends_takes_its_waiting_parcels_with_it() -> None:
    queues = NodeQueues(ROOMY)
    here = queues.subscribe(["edgecontroller"], 1)
    relay = queues.open_relay()
    for number in (1, 2):
        queues.put(relayed("a", relay, number), by_epoch=True)
    queues.take(here, 10, 1000, 0.0)
    queues.close_relay(relay)
    assert (queues.waiting, queues.lanes) == (0, 1)
    # Nor does the held one wait here again.
    queues.leave(here)
    assert (queues.waiting, queues.lanes) == (0, 0)


def test_without_a_subscriber_here_relayed_parcels_are_given_up() -> None:
    queues = NodeQueues(ROOMY)
    here = queues.subscribe(["edgecontroller"], 1)
    relay = queues.open_relay()
    for number in (1, 2):
        queues.put(relayed("a", relay, number), by_epoch=True)
    queues.take(here, 10, 1000, 0.0)
    queues.leave(here)
    assert sorted(one.place for one in queues.withdraw_unserved()) == [1, 2]
    assert (queues.waiting, queues.lanes) == (0, 0)


def test_returned_parcels_go_to_another_in_order_when_the_rest_is_settled() -> None:
    """C32, C39."""
    queues = NodeQueues(ROOMY)
    other = queues.subscribe(["edgecontroller"], 10, is_relay=True)
    for number in range(4):
        queues.put(Parcel("edgecontroller", "a", 1, Message(id=str(number)), 1))
    first, second, third = (delivery_id for delivery_id, _ in queues.take(other, 3, 1000, 0.0))
    here = queues.subscribe(["edgecontroller"], 10)
    assert queues.give_back(other, [third, 99]) == 1
    queues.give_back(other, [second])
    assert queues.take(here, 10, 1000, 0.0) == queues.take(other, 10, 1000, 0.0) == []
    queues.settle(other, [first], 0.0)
    got = [one for _, one in queues.take(here, 10, 1000, 0.0)]
    assert [one.message.id for one in got] == ["1", "2", "3"]
    assert [one.redelivered for one in got] == [True, True, False]


def test_a_module_that_is_given_up_is_handed_to_another() -> None:
    """C39: what is held of it stays held."""
    queues = NodeQueues(ROOMY)
    other = queues.subscribe(["edgecontroller", "router"], 10, is_relay=True)
    for number in range(3):
        queues.put(Parcel("edgecontroller", "a", 1, Message(id=str(number)), 1))
    ((held, _),) = queues.take(other, 1, 1000, 0.0)
    queues.resubscribe(other, ["router"], 10)
    assert not queues.is_served("edgecontroller")
    assert queues.take(other, 10, 1000, 0.0) == []
    here = queues.subscribe(["edgecontroller"], 10)
    assert queues.take(here, 10, 1000, 0.0) == []
    queues.settle(other, [held], 0.0)
    assert [one.message.id for _, one in queues.take(here, 10, 1000, 0.0)] == ["1", "2"]
