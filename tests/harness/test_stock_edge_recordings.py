"""What the double of a stock edge says by itself, held against what edgecore v1.23.1 was recorded to say."""

import json
from itertools import count
from pathlib import Path
from typing import Any

import msgspec

from harness.stock_edge.talk import Saying, Talk

RECORDED = Path(__file__).parents[1] / "fixtures" / "recorded_v1.23.1_edged.jsonl"
NODE = "edge-k"
NOT_FOUND = {"Object": None, "Err": {"ErrStatus": {"status": "Failure", "reason": "NotFound", "code": 404}}}


def recorded() -> list[dict[str, Any]]:
    """Its frames but for events and what a pod brings; the answers to them are not in the file."""
    frames = [json.loads(line) for line in RECORDED.read_text().splitlines()]
    kinds = ("/event/", "/podpatch/", "/secret/", "/configmap/", "/pod/")
    return [
        frame | {"resource": frame["resource"].removeprefix(f"node/{NODE}/")}
        for frame in frames
        if "resource" in frame and not any(kind in frame["resource"] for kind in kinds)
    ]


def shape(one: Saying | dict[str, Any]) -> tuple[str, ...]:
    fields = one._asdict() if isinstance(one, Saying) else one
    content = fields["content"]
    if isinstance(content, dict):
        kept = sorted(key for key in content if key in ("metadata", "spec", "status"))
        described = f"object of {', '.join(kept)}"
    elif isinstance(content, str) and content.startswith("{") and content != "{}":
        described = f"text of {', '.join(sorted(json.loads(content)))}"
    else:
        described = json.dumps(content)
    return *(fields[name] for name in ("source", "group", "operation", "resource")), described


def answer(talk: Talk, said: Saying, now: float) -> None:
    """As a cloud that stores what it is given."""
    if said.operation in ("insert", "update", "patch") and said.source == "edged":
        value: Any = {"Object": {"metadata": {"name": NODE, "uid": "u"}, "spec": {}}, "Err": None}
    elif said.operation == "query":
        value = NOT_FOUND
    else:
        value = "OK"
    assert said.message_id in talk
    talk.answered(said.message_id, "response", msgspec.json.encode(value), now)
    assert said.message_id not in talk


def played(seconds: int) -> list[tuple[float, Saying]]:
    """What it says within so long, every request answered at once."""
    numbers = count(1)
    talk = Talk(NODE, lambda: f"id-{next(numbers)}", edged=True)
    said: list[tuple[float, Saying]] = []
    waiting = talk.opened(0.0)
    now = 0.0
    while True:
        for one in waiting:
            said.append((now, one))
            answer(talk, one, now)
        if talk.next_at is None or talk.next_at > seconds:
            return said
        now = talk.next_at
        waiting = talk.due(now)


def test_it_says_what_was_recorded_in_that_form() -> None:
    """The same requests, each of the shape that a real one has; of the node's patches the first."""
    real = {shape(frame) for frame in recorded() if "setElementOrder" not in str(frame["content"])}
    own = {shape(one) for _, one in played(60)}
    assert own == real


def test_it_says_it_in_that_order() -> None:
    real = [tuple(shape(frame)[1:4]) for frame in recorded()]
    firsts = list(dict.fromkeys(real))
    assert list(dict.fromkeys(tuple(shape(one)[1:4]) for _, one in played(60))) == firsts


def test_its_lease_is_renewed_every_ten_seconds() -> None:
    times = [at for at, one in played(60) if one.operation == "update"]
    assert times == [20.0, 30.0, 40.0, 50.0, 60.0]


def test_the_twin_asks_again_after_two_minutes_and_then_every_minute() -> None:
    talk = Talk(NODE, iter(map(str, count(1))).__next__, edged=False)
    asked = [*talk.opened(0.0)]
    times = []
    for _ in range(3):
        assert talk.next_at is not None
        times.append(talk.next_at)
        asked += talk.due(talk.next_at)
    assert times == [120.0, 180.0, 240.0]
    assert len({one.message_id for one in asked}) == 4
    talk.answered(asked[-1].message_id, "response", b'"anything"', 250.0)
    assert talk.next_at is None


def test_what_is_no_answer_to_it_is_tried_again() -> None:
    """`"OK"` is none to the insertion of a node, nor is an error."""
    talk = Talk(NODE, iter(map(str, count(1))).__next__, edged=True)
    (node,) = [one for one in talk.opened(0.0) if one.operation == "insert"]
    talk.answered(node.message_id, "error", b'"nobody serves it"', 1.0)
    again = talk.due(61.0)
    assert [one.operation for one in again if one.resource == node.resource] == ["insert"]


def test_what_was_asked_over_a_link_that_is_gone_is_asked_again() -> None:
    talk = Talk(NODE, iter(map(str, count(1))).__next__, edged=True)
    first = talk.opened(0.0)
    talk.closed()
    assert talk.next_at is None
    assert not any(one.message_id in talk for one in first)
    assert [shape(one) for one in talk.opened(60.0)] == [(*shape(one)[:4], shape(one)[4]) for one in first]
