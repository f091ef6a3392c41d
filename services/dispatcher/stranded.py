"""Sessions without a link: their connector's stream is lost, and the link may come back over another one."""

from cloudhub.v1.link_pb2 import CLOSE_REASON_CONNECTOR_LOST, CLOSE_REASON_SUPERSEDED, CloseReason
from cloudhub.v1.resources_pb2 import DispatcherResources
from services.dispatcher.deadlines import Deadlines
from services.dispatcher.node_session import NodeSession
from services.dispatcher.session_ends import SessionEnds
from services.runtime.clock import Clock


class Stranded:
    """Keeps each for `seconds`, then ends it with CONNECTOR_LOST. `run` must be awaited by the owner.

    A stranded session sends nothing, and nothing of it is judged. Its link comes back by a transfer, here or
    at another dispatcher; a new session of the node ends it at once. At most one per node.
    """

    def __init__(self, seconds: float, clock: Clock, ends: SessionEnds) -> None:
        self.seconds = seconds
        self._clock = clock
        self._ends = ends
        self._sessions: dict[str, NodeSession] = {}
        self._deadlines: Deadlines[NodeSession] = Deadlines(clock, self._due)

    def __len__(self) -> int:
        return len(self._sessions)

    async def run(self) -> None:
        """Works until cancelled."""
        await self._deadlines.run()

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.stranded_sessions += len(self._sessions)
        held.deadlines += len(self._deadlines)

    def get(self, node_id: str) -> NodeSession | None:
        """The node's session, if it waits here."""
        return self._sessions.get(node_id)

    def holds(self, node_id: str, epoch: int) -> bool:
        """Whether this session waits here."""
        session = self._sessions.get(node_id)
        return session is not None and session.epoch == epoch

    def epochs(self) -> dict[str, int]:
        """The sessions that wait, by node."""
        return {node_id: session.epoch for node_id, session in self._sessions.items()}

    def keep(self, session: NodeSession) -> None:
        """The session waits for its link from now on."""
        self._ends.let_go(session)
        self._sessions[session.node_id] = session
        self._deadlines.set(self._clock.monotonic() + self.seconds, session)

    def returned(self, node_id: str) -> None:
        """The node's session was transferred; nothing ends."""
        session = self._sessions.pop(node_id, None)
        if session is not None:
            self._ends.moved(session, "its link came back")

    def superseded(self, node_id: str) -> None:
        """The node has a newer session; the registry has ended this one."""
        session = self._sessions.pop(node_id, None)
        if session is not None:
            self._ends.expired(session, CLOSE_REASON_SUPERSEDED, "the node opened another link")

    def taken_away(self, node_id: str) -> None:
        """The registry gave the session to another dispatcher."""
        session = self._sessions.pop(node_id, None)
        if session is not None:
            self._ends.moved(session, "sessions says that another dispatcher has it")

    def end(self, node_id: str, reason: CloseReason.ValueType, detail: str) -> None:
        """Somebody asks for its end; the link learns of it when it asks to be transferred."""
        session = self._sessions.pop(node_id, None)
        if session is not None:
            self._ends.expired(session, reason, detail)
            self._ends.close(session.node_id, session.epoch, reason)

    def _due(self, session: NodeSession) -> None:
        if self._sessions.get(session.node_id) is session:
            self.end(session.node_id, CLOSE_REASON_CONNECTOR_LOST, "its connector did not come back")
