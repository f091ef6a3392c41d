"""Hints that wait."""

from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.peer_pb2 import HintRequest, NodeHint
from services.dispatcher.outbox.records import ObjectRow
from services.dispatcher.peers.hints import Hint, HintQueue
from services.dispatcher.peers.peer import handed

MUCH = 1 << 30


def row(seq: int, size_bytes: int = 100) -> ObjectRow:
    return ObjectRow("a", f"k{seq}", seq=seq, size_bytes=size_bytes)


def taken(hints: HintQueue, most: int = 10, most_bytes: int = MUCH) -> list[tuple[str, int]]:
    return [(node_id, hint.last_seq) for node_id, hint in hints.take(most, most_bytes)]


def test_hints_of_a_node_are_one_with_the_highest_seq() -> None:
    hints = HintQueue(10)
    for node_id, seq in (("a", 3), ("b", 1), ("a", 5), ("a", 4)):
        assert hints.add(node_id, Hint(seq))
    assert taken(hints) == [("a", 5), ("b", 1)]
    assert len(hints) == 0


def test_a_hint_to_read_in_any_case_stays_one() -> None:
    hints = HintQueue(10)
    for seq in (3, 0, 7):
        hints.add("a", Hint(seq))
    assert taken(hints) == [("a", 0)]


def test_at_the_bound_further_nodes_are_turned_down() -> None:
    hints = HintQueue(2)
    assert [hints.add(node_id, Hint(1)) for node_id in ("a", "b", "c")] == [True, True, False]
    assert hints.add("a", Hint(2))
    assert taken(hints, most=1) == [("a", 2)]
    assert hints.add("c", Hint(1))
    assert taken(hints) == [("b", 1), ("c", 1)]


def test_rows_travel_with_their_hint_in_order() -> None:
    hints = HintQueue(10)
    hints.add("a", Hint(1, [row(1)]))
    hints.add("a", Hint(3, [row(2), row(3)]))
    ((_, hint),) = hints.take(10, MUCH)
    assert [one.seq for one in hint.rows] == [1, 2, 3]


def test_rows_for_which_there_is_no_room_are_left_out_and_their_hint_stays() -> None:
    """The owner finds a gap and reads them."""
    hints = HintQueue(10, most_bytes=500)
    for seq in (1, 2, 3):
        assert hints.add("a", Hint(seq, [row(seq)]))
    ((_, hint),) = hints.take(10, MUCH)
    assert (hint.last_seq, [one.seq for one in hint.rows]) == (3, [1, 2])
    hints.add("a", Hint(4, [row(4)]))
    assert [one.seq for one in hints.take(10, MUCH)[0][1].rows] == [4], "what was taken made room"


def test_a_call_ends_once_its_rows_are_many_bytes() -> None:
    hints = HintQueue(10)
    for node_id in ("a", "b", "c"):
        hints.add(node_id, Hint(1, [row(1)]))
    assert taken(hints, most_bytes=1200) == [("a", 1), ("b", 1)]
    assert taken(hints) == [("c", 1)]


def test_of_a_hint_that_is_more_than_a_call_carries_the_rest_is_left_out() -> None:
    """C41: the owner finds the gap and reads it; the room that the rows took is free again."""
    hints = HintQueue(10, most_bytes=10_000)
    hints.add("a", Hint(3, [row(1, 400), row(2, 400), row(3, 400)]))
    hints.add("b", Hint(1, [row(1)]))
    ((node_id, hint),) = hints.take(10, 1500)
    assert (node_id, hint.last_seq, [one.seq for one in hint.rows]) == ("a", 3, [1, 2])
    assert taken(hints) == [("b", 1)]
    hints.add("a", Hint(4, [row(4, 9_000)]))
    assert [one.seq for one in hints.take(10, MUCH)[0][1].rows] == [4]


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.integers(0, 3000), st.integers(0, 1000)), min_size=1, max_size=40
    )
)
def test_no_call_is_larger_than_it_may_be(told: list[tuple[str, int, int]]) -> None:
    """C41: whatever the sizes of bodies and keys are, and whatever rows say of themselves."""
    hints = HintQueue(10, most_bytes=60_000)
    for seq, (node_id, body_bytes, key_chars) in enumerate(told, 1):
        one = ObjectRow(
            node_id * 253,
            "漢" * key_chars,
            seq=2**62,
            version=10**20 - 1,
            body=Message(id="m", content=b"x" * body_bytes).SerializeToString(),
            size_bytes=1,
            accepted_at_ms=2**62,
            expires_at_ms=2**62,
        )
        hints.add(node_id * 253, Hint(2**62 + seq, [one]))
    while found := hints.take(2, 8000):
        request = HintRequest(
            hints=[
                NodeHint(node_id=node_id, last_seq=hint.last_seq, messages=map(handed, hint.rows))
                for node_id, hint in found
            ]
        )
        assert request.ByteSize() <= 8000
