"""When silence counts: `services.sessions.leases`."""

from hypothesis import given
from hypothesis import strategies as st

from services.sessions.leases import Due, LeaseWatch, Observation, Patience, Verdict

LEASE = 15.0
STEP = 1.5
SEEN = Observation("d1", 4)


def looks(watch: LeaseWatch, lease: Observation, begin: float, seconds: float) -> list[tuple[float, Verdict]]:
    """What a reaper that looks every STEP finds due, and when."""
    found = []
    for index in range(int(seconds / STEP) + 1):
        at = begin + index * STEP
        for item in watch.look([lease], at):
            found.append((at - begin, item.verdict))
            watch.done(item)
    return found


def test_a_silent_dispatcher_is_lost_after_one_lease_and_expired_after_three() -> None:
    assert looks(LeaseWatch(LEASE), SEEN, 100.0, 4 * LEASE) == [
        (LEASE, Verdict.LOSE),
        (3 * LEASE, Verdict.EXPIRE),
    ]


def test_a_verdict_is_repeated_until_it_is_carried_out() -> None:
    watch = LeaseWatch(LEASE)
    for index in range(10):
        assert watch.look([SEEN], index * STEP) == []
    due = [Due(SEEN, Verdict.LOSE)]
    assert watch.look([SEEN], LEASE) == due
    assert watch.look([SEEN], LEASE + STEP) == due
    watch.done(due[0])
    assert watch.look([SEEN], LEASE + 2 * STEP) == []


def test_a_renewal_begins_a_new_lease() -> None:
    watch = LeaseWatch(LEASE)
    assert looks(watch, SEEN, 0.0, LEASE - STEP) == []
    assert looks(watch, Observation("d1", 5), LEASE, LEASE - STEP) == []


def test_a_lease_counts_from_the_reapers_own_start() -> None:
    """C36: after an hour of absence nobody is lost that renews within a lease."""
    assert looks(LeaseWatch(LEASE), SEEN, 3600.0, LEASE - STEP) == []


def test_time_in_which_the_reaper_did_not_look_does_not_count() -> None:
    """C36: a service stopped for an hour, or without its database, could not be renewed at either."""
    watch = LeaseWatch(LEASE)
    assert looks(watch, SEEN, 0.0, LEASE - STEP) == []
    assert looks(watch, SEEN, 3600.0, LEASE - STEP) == []
    assert looks(watch, SEEN, 3600.0 + LEASE, STEP) == [(0.0, Verdict.LOSE)]


@given(st.lists(st.floats(0.1, 100.0), max_size=40))
def test_patience_never_counts_across_a_gap(steps: list[float]) -> None:
    patience: Patience[str] = Patience(most_gap_seconds=5.0)
    now, since = 0.0, 0.0
    patience.look(["a"], now)
    for step in steps:
        now += step
        if now - (now - step) > 5.0:
            since = now
        assert patience.look(["a"], now) == [("a", now - since)]


def test_what_is_not_seen_any_more_is_forgotten() -> None:
    patience: Patience[str] = Patience(5.0)
    patience.look(["a", "b"], 0.0)
    assert patience.look(["b"], 1.0) == [("b", 1.0)]
    assert dict(patience.look(["a", "b"], 2.0)) == {"a": 0.0, "b": 2.0}
