"""A node that comes and goes does not fill the disk with lines of the log."""

from typing import Any, cast

from structlog.testing import capture_logs

from services.dispatcher.session_ends import SessionEnds
from services.dispatcher.sessions_client import SessionsClient
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.tracing import Tracing
from tests.support.dispatcher import running_delivery_half


class NoUpstream:
    """Nobody is told."""

    def session_left(self, node_id: str, epoch: int) -> None:
        pass


async def test_a_flapping_node_has_a_few_lines_and_others_have_theirs() -> None:
    """C46: 100 times a second for a minute; each line says how many were left out before it."""
    async with running_delivery_half() as half:
        upstream, none = cast(Upstream, NoUpstream()), cast(Any, None)
        ends = SessionEnds(
            *(half.delivery, cast(SessionsClient, none), upstream, half.clock, half.metrics),
            cast(Tracing, none),
        )
        flapping, calm = await half.connect("edge-1"), await half.connect("edge-2")
        with capture_logs() as logs:
            for _ in range(6000):
                ends.moved(flapping, "it comes and goes")
                half.clock.advance(0.01)
            ends.moved(calm, "once")
    lines = [line for line in logs if line["event"] == "session.moved"]
    assert [line["node"] for line in lines].count("edge-2") == 1
    theirs = [line for line in lines if line["node"] == "edge-1"]
    assert 10 < len(theirs) < 20
    assert sum(1 + line.get("left_out", 0) for line in theirs) > 5000
    assert half.metrics.value("sessions_closed_total", reason="transferred") == 6001
