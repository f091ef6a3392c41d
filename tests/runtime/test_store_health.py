"""When a database counts as taking writes."""

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.store_health import AGAIN_SECONDS, MOST_AGAIN_SECONDS, PROBE_SECONDS, StoreHealth


def test_it_is_not_well_until_a_write_passed_and_is_tried_at_once() -> None:
    health = StoreHealth()
    assert health.wants_probe(0.0)
    assert not health.takes_writes
    health.passed(0.0)
    assert health.takes_writes


def test_a_failed_write_makes_it_unwell_and_one_that_passes_later_well() -> None:
    """C52."""
    health = StoreHealth()
    health.passed(0.0)
    health.failed("the disk is full", 1.0)
    assert (health.takes_writes, health.detail) == (False, "the disk is full")
    health.passed(1.0 + AGAIN_SECONDS)
    assert health.takes_writes


def test_it_stays_unwell_where_small_writes_pass_and_large_ones_fail() -> None:
    """C52: a nearly full disk."""
    health = StoreHealth()
    for tenth in range(100):
        health.passed(tenth / 10)
        health.failed("the disk is full", tenth / 10 + 0.05)
        assert not health.takes_writes


def test_without_writes_one_is_tried_now_and_then_and_more_often_while_it_takes_none() -> None:
    health = StoreHealth()
    health.passed(0.0)
    assert not health.wants_probe(PROBE_SECONDS - 0.1)
    assert health.wants_probe(PROBE_SECONDS)
    health.failed("gone", 10.0)
    assert not health.wants_probe(10.0 + AGAIN_SECONDS / 2)
    assert health.wants_probe(10.0 + AGAIN_SECONDS)
    health.tried(10.0 + AGAIN_SECONDS)
    assert not health.wants_probe(10.5 + AGAIN_SECONDS)
    assert not health.takes_writes


def test_where_what_is_tried_passes_and_what_is_asked_for_fails_it_comes_back_ever_later() -> None:
    """Callers that come at each recovery are not sent in circles."""
    health, now, waits = StoreHealth(), 0.0, []
    health.passed(now)
    for _ in range(8):
        health.failed("no room in the table", now)
        failed_at = now
        while not health.takes_writes:
            now += AGAIN_SECONDS
            health.passed(now)
        waits.append(now - failed_at)
    assert waits == sorted(waits)
    assert waits[0] == AGAIN_SECONDS
    assert waits[-1] == MOST_AGAIN_SECONDS
    now += 1000.0
    health.failed("another time", now)
    health.passed(now + AGAIN_SECONDS)
    assert health.takes_writes


@given(st.lists(st.tuples(st.sampled_from(["passed", "failed", "tried"]), st.floats(0, 100)), max_size=40))
def test_whatever_came_before_writes_that_pass_make_it_well_and_one_that_fails_unwell(
    inputs: list[tuple[str, float]],
) -> None:
    """C52."""
    health, now = StoreHealth(), 0.0
    for kind, seconds in inputs:
        now += seconds
        if kind == "failed":
            health.failed("no", now)
        else:
            getattr(health, kind)(now)
        assert health.takes_writes or health.detail
    after = StoreHealth(**{name: getattr(health, name) for name in StoreHealth.__slots__})
    after.failed("no", now)
    assert not after.takes_writes
    health.passed(now + MOST_AGAIN_SECONDS)
    assert health.takes_writes
