"""What the lab's own checks find, with histories of a right hub and with a breach of each sentence."""

import pytest

from chaos.history import Outcome, Publish, Step
from services.dispatcher.outbox.records import EventKind
from tests.lab.direct import Direct, direct_breaches
from tests.lab.told import Sample, untold

NODE = "edge-1"


def direct(number: int = 1, at: float = 10.0, outcome: str = "OUTCOME_ACCEPTED") -> Direct:
    return Direct(NODE, f"direct-{number}", outcome, at)


def came(number: int = 1) -> Step:
    return Step(NODE, f"default/direct/{number}", f"direct-{number}", number, "update")


def stored(version: int) -> Step:
    return Step(NODE, "default/configmap/a", "a", version, "update")


def published(version: int, at: float, outcome: Outcome = Outcome.ACCEPTED) -> Publish:
    return Publish(NODE, "default/configmap/a", "a", version, "update", outcome, at, at + 1.0)


def breaches(
    directs: list[Direct],
    steps: list[Step],
    publishes: list[Publish],
    whole: tuple[str, ...] = (NODE,),
    dropped: tuple[tuple[str, str], ...] = (),
) -> list[str]:
    return direct_breaches(directs, steps, publishes, whole=whole, dropped=dropped)


def test_a_no_ack_message_goes_before_what_is_published_later() -> None:
    """Invariant 8."""
    publishes = [published(1, at=5.0), published(2, at=12.0)]
    assert breaches([direct()], [stored(1), came(), stored(2)], publishes) == []
    assert breaches([direct()], [came(), stored(1), stored(2)], publishes) == []
    (found,) = breaches([direct()], [stored(1), stored(2), came()], publishes)
    assert "direct-1 came behind version 2 of a" in found


def test_a_message_that_was_sent_again_did_not_pass_anything() -> None:
    """Its first time counts."""
    assert breaches([direct()], [came(), stored(2), stored(2)], [published(2, at=12.0)]) == []
    assert breaches([direct()], [stored(1), came(), stored(1)], [published(1, at=5.0)]) == []


@pytest.mark.parametrize(
    ("directs", "steps", "part"),
    [
        ([direct()], [came(), came()], "came 2 times"),
        ([direct(outcome="OUTCOME_NO_SESSION")], [came()], "was answered OUTCOME_NO_SESSION and came"),
        ([direct()], [], "is gone without a word"),
    ],
)
def test_a_no_ack_message_comes_at_most_once_and_is_told(
    directs: list[Direct], steps: list[Step], part: str
) -> None:
    """C26, invariant 9."""
    (found,) = breaches(directs, steps, [])
    assert part in found


def test_what_a_lost_link_took_along_or_was_dropped_is_no_breach() -> None:
    """C26."""
    assert breaches([direct()], [], [], whole=()) == []
    assert breaches([direct()], [], [], dropped=((NODE, "direct-1"),)) == []
    assert breaches([direct(outcome="")], [came()], []) == [], "unanswered: it may have come"


def test_all_that_is_counted_is_in_the_history() -> None:
    """Invariant 9."""
    counters: dict[Sample, float] = {
        ("parked_total", "", "refused"): 1,
        ("parked_total", "", "unacknowledged"): 2,
        ("dropped_total", "", "lane_full"): 4,
        ("ended_total", "", "expired"): 3,
        ("published_total", "accepted", ""): 9,
        ("published_total", "stale", "below_floor"): 5,
    }
    events = {
        (EventKind.PARKED, "refused by the edge: no"): 1,
        (EventKind.PARKED, "not acknowledged in 10 attempts"): 2,
        (EventKind.DROPPED, "lane_full"): 4,
        (EventKind.ENDED, "expired"): 3,
        (EventKind.ENDED, "superseded"): 7,
        (EventKind.REJECTED, "BELOW_FLOOR"): 5,
    }
    publishes = [published(1, 1.0, Outcome.STALE)]
    assert untold(counters, events, publishes) == []
    for missing in counters:
        if missing[1] != "accepted":
            assert untold({key: n for key, n in counters.items() if key != missing}, events, publishes)
    for kind, reason in events:
        if reason != "superseded":
            assert untold(counters, events | {(kind, reason): 0}, publishes)


def test_a_refusal_that_nobody_counted_is_a_breach() -> None:
    """Invariant 9: publishers were told of it."""
    (found,) = untold({}, {}, [published(1, 1.0, Outcome.REJECTED)])
    assert "publishers were told 1, 0 counted" in found
