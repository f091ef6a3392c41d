"""The table at the end of a chaos run."""

from collections import Counter

from rich.console import Console

from chaos.checker import Verdict
from chaos.report import print_verdict


def told(verdict: Verdict) -> str:
    console = Console(width=120, record=True, quiet=False, force_terminal=False)
    print_verdict(console, verdict, "2 of each service on postgresql, seed 1")
    return console.export_text()


def test_the_table_has_a_line_for_every_fault_and_every_invariant() -> None:
    text = told(
        Verdict(
            accepted=10,
            acknowledged=8,
            superseded=2,
            faults=Counter({"kill dispatcher": 2}),
            recoveries={"kill dispatcher": 1.25},
            longest_recovery_seconds=1.25,
        )
    )
    assert "recovered after 1.2 s at most; 0 links opened anew" in text
    for name in ("accepted", "acknowledged", "lost", "stale overwrites", "double sessions", "limit overruns"):
        assert name in text
    assert "every invariant held" in text


def test_the_table_counts_what_hostile_parties_did() -> None:
    text = told(Verdict(accepted=10, acts=Counter({"poison message": 3, "flapping edge": 4})))
    rows = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in text.splitlines() if "│" in line
    }
    assert rows["poison message"] == "3"
    assert rows["flapping edge"] == "4"
    assert rows["hostile acts"] == "7"
    assert "hostile acts" not in told(Verdict(accepted=10))


def test_breaches_are_told_in_words_and_end_in_a_plain_verdict() -> None:
    text = told(Verdict(accepted=10, lost=[f"message {number} is gone" for number in range(9)]))
    assert "lost: message 0 is gone" in text
    assert text.count("is gone") == 5
    assert "BROKEN" in text
    assert "every invariant held" not in text
