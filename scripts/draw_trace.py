"""Draws a trace as an SVG waterfall: `python -m scripts.draw_trace TRACE.json PICTURE.svg [--node NODE]`.

TRACE.json is what Jaeger's `/api/v3/traces/ID` answers; `make check-tracing` leaves one in `.run/trace.json`.
The trace of a publish to many nodes is large: `--node` draws what happened on the way to one of them.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROW, TOP, LEFT, WIDTH, RIGHT, BOTTOM = 24, 92, 150, 480, 430, 36
HEADS = ((12, "step"), (LEFT, "when, in ms since the start"), (LEFT + WIDTH + 16, "began, why and where"))
COLOURS = {
    "cloudhub-dispatcher": "#2f6fb0",
    "cloudhub-connector": "#2c8f6b",
    "cloudhub-edge": "#8a5fb5",
    "cloudhub-sessions": "#b07d2f",
}
ERROR = "#c0392b"
# Where two steps lie so far apart, the time between them is cut out of the picture.
LONGEST_GAP_MS = 60.0
# Between two numbers of the scale.
_LEAST_STEP_PIXELS = 52.0
MAX_ROWS = 200
NODE = "cloudhub.node.id"


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


def nodes_of(steps: Sequence[Step]) -> list[str]:
    """The nodes that a trace is about."""
    return sorted({step.attributes[NODE] for step in steps if NODE in step.attributes})


def of_node(steps: Sequence[Step], node_id: str) -> list[Step]:
    """What happened on the way to one node: its steps, what caused them, and what they caused."""
    by_id = {step.span_id: step for step in steps}
    kept: set[str] = set()
    for step in steps:
        if step.attributes.get(NODE) != node_id:
            continue
        above: Step | None = step
        while above is not None and above.span_id not in kept:
            kept.add(above.span_id)
            above = by_id.get(above.parent_id)

    def below_it(step: Step) -> bool:
        above = by_id.get(step.parent_id)
        while above is not None and NODE not in above.attributes:
            above = by_id.get(above.parent_id)
        return NODE not in step.attributes and above is not None and above.attributes[NODE] == node_id

    return [step for step in steps if step.span_id in kept or below_it(step)]


def scale_step(ms_per_pixel: float) -> float:
    """Milliseconds between two numbers of the scale: 1, 2 or 5 times a power of ten."""
    least = _LEAST_STEP_PIXELS * ms_per_pixel
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= least)


def marks(end: float, cuts: Sequence[tuple[float, float]], step: float) -> list[float]:
    """The times that the scale names: multiples of `step` that are drawn."""
    begins, ends = [0.0, *(to for _, to in cuts)], [*(since for since, _ in cuts), end]
    return [
        number * step
        for since, to in zip(begins, ends, strict=True)
        for number in range(math.ceil(since / step), math.floor(to / step) + 1)
    ]


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

    end = max(step.end for step in steps)
    scale = WIDTH / max(shown_ms(end), 1.0)
    rows = list(tree(steps))
    height, width = TOP + ROW * len(rows) + BOTTOM, LEFT + WIDTH + RIGHT
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
    out += [
        f'<text x="{x}" y="{TOP - 26}" fill="#222222" font-weight="bold">{head}</text>' for x, head in HEADS
    ]
    out += [
        f'<path d="M{at:.1f} {TOP - 6} V{TOP}" stroke="#777777"/>'
        f'<text x="{at:.1f}" y="{TOP - 10}" fill="#777777" font-size="10" text-anchor="middle">{text}</text>'
        for mark in marks(end, cuts, scale_step(1 / scale))
        for at, text in [(LEFT + shown_ms(mark) * scale, f"{mark:,.10g}".replace(",", " "))]
    ]
    for number, (since, to) in enumerate(cuts):
        at = LEFT + shown_ms(since) * scale
        out.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP - 4}" y2="{height - BOTTOM + 2}" '
            f'stroke="#999999" stroke-dasharray="2 3"/>'
        )
        out.append(
            # In two lines, since they may stand close together.
            f'<text x="{at:.1f}" y="{height - BOTTOM + 14 + 14 * (number % 2)}" fill="#777777" '
            f'font-size="10" text-anchor="middle">{(to - since) / 1000:.2f} s left out</text>'
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Draws what is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trace", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--title", default="One message's trace")
    parser.add_argument("--node", default="", help="only what happened on the way to this node")
    given = parser.parse_args(arguments)
    steps = steps_of(json.loads(given.trace.read_text()))
    nodes = nodes_of(steps)
    if given.node:
        if given.node not in nodes:
            parser.error(f"--node: the trace is about {_some(nodes)}, not about {given.node}")
        steps = of_node(steps, given.node)
    elif len(steps) > MAX_ROWS:
        print(f"{len(steps)} steps, of {_some(nodes)}: --node draws those of one", file=sys.stderr)
    given.picture.write_text(draw(steps, given.title))
    return 0


def _some(nodes: Sequence[str]) -> str:
    more = f" and {len(nodes) - 5} nodes more" if len(nodes) > 5 else ""
    return ", ".join(nodes[:5]) + more if nodes else "no node"


if __name__ == "__main__":
    sys.exit(main())
