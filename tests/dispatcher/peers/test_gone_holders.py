"""Whose stored uploads may be taken over."""

from services.dispatcher.peers.gone_holders import GoneHolders
from services.dispatcher.upstream.uploads import RELEASED


def test_a_holder_is_gone_after_a_lease_outside_of_every_list() -> None:
    """C31, C35."""
    gone = GoneHolders(10.0)
    assert gone.observe(["d1", "d2"], {"d1"}, 99.0, 100.0) == []
    assert gone.observe(["d1", "d2"], {"d1"}, 109.0, 109.9) == []
    assert gone.observe(["d1", "d2"], {"d1"}, 109.0, 110.0) == ["d2"]


def test_a_holder_that_shows_up_again_is_watched_anew() -> None:
    gone = GoneHolders(10.0)
    gone.observe(["d2"], {"d1"}, 99.0, 100.0)
    gone.observe(["d2"], {"d1", "d2"}, 105.0, 105.0)
    assert gone.observe(["d2"], {"d1"}, 110.0, 111.0) == []
    assert gone.observe(["d2"], {"d1"}, 120.0, 121.0) == ["d2"]


def test_an_old_list_says_nothing() -> None:
    """C36: sessions was away; a dispatcher that came meanwhile is in no list."""
    gone = GoneHolders(10.0)
    gone.observe(["d2"], {"d1"}, 99.0, 100.0)
    assert gone.observe(["d2"], {"d1"}, 99.0, 111.0) == []
    assert gone.observe(["d2"], {"d1"}, 112.0, 112.0) == []
    assert gone.observe(["d2"], {"d1"}, 122.0, 122.0) == ["d2"]


def test_a_list_from_before_the_holder_was_found_is_not_enough() -> None:
    gone = GoneHolders(10.0)
    gone.observe(["d2"], {"d1"}, 100.0, 100.0)
    assert gone.observe(["d2"], {"d1"}, 100.0, 110.0) == []


def test_released_rows_wait_for_nothing() -> None:
    gone = GoneHolders(10.0)
    assert gone.observe([RELEASED, "d2"], set(), -1000.0, 100.0) == [RELEASED]
