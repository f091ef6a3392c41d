"""Who may be connected to a port that anybody may dial."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.runtime.crowd import Crowd


def test_whoever_opens_many_cuts_his_own() -> None:
    """C47: strangers of one network leave room for others."""
    crowd: Crowd[str] = Crowd(4)
    assert crowd.admit("scraper", "b") is None
    for number in range(3):
        assert crowd.admit(f"silent {number}", "a") is None
    assert crowd.admit("silent 3", "a") == "silent 0"
    assert crowd.admit("probe", "c") == "silent 1"
    assert set(crowd.all()) == {"scraper", "silent 2", "silent 3", "probe"}


def test_among_equals_the_oldest_goes() -> None:
    crowd: Crowd[int] = Crowd(3)
    for number in range(3):
        assert crowd.admit(number, f"network {number}") is None
    assert crowd.admit(3, "network 3") == 0


def test_what_left_has_no_place_and_may_leave_twice() -> None:
    crowd: Crowd[int] = Crowd(1)
    crowd.admit(1, "a")
    crowd.leave(1)
    crowd.leave(1)
    assert len(crowd) == 0
    assert crowd.admit(2, "b") is None


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), max_size=80), st.integers(1, 8))
def test_a_newcomer_always_gets_in_and_takes_from_no_smaller_network(
    steps: list[tuple[int, bool]], most: int
) -> None:
    crowd: Crowd[int] = Crowd(most)
    networks: dict[int, int] = {}
    for item, (network, leaves) in enumerate(steps):
        if leaves and networks:
            gone = next(iter(networks))
            crowd.leave(gone)
            del networks[gone]
            continue
        held = Counter(networks.values())
        cut = crowd.admit(item, str(network))
        if cut is None:
            assert len(networks) < most
        else:
            assert len(networks) == most
            assert held[networks[cut]] > held[network] or networks[cut] == network or held[networks[cut]] == 1
            del networks[cut]
        networks[item] = network
        assert set(crowd.all()) == set(networks)
        assert len(crowd) <= most
