"""Which spans a viewer that mends skewed clocks would move: by the rule of Jaeger, as of 1.76."""

from collections.abc import Sequence

from tests.support.otlp import ReceivedSpan


def skew_ns(child: ReceivedSpan, parent: ReceivedSpan) -> int:
    """By how much the child would be moved; as between two hosts, which all processes are without a name."""
    lasts, parent_lasts = child.end_ns - child.start_ns, parent.end_ns - parent.start_ns
    if lasts > parent_lasts:
        return max(0, parent.start_ns - child.start_ns)
    if parent.start_ns <= child.start_ns and child.end_ns <= parent.end_ns:
        return 0
    return parent.start_ns + (parent_lasts - lasts) // 2 - child.start_ns


def skewed(spans: Sequence[ReceivedSpan]) -> list[str]:
    """What would be moved or warned of, in words; a span whose parent is not among them stays where it is."""
    by_id = {(span.trace_id, span.span_id): span for span in spans}
    found = [f"{span.name} lasts nothing" for span in spans if span.end_ns <= span.start_ns]
    for span in spans:
        parent = by_id.get((span.trace_id, span.parent_id))
        if parent is not None and (moved_ns := skew_ns(span, parent)):
            found.append(f"{span.name} below {parent.name}: {moved_ns} ns")
    return found
