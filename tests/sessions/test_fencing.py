"""Epochs: `services.sessions.fencing`."""

from hypothesis import given
from hypothesis import strategies as st

from services.sessions.fencing import Epoch, grants, next_epoch

_epochs = st.integers(0, 2**62).map(Epoch)


@given(_epochs, st.integers(0, 2**62))
def test_a_next_epoch_is_above_the_last_and_not_below_the_time(last: Epoch, now_ms: int) -> None:
    """Also after a clock step back; and after the node was deleted, where the last is forgotten."""
    epoch = next_epoch(last, now_ms)
    assert epoch > last
    assert epoch >= now_ms
    assert epoch in (last + 1, now_ms)


@given(_epochs, _epochs)
def test_only_the_equal_epoch_grants(present: Epoch, shown: Epoch) -> None:
    """A higher one is newer but grants nothing."""
    assert grants(present, shown) is (present == shown)
    assert not grants(present, present + 1)
