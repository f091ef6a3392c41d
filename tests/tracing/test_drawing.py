"""scripts/draw_trace.py: the picture of docs/tracing.md."""

import re
from typing import Any
from xml.etree import ElementTree

from scripts.draw_trace import ERROR, draw, steps_of, tree


def span(name: str, number: int, parent: int, start_ms: float, end_ms: float, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "spanId": str(number),
        "parentSpanId": str(parent),
        "startTimeUnixNano": str(10**18 + int(start_ms * 1e6)),
        "endTimeUnixNano": str(10**18 + int(end_ms * 1e6)),
        **more,
    }


def trace(*spans: dict[str, Any], service: str = "cloudhub-dispatcher") -> dict[str, Any]:
    attributes = [{"key": "service.name", "value": {"stringValue": service}}]
    return {
        "result": {
            "resourceSpans": [
                {"resource": {"attributes": attributes}, "scopeSpans": [{"spans": list(spans)}]}
            ]
        }
    }


LOST = span(
    "lost",
    4,
    3,
    9,
    9,
    status={"code": 2, "message": "gone"},
    attributes=[{"key": "cloudhub.reason", "value": {"stringValue": "<edge> & all"}}],
)
TRACE = trace(
    LOST, span("deliver", 3, 1, 8, 8), span("deliver", 5, 1, 5008, 5008), span("publish", 1, 0, 0, 4)
)


def test_each_step_stands_below_the_one_that_caused_it() -> None:
    assert [(depth, step.name, step.start) for depth, step in tree(steps_of(TRACE))] == [
        (0, "publish", 0),
        (1, "deliver", 8),
        (2, "lost", 9),
        (1, "deliver", 5008),
    ]


def test_the_picture_is_well_formed_and_shows_errors_and_reasons() -> None:
    picture = draw(steps_of(TRACE), "A & B")
    texts = [
        element.text for element in ElementTree.fromstring(picture).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert texts[0] == "A & B"
    assert "9 ms  reason=<edge> & all" in texts
    assert len(re.findall(f'<rect [^>]*fill="{ERROR}"', picture)) == 1


def test_a_long_time_without_a_step_is_cut_out_and_told() -> None:
    picture = draw(steps_of(TRACE), "")
    # 5008 - 9 ms, of which 20 on either side are drawn.
    assert ">4.96 s<" in picture
    bars = [float(x) for x in re.findall(r'<rect x="([\d.]+)" y="\d+" width="[\d.]+" height="12"', picture)]
    assert len(bars) == 4
    assert bars[3] - bars[2] > bars[2] - bars[1]
    assert max(bars) <= 150 + 480
