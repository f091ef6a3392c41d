"""What is told of nodes themselves: `services.dispatcher.node_notices`."""

from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_notices import MAX_DETAIL_CHARS, SECONDS_PER_LINE, NodeNotices, Notice
from services.dispatcher.outbox.event_ids import EventIds
from services.dispatcher.outbox.records import Event, EventKind
from services.dispatcher.outbox.repetitions import ALONE, OpenLines
from tests.support.dispatcher import SteppedClock


def test_a_node_that_does_it_all_the_time_has_a_line_a_minute_of_each_kind() -> None:
    """C46: all are counted; another node and another kind have their own."""
    written: list[Event] = []
    clock, registry = SteppedClock(), CollectorRegistry()
    notices = NodeNotices(written.append, clock, DispatcherMetrics(registry))
    with capture_logs() as logs:
        for _ in range(300):
            notices.tell("edge-1", 7, Notice.LINK_REFUSED, "frame_too_big")
            clock.advance(SECONDS_PER_LINE / 100)
        notices.tell("edge-1", 7, Notice.MESSAGE_REFUSED, "x" * 10_000)
        notices.tell("edge-2", 8, Notice.LINK_REFUSED, "frame_too_big")
    told = [(line["node"], line["reason"]) for line in logs]
    assert told[:3] == [("edge-1", "link_refused")] * 3
    assert told[3:] == [("edge-1", "message_refused"), ("edge-2", "link_refused")]
    assert sum(1 + line.get("left_out", 0) for line in logs) >= 200
    count = registry.get_sample_value("cloudhub_dispatcher_node_notices_total", {"notice": "link_refused"})
    assert count == 301
    assert len(written) == 302
    assert len(written[300].reason) <= MAX_DETAIL_CHARS + 32


def test_the_history_counts_what_is_noted_again_and_again() -> None:
    """Whatever the details are: so many lines an hour, and the last one says how often it was."""
    lines, ids = OpenLines(), EventIds()
    new = 0
    for number in range(500):
        transaction = lines.begin()
        reason = f"link_refused: frame_too_big: {number} bytes"
        written = transaction.lay([Event("edge-1", EventKind.NOTED, 1000 + number, "", reason=reason)], ids)
        transaction.confirm()
        new += len(written.new)
    assert new == ALONE + 1
    (last,) = written.changed
    assert last.event.repeats == 500 - new
