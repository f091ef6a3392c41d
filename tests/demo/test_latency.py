"""Latency histograms of the demo and the benchmark."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.latency import Latencies, RecentLatencies


@given(st.lists(st.integers(2, 60_000_000), min_size=1), st.floats(0, 1))
def test_a_quantile_is_within_two_percent_of_the_exact_one(values: list[int], quantile: float) -> None:
    histogram = Latencies()
    for value in values:
        histogram.add(value)

    [found] = histogram.quantiles_ms([quantile])

    rank = next(n for n in range(1, len(values) + 1) if n >= quantile * len(values))
    assert found == pytest.approx(sorted(values)[rank - 1] / 1000, rel=0.021)


def test_nothing_counted_has_no_quantiles() -> None:
    assert Latencies().quantiles_ms([0.5, 0.99]) == [None, None]


def test_counts_travel_between_histograms_and_start_over() -> None:
    here, there = Latencies(), Latencies()
    here.add(5000)
    here.add(0)
    there.add_counts(here.take())

    assert (len(here), len(there)) == (0, 2)
    assert there.quantiles_ms([1.0]) == [pytest.approx(5.0, rel=0.021)]


def test_recent_latencies_forget_what_is_old() -> None:
    recent = RecentLatencies(60.0)
    recent.add_counts({500: 1}, now=0.0)
    recent.add_counts({}, now=30.0)
    recent.add_counts({100: 1}, now=59.0)
    both = recent.quantiles_ms([1.0])

    recent.add_counts({}, now=60.0)

    assert recent.quantiles_ms([1.0]) != both
    assert recent.quantiles_ms([0.0]) == recent.quantiles_ms([1.0])
