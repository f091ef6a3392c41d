"""The estimate of acknowledgement times: `services.dispatcher.ack_times`."""

from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.ack_times import AckTimes


def test_nothing_is_unusual_before_the_first_one() -> None:
    assert AckTimes().unusual_seconds == 0.0


def test_the_first_one_counts_thrice() -> None:
    """RFC 6298, 2.2: its half is taken as the deviation."""
    times = AckTimes()
    times.add(2.0)
    assert times.unusual_seconds == 6.0


def test_what_is_steady_becomes_sure() -> None:
    times = AckTimes()
    for _ in range(100):
        times.add(2.0)
    assert 2.0 <= times.unusual_seconds < 2.1


@given(st.lists(st.floats(min_value=0, max_value=1000), min_size=1))
def test_it_stays_within_reason(samples: list[float]) -> None:
    times = AckTimes()
    for sample in samples:
        times.add(sample)
    assert 0 <= times.unusual_seconds <= 5 * max(samples) + 1e-6
