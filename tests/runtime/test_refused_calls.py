"""When a caller whose calls were refused may connect anew: `services.runtime.refused_calls`."""

from services.runtime.refused_calls import CALLS_PER_SECOND, MAX_CALLERS, RefusedCalls

SECOND = int(CALLS_PER_SECOND)


def test_a_caller_that_is_refused_little_connects_as_it_likes() -> None:
    """A burst of a second's worth costs nothing, and neither does as much in each second."""
    refused = RefusedCalls()
    for now in range(100):
        refused.add("shop", SECOND, float(now))
        assert refused.wait_seconds("shop", float(now)) == 0


def test_a_caller_that_goes_on_waits_as_long_as_that_would_have_taken_and_nobody_else_does() -> None:
    """C48: over however many connections it came."""
    refused = RefusedCalls()
    for _ in range(8):
        refused.add("greedy", SECOND, 10.0)
    assert refused.wait_seconds("greedy", 10.0) == 7.0
    assert refused.wait_seconds("shop", 10.0) == 0
    assert refused.wait_seconds("greedy", 16.5) == 0.5
    assert refused.wait_seconds("greedy", 17.0) == 0
    assert refused.wait_seconds("greedy", 18.0) == 0
    assert len(refused) == 0


def test_callers_that_are_remembered_are_bounded() -> None:
    """The one that was refused longest ago is forgotten."""
    refused = RefusedCalls()
    for number in range(MAX_CALLERS + 1):
        refused.add(f"c{number}", 10 * SECOND, 0.0)
    assert len(refused) == MAX_CALLERS
    assert refused.wait_seconds("c0", 0.0) == 0
    assert refused.wait_seconds("c1", 0.0) == 9.0
