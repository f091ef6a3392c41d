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


class Keepalive:
    """Ends sessions whose link brought no byte for `seconds`.

    A deadline does not end a session: it makes the connector say how long the link has been
    silent. That answer travels behind all input that was queued, so a process that was held up
    ends nobody.
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
            self._deadlines.set(now + self.seconds, session)
        elif now - session.last_input_at < self.seconds:
            self._deadlines.set(session.last_input_at + self.seconds, session)
        else:
            session.stream.probe(session.link, session.epoch)
            self._deadlines.set(now + self.seconds * _PROBE_AGAIN, session)

    def reported(self, session: NodeSession, idle_seconds: float) -> None:
        """The connector's answer to a probe."""
        now = self._clock.monotonic()
        session.last_input_at = max(session.last_input_at, now - max(0.0, idle_seconds))
        if not session.paused and now - session.last_input_at >= self.seconds:
            detail = f"no byte for {now - session.last_input_at:.1f} s, allowed are {self.seconds:g} s"
            silence = LinkCut(silent=True)
            self._ends.end(session, CLOSE_REASON_KEEPALIVE_TIMEOUT, detail, close_link=True, cut=silence)
