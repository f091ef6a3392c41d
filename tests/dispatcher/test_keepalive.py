"""When a silent link is given up: `services.dispatcher.keepalive`, on a clock of its own."""

from typing import Any, cast

import pytest

from services.dispatcher.keepalive import Keepalive
from services.dispatcher.node_session import NodeSession
from services.dispatcher.session_ends import SessionEnds
from tests.support.dispatcher import SteppedClock

SECONDS = 45.0
STEP = 0.5


class Ends:
    """Remembers how a session ended."""

    def __init__(self) -> None:
        self.detail = ""

    def end(self, session: NodeSession, reason: int, detail: str, **_: Any) -> None:
        session.active = False
        self.detail = detail


class Link:
    """An edge behind a connector: beats every `beat` seconds, and answers pings or does not."""

    def __init__(self, beat: float, *, answers: bool, held_until: float = 0.0) -> None:
        self.clock, self.ends = SteppedClock(), Ends()
        self.began = self.clock.monotonic()
        self.keepalive = Keepalive(SECONDS, self.clock, cast(SessionEnds, self.ends))
        nothing: Any = None
        now = self.began
        self.session = NodeSession("edge-1", "p1", 7, cast(Any, self), 1, nothing, "", now)
        self.session.active = True
        self.keepalive.watch(self.session)
        self.last_input_at, self.pings = now, 0
        self.beat, self.answers, self.held_until = beat, answers, held_until
        self._reports: list[float] = []

    def probe(self, link: int, epoch: int, *, ping: bool) -> None:
        """ConnectorStream: answered with the next step, a ping with the one after."""
        now = self.clock.monotonic()
        self._reports.append(now - self.last_input_at)
        if ping:
            self.pings += 1
            if self.answers:
                self.last_input_at = now

    def live(self, seconds: float) -> float:
        """Lets time go by; how long the session lasted."""
        end = self.began + seconds
        while self.clock.monotonic() < end and self.session.active:
            self.clock.advance(STEP)
            now = self.clock.monotonic() - self.began
            if self.beat and now % self.beat < STEP:
                self.session.last_input_at = self.last_input_at = self.clock.monotonic()
            if now < self.held_until:
                continue
            self.keepalive._deadlines.fire_due()
            reports, self._reports = self._reports, []
            for idle in reports:
                self.keepalive.reported(self.session, idle)
        return self.clock.monotonic() - self.began


def test_a_black_hole_is_found_in_time_after_one_ping() -> None:
    """C4: 4/3 of the keepalive, and never more than 3/2."""
    link = Link(0.0, answers=False)
    lasted = link.live(1000.0)
    assert SECONDS * 1.3 < lasted < SECONDS * 1.5
    assert link.pings == 1
    assert "no answer to a ping" in link.ends.detail


@pytest.mark.parametrize("beat", [0.0, 60.0, 15.0])
def test_an_edge_that_answers_pings_keeps_its_link_however_slow_its_beat(beat: float) -> None:
    """C9: `heartbeat: 60`. One that beats in time is never asked."""
    link = Link(beat, answers=True)
    assert link.live(3600.0) >= 3600.0
    assert (link.pings == 0) == (beat == 15.0)


def test_a_beat_that_comes_while_the_edge_is_asked_counts() -> None:
    link = Link(50.0, answers=False)
    assert link.live(3600.0) >= 3600.0
    assert link.pings > 10


def test_a_dispatcher_that_was_held_up_ends_nobody_before_the_edge_was_asked() -> None:
    """Whatever time went by meanwhile: the edge has its probes to answer."""
    link = Link(0.0, answers=False, held_until=500.0)
    assert link.live(1000.0) > 500.0 + 0.3 * SECONDS
    kept = Link(0.0, answers=True, held_until=500.0)
    assert kept.live(1000.0) >= 1000.0
