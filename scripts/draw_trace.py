"""Draws a trace as an SVG waterfall: `python -m scripts.draw_trace TRACE.json PICTURE.svg`.

TRACE.json is what Jaeger's `/api/v3/traces/ID` answers; `make check-tracing` leaves one in `.run/trace.json`.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROW, TOP, LEFT, WIDTH, RIGHT = 24, 56, 150, 480, 430
COLOURS = {
    "cloudhub-dispatcher": "#2f6fb0",
    "cloudhub-connector": "#2c8f6b",
    "cloudhub-edge": "#8a5fb5",
    "cloudhub-sessions": "#b07d2f",
}
ERROR = "#c0392b"
# Where two steps lie so far apart, the time between them is cut out of the picture.
LONGEST_GAP_MS = 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """A span; milliseconds since the beginning of the trace."""

    name: str
    service: str
    span_id: str
    parent_id: str
    start: float
    end: float
    error: bool
    attributes: Mapping[str, str]

    @property
    def note(self) -> str:
        """What the row says of it."""
        shown = {
            "attempt": self.attributes.get("cloudhub.attempt"),
            "reason": self.attributes.get("cloudhub.reason"),
            "epoch": self.attributes.get("cloudhub.session.epoch", "")[-5:] or None,
        }
        return "  ".join(f"{name}={value}" for name, value in shown.items() if value)


def _texts(pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    return {pair["key"]: str(next(iter(pair["value"].values()))) for pair in pairs}


def steps_of(trace: Mapping[str, Any]) -> list[Step]:
    """The spans of an answer of /api/v3, by their start."""
    found = [
        (_texts(resource["resource"]["attributes"])["service.name"], span)
        for resource in trace["result"]["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]
    begun = min(int(span["startTimeUnixNano"]) for _, span in found)
    steps = [
        Step(
            name=span["name"],
            service=service,
            span_id=span["spanId"],
            parent_id=span.get("parentSpanId", ""),
            start=(int(span["startTimeUnixNano"]) - begun) / 1e6,
            end=(int(span["endTimeUnixNano"]) - begun) / 1e6,
            error=span.get("status", {}).get("code") == 2,
            attributes=_texts(span.get("attributes", ())),
        )
        for service, span in found
    ]
    return sorted(steps, key=lambda step: step.start)


def tree(steps: Sequence[Step]) -> Iterator[tuple[int, Step]]:
    """(depth, step), each below the one that caused it."""
    known = {step.span_id for step in steps}

    def below(parent_id: str, depth: int) -> Iterator[tuple[int, Step]]:
        for step in steps:
            if step.parent_id == parent_id:
                yield depth, step
                yield from below(step.span_id, depth + 1)

    for root in steps:
        if root.parent_id not in known:
            yield 0, root
            yield from below(root.span_id, 1)


def _cuts(steps: Sequence[Step]) -> list[tuple[float, float]]:
    """(from, to) of the times in which nothing happened."""
    cuts, through = [], 0.0
    for step in steps:
        if step.start - through > LONGEST_GAP_MS:
            cuts.append((through + LONGEST_GAP_MS / 3, step.start - LONGEST_GAP_MS / 3))
        through = max(through, step.end)
    return cuts


def draw(steps: Sequence[Step], title: str) -> str:
    """The picture."""
    cuts = _cuts(steps)

    def shown_ms(at: float) -> float:
        return at - sum(min(at, to) - since for since, to in cuts if at > since)

    scale = WIDTH / max(shown_ms(max(step.end for step in steps)), 1.0)
    rows = list(tree(steps))
    height, width = TOP + ROW * len(rows) + 24, LEFT + WIDTH + RIGHT
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" font-family="Helvetica, Arial, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="20" font-size="14" font-weight="bold" fill="#222222">{escape(title)}</text>',
    ]
    out += [
        f'<rect y="{TOP + number * ROW}" width="{width}" height="{ROW}" fill="#f5f6f8"/>'
        for number in range(0, len(rows), 2)
    ]
    x = 12
    for service in dict.fromkeys(step.service for step in steps):
        out.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{COLOURS.get(service, "#777777")}"/>')
        out.append(f'<text x="{x + 14}" y="39" fill="#444444">{escape(service)}</text>')
        x += 30 + 7 * len(service)
    for since, to in cuts:
        at = LEFT + shown_ms(since) * scale
        out.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 4}" y2="{height - 22}" '
            f'stroke="#999999" stroke-dasharray="2 3"/>'
        )
        out.append(
            f'<text x="{at:.1f}" y="{height - 8}" fill="#777777" font-size="10" text-anchor="middle">'
            f"{(to - since) / 1000:.2f} s</text>"
        )
    for number, (depth, step) in enumerate(rows):
        y = TOP + number * ROW
        colour = ERROR if step.error else COLOURS.get(step.service, "#777777")
        at, long = LEFT + shown_ms(step.start) * scale, shown_ms(step.end) - shown_ms(step.start)
        out.append(
            f'<text x="{12 + 16 * depth}" y="{y + 16}" fill="{ERROR if step.error else "#222222"}">'
            f"{escape(step.name)}</text>"
        )
        out.append(
            f'<rect x="{at:.1f}" y="{y + 6}" width="{max(long * scale, 3):.1f}" height="12" fill="{colour}"/>'
        )
        text = f"{step.start:,.0f} ms  {step.note}".replace(",", " ")
        out.append(
            f'<text x="{LEFT + WIDTH + 16}" y="{y + 16}" fill="#444444" xml:space="preserve">'
            f"{escape(text)}</text>"
        )
    return "\n".join([*out, "</svg>", ""])


def main() -> int:
    """Draws what is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--title", default="One message's trace")
    given = parser.parse_args()
    given.picture.write_text(draw(steps_of(json.loads(given.trace.read_text())), given.title))
    return 0


if __name__ == "__main__":
    sys.exit(main())
