"""What a step of the clock does to what is kept for a while: `services.runtime.seen_time`."""

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.seen_time import SeenTime

START_MS = 1_700_000_000_000
DAY = 86_400.0


def clock(hold_seconds: float = 7 * DAY, seen_ms: int = 0) -> SeenTime:
    return SeenTime(slack_seconds=60, hold_seconds=hold_seconds, seen_ms=seen_ms)


def test_without_a_step_the_wall_clock_counts() -> None:
    seen = clock()
    assert seen.look(START_MS, 100.0) == 0
    assert seen.look(START_MS + 3_600_000, 3700.0) == 0
    assert seen.before_ms(60) == START_MS + 3_540_000
    assert seen.now_ms(START_MS) == seen.seen_ms == START_MS + 3_600_000


def test_a_step_forward_makes_nothing_older() -> None:
    """What was kept for an hour is not kept for a month because the clock says so, nor after a day."""
    seen = clock()
    seen.look(START_MS, 0.0)
    stepped_ms = START_MS + int(30 * DAY * 1000)
    assert seen.look(stepped_ms + 1000, 1.0) == 30 * DAY
    assert seen.before_ms(7 * DAY) == START_MS + 1000 - int(7 * DAY * 1000)
    assert seen.look(stepped_ms + int(DAY * 1000), DAY) == 0
    assert seen.before_ms(7 * DAY) == START_MS - int(6 * DAY * 1000)


def test_after_a_step_everything_goes_when_it_was_kept_for_its_time() -> None:
    """By then nothing from before the step is younger, and what came after is judged by the wall clock."""
    seen = clock()
    seen.look(START_MS, 0.0)
    seen.look(START_MS + int(30 * DAY * 1000), 0.0)
    seen.look(START_MS + int(37 * DAY * 1000), 7 * DAY)
    assert seen.before_ms(7 * DAY) == START_MS + int(30 * DAY * 1000)
    assert seen.stepped_at_ms == 0


def test_a_step_that_is_taken_back_leaves_the_wall_clock() -> None:
    seen = clock()
    seen.look(START_MS, 0.0)
    seen.look(START_MS + int(30 * DAY * 1000), 0.0)
    assert seen.look(START_MS + 60_000, 60.0) == 0
    assert seen.before_ms(10) == START_MS + 50_000
    assert seen.now_ms(START_MS) == START_MS + 60_000


def test_a_step_back_is_followed_at_once() -> None:
    """Else what is stamped from now on would be old when it comes."""
    seen = clock()
    seen.look(START_MS, 0.0)
    assert seen.look(START_MS - int(DAY * 1000), 1.0) == 0
    assert seen.before_ms(0) == START_MS - int(DAY * 1000)


def test_a_lifetime_is_time_that_passes() -> None:
    """C19: what was accepted before a step goes on by elapsed time, what came after it by the wall clock."""
    seen = SeenTime(slack_seconds=5)
    seen.look(START_MS, 0.0)
    stepped_ms = START_MS + 3_600_000
    assert seen.look(stepped_ms, 10.0) == 3590
    assert seen.now_ms(START_MS + 5000) == START_MS + 10_000
    assert seen.now_ms(stepped_ms) == stepped_ms


def test_time_in_which_no_process_ran_was_not_seen() -> None:
    """A restart is; a clock that stepped while nobody looked, or a week away, is not believed at once."""
    restarted = clock(seen_ms=START_MS)
    assert restarted.look(START_MS + 300_000, 5.0) == 0
    assert restarted.before_ms(0) == START_MS + 300_000
    away = clock(seen_ms=START_MS)
    assert away.look(START_MS + int(30 * DAY * 1000), 5.0) == 30 * DAY
    assert away.before_ms(DAY) == START_MS - int(DAY * 1000)
    assert away.seen_ms == START_MS
    assert clock().look(START_MS, 5.0) == 0  # the first start of all


@given(
    steps=st.lists(
        st.tuples(st.integers(1, 86_400), st.sampled_from([0, 0, 5_000, 10**6, 10**8, -(10**6)])),
        min_size=1,
        max_size=40,
    ),
    kept=st.integers(600, 200_000),
)
def test_nothing_goes_before_it_was_kept_for_its_time_and_nothing_stays_for_ever(
    steps: list[tuple[int, int]], kept: int
) -> None:
    """Rows stamped all the time, while the clock steps forward and back: each lives at least as long as it
    should in elapsed time, but for small steps that are believed and steps back that others took."""
    seen = SeenTime(slack_seconds=60, hold_seconds=kept)
    wall, elapsed = START_MS, 0.0
    born: list[tuple[int, float, float]] = []  # stamp, elapsed time at birth, small steps until now
    believed = 0.0
    for seconds, step in steps:
        elapsed += seconds
        wall += seconds * 1000 + step
        if abs(step) <= 60_000:
            believed += step / 1000
        seen.look(wall, elapsed)
        before = seen.before_ms(kept)
        gone = [one for one in born if one[0] < before]
        for _, at, then in gone:
            if all(step >= 0 for _, step in steps):
                assert elapsed - at + (believed - then) >= kept - 1
        born = [one for one in born if one[0] >= before]
        born.append((wall, elapsed, believed))
    # A calm while later all of these are gone: by the wall clock, wherever it stands.
    latest = max(stamp for stamp, _, _ in born)
    seen.look(wall + kept * 1000, elapsed + kept)
    wall, elapsed = max(wall, latest) + 2 * kept * 1000 + 1000, elapsed + 3 * kept
    seen.look(wall, elapsed)
    seen.look(wall + kept * 1000, elapsed + kept)
    assert seen.before_ms(kept) > latest
