"""What the sweep finds."""

from services.dispatcher.peers.laggards import laggards, pages, still_behind


def test_a_session_is_behind_if_the_outbox_knows_a_higher_seq() -> None:
    """C38: whatever became of the hint."""
    known = {"equal": 5, "behind": 4, "ahead": 6, "absent": 3}
    assert laggards(known, {"equal": 5, "behind": 5, "ahead": 5}) == {"behind": 5}


def test_a_session_that_has_not_loaded_is_left_alone() -> None:
    assert laggards({"a": None}, {"a": 5}) == {}
    assert still_behind({"a": None}, {"a": 5}, {"a": 4}) == ([], {})


def test_a_session_is_read_again_if_it_does_not_know_what_the_look_before_saw() -> None:
    known = {"told since": 5, "behind": 4, "behind only now": 5}
    before = {"told since": 5, "behind": 5}
    stored = {"told since": 6, "behind": 6, "behind only now": 6, "gone": 9}
    assert still_behind(known, stored, before) == (["behind"], {"told since": 6, "behind only now": 6})


def test_nodes_are_looked_at_in_pages() -> None:
    assert list(pages(["a", "b", "c", "d", "e"], 2)) == [["a", "b"], ["c", "d"], ["e"]]
    assert list(pages([], 2)) == []
