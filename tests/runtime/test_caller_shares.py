"""What a caller may have under way, as a pure table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.caller_shares import CallerLimits, CallerShares, Party
from services.runtime.errors import Crowded

LIMITS = CallerLimits(
    max_connections=6, max_connections_per_caller=3, max_calls_per_caller=4, max_request_bytes=1000
)


def connected(shares: CallerShares, name: str) -> Party:
    party = shares.connect(name)
    assert isinstance(party, Party), party
    return party


def reason(answer: object) -> str:
    assert isinstance(answer, Crowded)
    return answer.reason


def test_a_caller_has_a_share_of_the_connections_and_leaves_the_rest_to_others() -> None:
    """C48."""
    shares = CallerShares(LIMITS)
    greedy = [connected(shares, "greedy") for _ in range(3)]
    assert reason(shares.connect("greedy")) == "TOO_MANY_CONNECTIONS"
    others = [connected(shares, f"other-{number}") for number in range(3)]
    assert reason(shares.connect("late")) == "TOO_MANY_CONNECTIONS"
    shares.disconnect(greedy[0])
    connected(shares, "late")
    assert (len(shares), shares.connections) == (5, 6)
    for party in (*greedy[1:], *others):
        shares.disconnect(party)
    assert (len(shares), shares.connections) == (1, 1)


def test_calls_count_over_all_connections_of_a_caller_and_of_nobody_else() -> None:
    """C48."""
    shares = CallerShares(LIMITS)
    first, second, other = (connected(shares, name) for name in ("greedy", "greedy", "other"))
    assert first is second
    assert [party.begin_call() for party in (first, second, first, second)] == [None] * 4
    refused = first.begin_call()
    assert reason(refused) == "TOO_MANY_CALLS"
    assert "greedy has 4 calls" in str(refused)
    assert other.begin_call() is None
    second.end_call()
    assert first.begin_call() is None


def test_one_caller_alone_may_hold_a_quarter() -> None:
    """Of the room for requests; what another asks for then is there."""
    shares = CallerShares(LIMITS)
    greedy, other = connected(shares, "greedy"), connected(shares, "other")
    assert greedy.hold(250) is None
    assert reason(greedy.hold(1)) == "TOO_MANY_BYTES"
    assert other.hold(180) is None
    greedy.hold(-250)
    assert other.hold(70) is None
    assert shares.held_bytes == 250


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 400)), max_size=200))
def test_whatever_others_hold_the_bound_is_kept_and_there_is_room_for_one_more(
    wanted: list[tuple[int, int]],
) -> None:
    """Ten callers who take all they get: the eleventh has its share of what is left, which is something."""
    shares = CallerShares(LIMITS)
    parties = [connected(CallerShares(LIMITS), str(number)) for number in range(10)]
    for party in parties:
        party._of = shares
    for number, size in wanted:
        parties[number].hold(size)
    assert shares.held_bytes == sum(party.held_bytes for party in parties) <= LIMITS.max_request_bytes
    late = Party(shares, "late")
    assert late.hold((LIMITS.max_request_bytes - shares.held_bytes) // 4) is None
    assert late.held_bytes >= LIMITS.max_request_bytes // 60


@pytest.mark.parametrize("size", [0, -5])
def test_what_asks_for_nothing_is_always_granted(size: int) -> None:
    shares = CallerShares(CallerLimits(max_request_bytes=0))
    assert connected(shares, "any").hold(size) is None
