"""Who writes a publish, and how many may be on their way: `services.dispatcher.peers.to_owners`."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from services.dispatcher.outbox.records import Op, Result
from services.dispatcher.peers import to_owners as module
from services.dispatcher.peers.to_owners import ToOwners
from services.runtime.errors import Unavailable
from tests.support.dispatcher import SteppedClock
from tests.support.outbox import accept, publication


class Writer:
    """Writes nothing until it is told to."""

    def __init__(self) -> None:
        self.submitted: list[tuple[list[Op], Any]] = []

    def submit(self, ops: list[Op], done: Any) -> None:
        """See `to_owners.Writer`."""
        self.submitted.append((ops, done))

    def write(self) -> None:
        """All that was submitted."""
        submitted, self.submitted = self.submitted, []
        for ops, done in submitted:
            done([cast("Result", None)] * len(ops))


class Peers:
    """There are some, and nobody knows where nodes are."""

    locations = cast("Any", type("Nowhere", (), {"find": lambda *_: None})())

    def get(self, _: str) -> None:
        """See `directory.Peers`."""


def ops(count: int, prefix: str) -> list[Op]:
    return [accept(publication(1), f"{prefix}-{number}") for number in range(count)]


def test_a_large_publish_leaves_room_for_those_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """C50: it may take half where others are on their way, and others the rest; at the bound the newcomer is
    told, and what was taken in is answered."""
    monkeypatch.setattr(module, "MOST_UNDER_WAY", 100)
    monkeypatch.setattr(module, "LARGE_OPERATIONS", 20)
    writer = Writer()
    to_owners = ToOwners((), writer, cast("Any", Peers()), SteppedClock(), cast("Any", None))
    answers: list[tuple[str, int]] = []

    def told(who: str) -> Any:
        return lambda place, result: answers.append((who, place))

    to_owners.submit(ops(40, "large"), told("large"))
    with pytest.raises(Unavailable, match="40 operations") as refused:
        to_owners.submit(ops(21, "larger"), told("larger"))
    assert refused.value.reason == "OVERLOADED"
    for number in range(60):
        to_owners.submit(ops(1, f"bystander-{number}"), told("bystander"))
    with pytest.raises(Unavailable, match="100 operations"):
        to_owners.submit(ops(1, "late"), told("late"))
    writer.write()
    assert answers.count(("bystander", 0)) == 60
    assert [place for who, place in answers if who == "large"] == list(range(40))
    to_owners.submit(ops(100, "alone"), told("alone"))
    writer.write()
    assert len(answers) == 200


def test_results_of_the_bound_are_not_lost_when_the_writer_refuses() -> None:
    """What the writer has no room for is answered with that, and takes up nothing."""

    class Full(Writer):
        def submit(self, ops: list[Op], done: Any) -> None:
            raise Unavailable("OVERLOADED", "so many wait")

    to_owners = ToOwners((), Full(), cast("Any", Peers()), SteppedClock(), cast("Any", None))
    answers: list[object] = []
    to_owners.submit(ops(3, "n"), lambda place, result: answers.append(result))
    assert [type(one) for one in cast("Sequence[object]", answers)] == [Unavailable] * 3
    assert to_owners._under_way == 0
