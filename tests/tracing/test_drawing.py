"""scripts/draw_trace.py: the picture of docs/tracing.md."""

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from scripts.draw_trace import ERROR, HEADS, draw, main, marks, of_node, scale_step, steps_of, tree


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
    assert ">4.96 s left out<" in picture
    bars = [float(x) for x in re.findall(r'<rect x="([\d.]+)" y="\d+" width="[\d.]+" height="12"', picture)]
    assert len(bars) == 4
    assert bars[3] - bars[2] > bars[2] - bars[1]
    assert max(bars) <= 150 + 480


def test_columns_have_heads_and_the_scale_names_times_that_are_drawn() -> None:
    picture = draw(steps_of(TRACE), "")
    assert all(f">{head}</text>" in picture for _, head in HEADS)
    assert scale_step(1.0) == 100
    assert scale_step(0.1) == pytest.approx(10)
    # 29 to 4988 ms are cut out.
    assert marks(5008.0, [(29.0, 4988.0)], 10.0) == [0, 10, 20, 4990, 5000]
    assert len(marks(1e9, [(29.0, 1e9 - 20)], 10.0)) == 6
    assert ">4 990</text>" in picture
    assert ">100</text>" not in picture


def about(node_id: str) -> list[dict[str, Any]]:
    return [{"key": "cloudhub.node.id", "value": {"stringValue": node_id}}]


LARGE = trace(
    span("publish", 1, 0, 0, 4),
    *(
        one
        for number, node_id in ((10, "edge-1"), (20, "edge-2"))
        for one in (
            span("deliver", number, 1, 5, 6, attributes=about(node_id)),
            span("send", number + 1, number, 6, 7),
        )
    ),
)


def test_of_a_large_trace_one_node_is_drawn() -> None:
    """With what caused its steps and what they caused, also where that names no node."""
    found = of_node(steps_of(LARGE), "edge-2")
    assert [(step.name, step.span_id) for step in found] == [
        ("publish", "1"),
        ("deliver", "20"),
        ("send", "21"),
    ]


def test_a_node_that_the_trace_is_not_about_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, picture = tmp_path / "trace.json", tmp_path / "trace.svg"
    file.write_text(json.dumps(LARGE))
    with pytest.raises(SystemExit):
        main([str(file), str(picture), "--node", "egde-1"])
    assert "the trace is about edge-1, edge-2, not about egde-1" in capsys.readouterr().err
    assert main([str(file), str(picture), "--node", "edge-1"]) == 0
    assert picture.read_text().count('height="12" fill') == 3
