"""Hints that wait."""

from services.dispatcher.outbox.records import ObjectRow
from services.dispatcher.peers.hints import Hint, HintQueue

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
    hints = HintQueue(10, most_bytes=250)
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
    assert taken(hints, most_bytes=150) == [("a", 1), ("b", 1)]
    assert taken(hints) == [("c", 1)]
