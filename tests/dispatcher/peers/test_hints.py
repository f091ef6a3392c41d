"""Hints that wait."""

from services.dispatcher.peers.hints import HintQueue


def test_hints_of_a_node_are_one_with_the_highest_seq() -> None:
    hints = HintQueue(10)
    for node_id, seq in (("a", 3), ("b", 1), ("a", 5), ("a", 4)):
        assert hints.add(node_id, seq)
    assert hints.take(10) == [("a", 5), ("b", 1)]
    assert len(hints) == 0


def test_a_hint_to_read_in_any_case_stays_one() -> None:
    hints = HintQueue(10)
    for seq in (3, 0, 7):
        hints.add("a", seq)
    assert hints.take(10) == [("a", 0)]


def test_at_the_bound_further_nodes_are_turned_down() -> None:
    hints = HintQueue(2)
    assert [hints.add(node_id, 1) for node_id in ("a", "b", "c")] == [True, True, False]
    assert hints.add("a", 2)
    assert hints.take(1) == [("a", 2)]
    assert hints.add("c", 1)
    assert hints.take(10) == [("b", 1), ("c", 1)]
