"""`services.runtime.rate_limit`: no network gets more than its burst and its rate, and none gets less."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.rate_limit import RateLimit, network_of

STEPS = st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 5)), max_size=60)


@given(st.integers(1, 5), st.sampled_from([0.5, 1.0, 3.0]), STEPS)
def test_it_grants_exactly_what_a_bucket_of_tokens_does(
    burst: int, per_second: float, steps: list[tuple[str, float]]
) -> None:
    limit = RateLimit(per_second, burst)
    tokens, told_at, now = dict.fromkeys("ab", float(burst)), dict.fromkeys("ab", 0.0), 0.0
    for address, later in steps:
        now += later
        tokens[address] = min(burst, tokens[address] + (now - told_at[address]) * per_second)
        told_at[address] = now
        wait = limit.take(address, now)
        if abs(tokens[address] - 1) < 1e-6:
            # On the edge either is right; the model follows.
            tokens[address] -= 0.0 if wait else 1.0
        elif tokens[address] > 1:
            assert wait == 0
            tokens[address] -= 1
        else:
            assert abs(wait - (1 - tokens[address]) / per_second) < 1e-3
    assert len(limit) <= 2


def test_after_the_time_told_it_grants() -> None:
    limit = RateLimit(0.5, 1)
    assert limit.take("a", 10.0) == 0
    wait = limit.take("a", 10.0)
    assert wait == 2.0
    assert limit.take("a", 10.0 + wait - 0.01) > 0
    assert limit.take("a", 10.0 + wait) == 0


def test_networks_do_not_share_and_are_forgotten() -> None:
    limit = RateLimit(1.0, 1, most_networks=3)
    for number in range(50):
        assert limit.take(f"a{number}", 0.0) == 0
    assert len(limit) == 3
    assert limit.take("late", 100.0) == 0
    assert len(limit) == 1


@pytest.mark.parametrize(
    ("address", "network"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("10.0.0.2", "10.0.0.2"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("::ffff:a00:1", "10.0.0.1"),
        ("2001:db8:1:2::", "2001:db8:1:2::/64"),
        ("2001:db8:1:2:ffff:ffff:ffff:ffff", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("::1", "::/64"),
        ("fe80::a:b%eth0", "fe80::/64"),
    ],
)
def test_a_network_is_an_ipv4_address_or_64_bits_of_ipv6(address: str, network: str) -> None:
    """A host has all addresses of its /64: limited one by one it would have no limit."""
    assert network_of(address) == network
