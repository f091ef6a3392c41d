"""Which targets a run is held against: `bench.figures`."""

import pytest

from bench.figures import Case, Memory, Results, Throughput, targets


def results(store: str, replicas: int, per_second: float, nodes: int = 100) -> Results:
    case = Case(nodes, throughput=Throughput(80_000, 8.0, per_second, 0, 0, {}))
    return Results("now", {}, {"store": store, "replicas": replicas}, [case])


@pytest.mark.parametrize(
    ("store", "replicas", "per_second", "met"),
    [
        ("sqlite", 1, 5000.0, True),
        ("sqlite", 1, 4999.9, False),
        ("postgresql", 2, 8000.0, True),
        ("postgresql", 2, 7999.9, False),
    ],
)
def test_throughput_is_held_against_what_is_aimed_at(
    store: str, replicas: int, per_second: float, met: bool
) -> None:
    (target,) = targets(results(store, replicas, per_second))
    assert (target.value, target.met) == (per_second, met)
    assert target.text.startswith("at least 8 000" if store == "postgresql" else "at least 5 000")


def test_what_has_no_target_is_held_against_none() -> None:
    assert targets(results("postgresql", 1, 9000.0)) == []
    assert targets(results("sqlite", 1, 9000.0, nodes=1)) == []


def test_memory_is_held_against_its_bounds() -> None:
    memory = Memory(1000, {}, {}, {"connector": 100.1, "dispatcher": 20.0})
    run = Results("now", {}, {"store": "sqlite", "replicas": 1}, [Case(1000, memory=memory)])
    assert [target.met for target in targets(run)] == [False, True]
