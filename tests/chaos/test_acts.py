"""What hostile parties do: a function of the seed."""

from itertools import islice

import pytest

from chaos.hostile.acts import Act, ActKind, acts


def first(seed: int, kind: ActKind, count: int = 50) -> list[Act]:
    return list(islice(acts(seed, kind), count))


@pytest.mark.parametrize("kind", ActKind)
def test_the_same_seed_gives_the_same_acts(kind: ActKind) -> None:
    assert first(1, kind) == first(1, kind)
    assert first(1, kind) != first(2, kind)
    assert [act.number for act in first(1, kind)] == list(range(1, 51))


def test_kinds_do_not_go_in_step() -> None:
    pauses = {tuple(act.pause_seconds for act in first(1, kind)) for kind in ActKind}
    assert len(pauses) == len(ActKind)


@pytest.mark.parametrize("kind", ActKind)
def test_an_act_is_bounded(kind: ActKind) -> None:
    """What parties do at a time leaves the machine to the hub: that they harm nobody is what is tried."""
    for act in first(3, kind, 500):
        assert 1 <= act.size <= 60
        assert 0 <= act.hold_seconds <= 4.0
        assert act.pause_seconds > 0
