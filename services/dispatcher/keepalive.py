"""Finds links that have fallen silent. The dispatcher detects, sessions records."""

from cloudhub.v1.link_pb2 import CLOSE_REASON_KEEPALIVE_TIMEOUT
from cloudhub.v1.resources_pb2 import DispatcherResources
from services.dispatcher.caution import LinkCut
from services.dispatcher.deadlines import Deadlines
from services.dispatcher.node_session import NodeSession
from services.dispatcher.session_ends import SessionEnds
from services.runtime.clock import Clock

# A probe unanswered for this part of the keepalive is sent again; a connector that does not answer
# at all is found out by the silence of its stream.
_PROBE_AGAIN = 1 / 9
# An edge that is asked for a sign of life has so many probes to answer, and almost their time: silence is
# found after 4/3 of the keepalive, and whoever was held up for some of it answers nevertheless.
_ANSWER_PROBES = 3
_ANSWER_PART = 0.3


class Keepalive:
    """Ends sessions whose link brought no byte for `seconds`, nor for a third of that when it was asked.

    A deadline does not end a session: it makes the connector say how long the link has been
    silent, and ping the edge, since one whose own beat is slower is as alive as others. That answer
    travels behind all input that was queued, so a process that was held up ends nobody.
    """

    def __init__(self, seconds: float, clock: Clock, ends: SessionEnds) -> None:
        self.seconds = seconds
        self._clock = clock
        self._ends = ends
        self._deadlines: Deadlines[NodeSession] = Deadlines(clock, self._due)

    async def run(self) -> None:
        """Works until cancelled."""
        await self._deadlines.run()

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.deadlines += len(self._deadlines)

    def watch(self, session: NodeSession) -> None:
        """From now on the session is held to its keepalive."""
        self._deadlines.set(session.last_input_at + self.seconds, session)

    def _due(self, session: NodeSession) -> None:
        if not session.active:
            return
        now = self._clock.monotonic()
        if session.paused:
            session.asked_at = None
            self._deadlines.set(now + self.seconds, session)
        elif now - session.last_input_at < self.seconds:
            session.asked_at = None
            self._deadlines.set(session.last_input_at + self.seconds, session)
        else:
            session.stream.probe(session.link, session.epoch, ping=session.asked_at is None)
            self._deadlines.set(now + self.seconds * _PROBE_AGAIN, session)

    def reported(self, session: NodeSession, idle_seconds: float) -> None:
        """The connector's answer to a probe."""
        now = self._clock.monotonic()
        session.last_input_at = max(session.last_input_at, now - max(0.0, idle_seconds))
        silent_seconds = now - session.last_input_at
        if session.paused or silent_seconds < self.seconds:
            session.asked_at = None
            return
        if session.asked_at is None:
            # It was pinged with the probe that this answers.
            session.asked_at, session.unanswered = now, 0
            return
        session.unanswered += 1
        answer_seconds = now - session.asked_at
        if session.unanswered >= _ANSWER_PROBES and answer_seconds >= _ANSWER_PART * self.seconds:
            detail = (
                f"no byte for {silent_seconds:.1f} s, allowed are {self.seconds:g} s, "
                f"and no answer to a ping for {answer_seconds:.1f} s"
            )
            silence = LinkCut(silent=True)
            self._ends.end(session, CLOSE_REASON_KEEPALIVE_TIMEOUT, detail, close_link=True, cut=silence)
