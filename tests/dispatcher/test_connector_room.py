"""What may be on its way to a connector: `services.dispatcher.connector_room`, what delivery makes of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.actions import SendDirect
from services.dispatcher.connector_room import ConnectorRoom, RoomLimits
from services.dispatcher.policy import NodeDelivery, PolicySettings
from tests.dispatcher.test_policy import Node, entry
from tests.support.dispatcher import DeliveryHalf, running_delivery_half
from tests.support.hub import request
from tests.support.processes import eventually

LIMITS = RoomLimits(max_queued_bytes=1000, max_unwritten_bytes=5000, free_bytes=100, max_held_bytes=2000)
LARGE = 890 * 1024


def test_small_messages_of_a_node_with_next_to_nothing_always_have_room() -> None:
    """Invariant 7: whatever others have on their way."""
    room: ConnectorRoom[str] = ConnectorRoom(LIMITS)
    room.unwritten_bytes, room.queued_bytes = 10**9, 10**9
    room.wait("other")
    assert room.admits(0, 100)
    assert room.admits(60, 40)
    assert not room.admits(61, 40)


def test_waiting_nodes_have_room_in_turn() -> None:
    room: ConnectorRoom[str] = ConnectorRoom(LIMITS)
    room.queued_bytes = 1000
    assert not room.admits(0, 101)
    assert [room.wait(name) for name in ("a", "b", "a")] == [True, True, False]
    assert room.next() is None
    room.queued_bytes = 999
    assert not room.admits(0, 101), "nobody overtakes those who wait"
    assert room.admits(0, 101, in_turn=True)
    room.begin_turns()
    assert room.next() == "a"
    assert room.admits(0, 101)
    room.end_turns()
    room.leave("b")
    assert room.next() is None
    assert not room.waiting


def test_a_message_that_waits_for_many_nodes_is_held_once() -> None:
    room: ConnectorRoom[str] = ConnectorRoom(LIMITS)
    one, other = Message(id="1"), Message(id="2")
    assert all(room.hold(one, 1500) for _ in range(100))
    assert not room.hold(other, 501)
    assert room.hold(other, 500)
    for _ in range(100):
        room.unhold(one, 1500)
    assert room.hold(Message(id="3"), 1500)


class RoomyNode(Node):
    """A node whose connector has that room."""

    def __init__(self, room: ConnectorRoom[str]) -> None:
        super().__init__()
        self.policy = NodeDelivery("edge-1", 7, PolicySettings(), lambda: 0.0, room)
        self.load(last_seq=0)


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("accept"), st.sampled_from([50, 400, 2000])),
            st.tuples(st.just("direct"), st.sampled_from([50, 400, 2000])),
            st.tuples(st.sampled_from(["write", "wait", "ack", "proceed", "bodies"]), st.integers(1, 30)),
        ),
        max_size=60,
    )
)
def test_what_is_on_its_way_is_counted_to_the_byte(steps: list[tuple[str, int]]) -> None:
    """Nothing is forgotten and nothing is counted twice, whatever is sent, again too, written or given up; a
    node alone never gets more on its way than the bound and a message; when it leaves, nothing is left."""
    room: ConnectorRoom[str] = ConnectorRoom(LIMITS)
    node, seq, fetched = RoomyNode(room), 0, 0
    for what, number in steps:
        if what == "accept":
            seq += 1
            node.accept(entry(seq, size_bytes=number, body=number < 400))
        elif what == "direct":
            node.do(node.policy.direct(Message(id=f"d{number}"), number, node.now) or [])
        elif what == "write":
            sent = sum(isinstance(action, SendDirect) for action in node.actions)
            node.write(direct=min(number, sent))
        elif what == "wait":
            node.wait(float(number))
        elif what == "ack":
            node.ack(f"m{number}")
        elif what == "proceed":
            node.sent(node.policy.proceed(node.now, node.wall_ms))
        else:
            wanted = [place for action in node.fetches()[fetched:] for place in action]
            fetched = len(node.fetches())
            node.bodies(*((key, at, b"body") for key, at in wanted))
        assert room.unwritten_bytes == node.policy.unwritten_bytes
        assert room.unwritten_bytes + room.fetching_bytes < LIMITS.max_unwritten_bytes + 2000
    node.policy.left()
    assert (room.unwritten_bytes, room.fetching_bytes) == (0, 0)
    assert room.hold(object(), LIMITS.max_held_bytes), "no NO-ACK message is held"


def test_what_is_sent_again_waits_for_room_too() -> None:
    """Of 2 000 nodes that acknowledge nothing, no wave of second copies every interval; none is counted as an
    attempt that was not made, and small ones are sent again in time."""
    room: ConnectorRoom[str] = ConnectorRoom(LIMITS)
    node = RoomyNode(room)
    assert node.accept(entry(1, size_bytes=400)) == ["m1"]
    node.write()
    room.queued_bytes = 1000
    assert node.wait(60.0) == []
    assert node.policy.unanswered()[0].attempts == 0
    room.queued_bytes = 0
    assert node.wait(2.0) == ["m1"]
    assert node.policy.unanswered()[0].attempts == 1
    other = RoomyNode(room)
    assert other.accept(entry(1, size_bytes=50)) == ["m1"]
    other.write()
    room.queued_bytes = 1000
    assert other.wait(7.0) == ["m1"]


def test_a_large_message_in_the_socket_is_in_memory_no_more() -> None:
    """It is read again when it has to be sent again, and counts as the attempt that it is."""
    node = Node()
    node.load(entry(1, size_bytes=LARGE, body=False))
    (fetch,) = node.fetches()
    assert node.bodies((*fetch[0], b"x" * LARGE)) == ["m1"]
    (sent,) = node.policy.unanswered()
    in_memory = [bool(sent.body)]
    node.write()
    assert [*in_memory, bool(sent.body)] == [True, False]
    assert node.wait(6.0) == []
    assert len(node.fetches()) == 2
    assert node.bodies((*fetch[0], b"x" * LARGE)) == ["m1"]
    assert (sent.attempts, sent.sends) == (1, 2)
    node.write()
    node.ack("m1")
    assert node.policy.queued == 0


async def _connected(half: DeliveryHalf, number: int) -> list[str]:
    names = [f"edge-{index}" for index in range(number)]
    for index, name in enumerate(names):
        await half.connect(name, index + 1)
    return names


def _large(names: list[str], ack_mode: pb.AckMode.ValueType = pb.ACK_MODE_UNSPECIFIED) -> pb.PublishRequest:
    return request(*names, name="large", content={"data": "x" * LARGE}, ack_mode=ack_mode)


@pytest.mark.parametrize("ack_mode", [pb.ACK_MODE_UNSPECIFIED, pb.ACK_MODE_NO_ACK])
async def test_copies_of_a_large_message_wait_and_a_small_one_is_behind_few(
    ack_mode: pb.AckMode.ValueType,
) -> None:
    """C41, invariant 7: of 100 copies of 900 KiB no more than 8 MiB and one message wait for the stream, and
    so much is before a small message for another node; all arrive, each node's turn comes."""
    async with running_delivery_half() as half:
        names = await _connected(half, 100)
        await half.connect("bystander", 1000)
        half.stream.taken()
        (response,) = await half.publish(_large(names, ack_mode))
        assert {outcome.outcome for outcome in response.outcomes} == {pb.OUTCOME_ACCEPTED}
        await half.settled()
        await _until_quiet(half)
        limits = RoomLimits()
        queued, bound = half.stream.room.queued_bytes, limits.max_queued_bytes
        assert bound <= queued < bound + LARGE + 1024
        await half.publish(request("bystander", name="small"))
        await half.settled()
        before = half.stream.room.queued_bytes
        assert before < limits.max_queued_bytes + LARGE + 4096
        got: list[int] = []
        while frames := [frame for batch in half.stream.taken() for frame in batch.downstream]:
            got += [frame.link for frame in frames]
            assert sum(len(frame.message) for frame in frames) < limits.max_queued_bytes + LARGE + 65536
            half.delivery.room_made(half.stream)
            await _until_quiet(half)
        assert sorted(got) == [*range(1, 101), 1000]
        assert got.index(1000) < 12, "the small one overtook all that had to wait"
        assert half.metrics.value("room_waits_total") >= 80


async def _until_quiet(half: DeliveryHalf) -> None:
    """Bodies that were asked for have come."""
    await eventually(lambda: not half.stream.room.fetching_bytes)
    await half.settled()


async def test_links_that_write_nothing_bound_what_their_connector_has() -> None:
    """Of 500 nodes that read nothing only so many get theirs that 128 MiB are on their way; the end of
    sessions makes room for others."""
    async with running_delivery_half() as half:
        names = await _connected(half, 500)
        half.stream.taken()
        await half.publish(_large(names))
        await half.settled()
        reached = 0
        await _until_quiet(half)
        while sent := sum(len(batch.downstream) for batch in half.stream.taken()):
            reached += sent
            half.delivery.room_made(half.stream)
            await _until_quiet(half)
        limit = RoomLimits().max_unwritten_bytes
        assert limit <= half.stream.room.unwritten_bytes < limit + 2 * LARGE
        assert abs(reached - limit // LARGE) <= 2
        first = half.delivery.sessions[names[0]]
        half.delivery.remove(first)
        assert half.stream.room.unwritten_bytes < limit
        half.delivery.room_made(half.stream)
        await _until_quiet(half)
        assert sum(len(batch.downstream) for batch in half.stream.taken()) == 1
        for name in names[1:]:
            half.delivery.remove(half.delivery.sessions[name])
        room = half.stream.room
        assert (room.unwritten_bytes, room.fetching_bytes, room.queued_bytes, room.waiting) == (0, 0, 0, 0)
