"""One line per reason and interval: `services.runtime.failure_log`."""

from structlog.testing import capture_logs
from structlog.typing import EventDict

from services.runtime.failure_log import FailureLog
from services.runtime.logs import get_log
from tests.support.processes import eventually

MISSING = "CERTIFICATE_MISSING"


def lines(captured: list[EventDict]) -> list[tuple[str, str, int]]:
    return [(line["reason"], line["peer"], line.get("count", 1)) for line in captured]


async def test_many_failures_of_a_reason_are_one_line_and_their_number() -> None:
    """Whoever can fail a handshake cannot fill a disk."""
    with capture_logs() as captured:
        failures = FailureLog(get_log("test"), "handshake.failed", interval_seconds=0.05)
        for number in range(100):
            failures.add("not_tls", peer=f"p{number}", detail="what")
        failures.add("peer_closed", peer="q", detail="gone")
        assert lines(captured) == [("not_tls", "p0", 1), ("peer_closed", "q", 1)]
        await eventually(lambda: len(captured) == 3)
        assert lines(captured)[2:] == [("not_tls", "p99", 99)]
        assert captured[2]["detail"] == "what"


async def test_a_failure_after_a_quiet_interval_is_told_at_once() -> None:
    with capture_logs() as captured:
        failures = FailureLog(get_log("test"), "handshake.failed", interval_seconds=0.02)
        failures.add("not_tls", peer="p0")
        await eventually(lambda: not failures.waiting)
        failures.add("not_tls", peer="p1")
        assert lines(captured) == [("not_tls", "p0", 1), ("not_tls", "p1", 1)]
        failures.close()


async def test_closing_tells_what_is_untold() -> None:
    with capture_logs() as captured:
        failures = FailureLog(get_log("test"), "handshake.failed", interval_seconds=3600)
        for peer in ("p0", "p1", "p2"):
            failures.add("not_tls", peer=peer)
        failures.close()
        assert lines(captured) == [("not_tls", "p0", 1), ("not_tls", "p2", 2)]
        assert failures.waiting == 0


async def test_each_cause_has_a_few_lines_of_its_own() -> None:
    """One who fails all the time hides nobody else."""
    with capture_logs() as captured:
        failures = FailureLog(get_log("test"), "call.refused", interval_seconds=3600, burst=2)
        for peer in ("p0", "p0", "p0", "p0", "p1"):
            failures.add("CERTIFICATE_MISSING", by=peer, peer=peer)
        assert lines(captured) == [(MISSING, "p0", 1), (MISSING, "p0", 1), (MISSING, "p1", 1)]
        failures.close()
        assert lines(captured)[3:] == [(MISSING, "p0", 2)]


async def test_very_many_causes_are_told_together() -> None:
    """A scan from many addresses fills neither a disk nor the memory."""
    with capture_logs() as captured:
        failures = FailureLog(get_log("test"), "handshake.failed", interval_seconds=3600)
        for number in range(5000):
            failures.add("not_tls", by=f"p{number}", peer=f"p{number}")
        assert failures.waiting == len(captured) == 257
        failures.close()
        assert sum(count for _, _, count in lines(captured)) == 5000
