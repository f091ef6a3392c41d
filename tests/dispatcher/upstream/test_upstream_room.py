"""Messages and events that nobody takes have filled the room: who loses what, and who notices nothing."""

from pathlib import Path

from cloudhub.v1.dispatcher_pb2 import UpstreamDelivery
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.merging import merge_key
from services.dispatcher.upstream.node_queues import NodeQueues
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.room import Bounds
from services.dispatcher.upstream.settings import UpstreamSettings
from tests.support.upstream import event, open_hub, report

MODULE = "edgecontroller"
Losses = list[tuple[str, str, str]]


def put(
    queues: NodeQueues,
    node: str,
    name: str,
    *,
    size: int = 1,
    is_report: bool = False,
    kind: Kind = Kind.MESSAGE,
    module: str = MODULE,
) -> Losses:
    """What the message throws out: (node, name, bound) of each."""
    message = Message(
        id=name, resource=f"default/podstatus/{name}", operation="update" if is_report else "query"
    )
    key = merge_key(message) if is_report else ""
    parcel = Parcel(module, node, 1, message, size, kind, message.resource, key)
    return [(one.node_id, one.message.id, bound) for one, bound in queues.put(parcel).dropped]


def fill(queues: NodeQueues, node: str, count: int, *, size: int = 1, is_report: bool = False) -> int:
    """How many of so many messages of a node are kept."""
    kept = 0
    for number in range(count):
        losses = put(queues, node, f"{node}-{number}", size=size, is_report=is_report)
        assert {one for one, _, _ in losses} <= {node}, "a greedy node loses its own"
        kept += not losses
    return kept


def test_greedy_nodes_get_as_much_as_they_leave_and_others_always_find_room() -> None:
    """C46: sixteen nodes at their bound would fill it; they do not get so far."""
    queues = NodeQueues(Bounds(4096, 16 * 1024, 200_000, 256 * 1024))
    kept = [fill(queues, f"greedy-{number}", 40, size=1024) for number in range(30)]
    assert kept[:8] == [16] * 8, "the bound of a node is what it was while there is room"
    assert sum(kept) <= 192 + 30, "a quarter is for nodes with next to nothing"
    assert min(kept) >= 1
    for number in range(30):
        assert put(queues, f"calm-{number}", "m", size=1024) == []
    assert put(queues, "greedy-0", "once more", size=1024) == [("greedy-0", "once more", "node_bytes")]


def test_a_greedy_node_loses_its_oldest_report_to_a_newer_one() -> None:
    """C46: of a resource that others came behind the last state is worth most."""
    queues = NodeQueues(Bounds(8, 1000, 16, 10_000))
    assert fill(queues, "a", 6, is_report=True) == 6
    assert put(queues, "a", "next", is_report=True) == [("a", "a-0", "total_messages")]
    assert put(queues, "b", "of another") == []


def test_a_node_with_next_to_nothing_takes_from_the_one_with_the_most() -> None:
    """C46: many nodes have used up what is kept for such ones as well."""
    queues = NodeQueues(Bounds(8, 1000, 16, 10_000))
    assert fill(queues, "fat", 6, is_report=True) == 6
    for number in range(10):
        assert put(queues, f"calm-{number}", "m") == []
    assert queues.room.messages == 16
    assert put(queues, "late", "m") == [("fat", "fat-0", "total_messages")]
    assert put(queues, "later", "m", is_report=True) == [("fat", "fat-1", "total_messages")]
    assert put(queues, "fat", "more") == [("fat", "fat-2", "total_messages")]


def test_of_a_fat_node_without_reports_the_newest_message_goes() -> None:
    """C46: as if it had not come; and never what a subscriber holds."""
    queues = NodeQueues(Bounds(8, 1000, 16, 10_000))
    assert fill(queues, "fat", 6) == 6
    subscriber = queues.subscribe([MODULE], 4)
    assert len(queues.take(subscriber, 4, 1000, 0.0)) == 4
    for number in range(10):
        assert put(queues, f"calm-{number}", "m") == []
    assert [put(queues, f"late-{number}", "m") for number in range(3)] == [
        [("fat", "fat-5", "total_messages")],
        [("fat", "fat-4", "total_messages")],
        [("late-2", "m", "total_messages")],
    ]
    assert len(queues.settle(subscriber, range(1, 5), 0.0)[0]) == 4
    assert queues.room.messages == 12


def test_nobody_takes_from_a_node_with_next_to_nothing() -> None:
    """C46: where all have one message the newcomer is dropped, and told if it asked."""
    queues = NodeQueues(Bounds(8, 1000, 16, 10_000))
    for number in range(16):
        assert put(queues, f"calm-{number}", "m", is_report=True) == []
    assert put(queues, "late", "m") == [("late", "m", "total_messages")]
    assert put(queues, "calm-0", "more") == [("calm-0", "m", "total_messages")]


def test_the_fattest_is_found_in_bytes_as_well() -> None:
    """C46: one with few large messages loses, not one with many small ones."""
    queues = NodeQueues(Bounds(100, 600, 1000, 1600))
    assert fill(queues, "many", 20, size=5) == 20
    assert fill(queues, "large", 3, size=200) == 3
    for number in range(3):
        assert put(queues, f"calm-{number}", "m", size=300) == []
    assert put(queues, "late", "m", size=100) == [("large", "large-2", "total_bytes")]


def test_a_module_that_nobody_takes_from_costs_the_others_no_event() -> None:
    """C8, C46: where all events are too many, those go that a made-up module has piled up."""
    queues = NodeQueues(Bounds(8, 1000, 16, 1000, events_per_lane=4, events_total=10))
    for number in range(8):
        assert put(queues, f"n{number}", "1", kind=Kind.EVENT, module="made-up") == []
    for number in range(2):
        assert put(queues, f"n{number}", "1", kind=Kind.EVENT) == []
    for number in range(2, 5):
        losses = put(queues, f"n{number}", "1", kind=Kind.EVENT)
        assert losses == [(f"n{number - 2}", "1", "total_events")]
    subscriber = queues.subscribe([MODULE], 100)
    assert len(queues.take(subscriber, 100, 1000, 0.0)) == 5


def test_flapping_nodes_cost_a_quiet_one_no_event() -> None:
    """C8, C46: its only one is there, whoever came and went how often since."""
    queues = NodeQueues(Bounds(8, 1000, 16, 1000, events_per_lane=4, events_total=10))
    assert put(queues, "quiet", "connected", kind=Kind.EVENT) == []
    lost = []
    for number in range(50):
        lost += put(queues, f"flapping-{number % 4}", str(number), kind=Kind.EVENT)
    assert len(lost) == 50 - 9
    assert "quiet" not in {node for node, _, _ in lost}
    for number in range(5):
        assert put(queues, f"late-{number}", "connected", kind=Kind.EVENT)[0][0].startswith("flapping")
    subscriber = queues.subscribe([MODULE], 100)
    got = [parcel.node_id for _, parcel in queues.take(subscriber, 100, 1000, 0.0)]
    assert {"quiet", *(f"late-{number}" for number in range(5))} <= set(got)


async def test_a_quiet_node_is_heard_beside_many_that_fill_the_room(tmp_path: Path) -> None:
    """C46: its report and its request wait for the subscriber that comes late; who lost is told."""
    settings = UpstreamSettings(most_waiting_per_node=100, most_waiting_total=400)
    async with open_hub(tmp_path, settings=settings) as hub, hub.subscriber("devicecontroller"):
        for number in range(300):
            for node in range(4):
                hub.receive(f"greedy-{node}", 5, report(f"p{number}", operation="insert"))
        assert hub.metric("dropped_total", reason="total_messages") > 0
        for number in range(3):
            hub.receive(f"quiet-{number}", 5, report("p1"))
            hub.upstream.session_opened(event(f"quiet-{number}", 5, "connected"))
        async with hub.subscriber("edgecontroller") as cloud:
            got: list[UpstreamDelivery] = []
            while len(got) < 6:
                got += [one for one in await cloud.take(1) if one.node_id.startswith("quiet")]
        assert sorted(one.message.operation for one in got) == ["connected"] * 3 + ["update"] * 3
