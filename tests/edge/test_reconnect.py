"""When an edge dials again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.reconnect import LinkEnd, Reconnect, retry_after

LOST = LinkEnd("lost", open_seconds=1.0)


def test_delays_grow_to_the_most_and_stay_there() -> None:
    reconnect = Reconnect(0.5, 30.0)
    assert [reconnect.delay(LOST, 1.0) for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_a_link_that_lasted_ends_the_growth() -> None:
    reconnect = Reconnect(0.5, 30.0)
    for _ in range(5):
        reconnect.delay(LOST, 1.0)
    assert reconnect.delay(LinkEnd("lost", open_seconds=10.0), 1.0) == 0.5


def test_a_hub_that_restarts_is_dialled_soon() -> None:
    reconnect = Reconnect(0.5, 30.0)
    for _ in range(5):
        reconnect.delay(LOST, 1.0)
    assert reconnect.delay(LinkEnd("closed", code=1012), 1.0) == 0.5


@pytest.mark.parametrize("code", [429, 503, 1013])
def test_a_hub_with_no_room_is_given_time(code: int) -> None:
    assert Reconnect(0.5, 30.0).delay(LinkEnd("refused", code=code), 1.0) == 4.0


@pytest.mark.parametrize("code", [403, 1008, 4001, 4003, 4004])
def test_who_will_be_refused_again_waits_the_most(code: int) -> None:
    assert Reconnect(0.5, 30.0).delay(LinkEnd("refused", code=code), 1.0) == 30.0


@given(st.floats(0, 0.999), st.floats(0.1, 3600), st.integers(1, 20))
def test_nobody_comes_before_the_time_advised(spread: float, advised: float, attempts: int) -> None:
    """C7: a refused edge follows Retry-After."""
    reconnect = Reconnect(0.5, 30.0)
    for _ in range(attempts):
        delay = reconnect.delay(LinkEnd("refused", code=429, retry_after_seconds=advised), spread)
        assert delay >= advised
        assert delay <= max(30.0, advised * 1.25)


@given(
    st.lists(st.sampled_from([LOST, LinkEnd("failed"), LinkEnd("closed", code=1012)]), max_size=80),
    st.floats(0, 0.999),
)
def test_every_delay_is_within_its_bounds(ends: list[LinkEnd], spread: float) -> None:
    reconnect = Reconnect(0.5, 30.0)
    for end in ends:
        assert 0.25 <= reconnect.delay(end, spread) <= 30.0


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, 0.0),
        ("", 0.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("-7", 0.0),
        ("1.5", 0.0),
        ("99999999999999999999", 86_400.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_nothing(value: str | None, seconds: float) -> None:
    assert retry_after(value) == seconds
