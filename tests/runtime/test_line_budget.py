"""Log lines per party: `services.runtime.line_budget`."""

from services.runtime.line_budget import LineBudget


def test_a_party_has_some_lines_at_once_and_one_more_now_and_then() -> None:
    """C46: a node that comes and goes a hundred times a second; the next line says what was left out."""
    budget = LineBudget(at_once=3, seconds_per_line=10)
    told = [facts for n in range(10_000) if (facts := budget.take("edge-1", n / 100)) is not None]
    assert told[:4] == [{}, {}, {}, {"left_out": 997}]
    assert len(told) == 3 + 9
    assert sum(1 + facts.get("left_out", 0) for facts in told) <= 10_000


def test_another_party_has_all_of_its_own() -> None:
    budget = LineBudget(at_once=2, seconds_per_line=10)
    for _ in range(100):
        budget.take("edge-1", 0.0)
    assert [budget.take("edge-2", 0.0) for _ in range(3)] == [{}, {}, None]
    assert budget.take("edge-1", 1000.0) == {"left_out": 98}


def test_parties_are_bounded() -> None:
    """Memory: those that had no line for longest are forgotten, with what was left out."""
    budget = LineBudget(at_once=1, seconds_per_line=10, max_parties=100)
    for _ in range(2):
        for number in range(1000):
            budget.take(f"edge-{number}", 0.0)
            budget.take(f"edge-{number}", 0.0)
    assert len(budget) <= 100
