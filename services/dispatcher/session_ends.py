"""How sessions of this dispatcher end: here at once, in the registry as soon as it answers."""

import asyncio
from collections import deque

import msgspec

from cloudhub.v1.link_pb2 import (
    CLOSE_REASON_EVICTED,
    CLOSE_REASON_NODE_DELETED,
    CLOSE_REASON_OVERLOADED,
    CLOSE_REASON_REVOKED,
    CLOSE_REASON_SUPERSEDED,
    CLOSE_REASON_TRANSFERRED,
    CloseReason,
)
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.resources_pb2 import DispatcherResources
from cloudhub.v1.sessions_pb2 import CloseSession
from services.dispatcher.caution import LinkCut
from services.dispatcher.delivery import Delivery
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_session import NodeSession
from services.dispatcher.outbox.records import ForgetNode
from services.dispatcher.sessions_client import SessionsClient
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.backoff import Backoff
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.ids import new_id
from services.runtime.line_budget import LineBudget
from services.runtime.logs import get_log
from services.runtime.tracing import Tracing, trace_id_of

_log = get_log(__name__)

# The hub gives these up although the link is whole, so the edge is told (docs/protocol.md).
_TELL_EDGE = frozenset(
    {CLOSE_REASON_EVICTED, CLOSE_REASON_REVOKED, CLOSE_REASON_NODE_DELETED, CLOSE_REASON_OVERLOADED}
)


def reason_name(reason: CloseReason.ValueType) -> str:
    """`keepalive_timeout` for CLOSE_REASON_KEEPALIVE_TIMEOUT."""
    return CloseReason.Name(reason).removeprefix("CLOSE_REASON_").lower()


class SessionEnds:
    """Ends sessions exactly once. `run` must be awaited by the owner."""

    def __init__(
        self,
        delivery: Delivery,
        sessions: SessionsClient,
        upstream: Upstream,
        clock: Clock,
        metrics: DispatcherMetrics,
        tracing: Tracing,
    ) -> None:
        self._delivery = delivery
        self._sessions = sessions
        self._upstream = upstream
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        # At most one per session ended here; it waits while sessions does not answer.
        self._waiting: deque[CloseSession] = deque()
        self._lines = LineBudget()
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def end(
        self,
        session: NodeSession,
        reason: CloseReason.ValueType,
        detail: str,
        *,
        close_link: bool,
        cut: LinkCut | None = None,
    ) -> None:
        """Ends an active session; a session that has ended already is left alone. `cut` is how the edge ended
        the link, if it was the edge."""
        if not session.active:
            return
        if cut is not None:
            self._delivery.cut(session, cut)
        self._finish(session, reason, detail, close_link=close_link)
        self.close(session.node_id, session.epoch, reason)

    def superseded(self, session: NodeSession, reason: CloseReason.ValueType) -> None:
        """The registry has ended this session already."""
        if session.active:
            self._finish(session, reason, "the node opened another link", close_link=True)

    def let_go(self, session: NodeSession) -> None:
        """The session goes on elsewhere, or waits for its link: nothing ends, nobody is told."""
        self._delivery.let_go(session)
        self._upstream.session_left(session.node_id, session.epoch)

    def moved(self, session: NodeSession, detail: str) -> None:
        """The session has another dispatcher, or another stream and epoch here."""
        self.let_go(session)
        name = reason_name(CLOSE_REASON_TRANSFERRED)
        self._metrics.sessions_closed.labels(name).inc()
        self._tell("session.moved", session, detail=detail)

    def taken_away(self, session: NodeSession) -> None:
        """The registry gave the session to another dispatcher. The connector may not know that one: its
        verdict can have been lost."""
        if session.active:
            self.moved(session, "sessions says that another dispatcher has it")
            session.stream.close(session.link, session.epoch, CLOSE_REASON_TRANSFERRED, "")
            # The connector has nothing more to say here about a link that it takes for let go.
            if session.stream.links.get(session.link) is session:
                del session.stream.links[session.link]

    def expired(self, session: NodeSession, reason: CloseReason.ValueType, detail: str) -> None:
        """A session that was let go has ended."""
        self._delivery.end_answers(session)
        self._report(session, reason, detail)

    def _finish(
        self, session: NodeSession, reason: CloseReason.ValueType, detail: str, *, close_link: bool
    ) -> None:
        self._delivery.remove(session)
        if reason == CLOSE_REASON_SUPERSEDED:
            self._delivery.notices.superseded(session.node_id, session.epoch, detail)
        elif reason == CLOSE_REASON_NODE_DELETED:
            self._delivery.notices.deleted(session.node_id)
        if close_link:
            if reason in _TELL_EDGE:
                self._tell_edge(session)
            session.stream.close(session.link, session.epoch, reason, detail)
        self._report(session, reason, detail)

    def _report(self, session: NodeSession, reason: CloseReason.ValueType, detail: str) -> None:
        name = reason_name(reason)
        self._metrics.sessions_closed.labels(name).inc()
        self._delivery.trace_lost(session, name)
        if session.traceparent and self._tracing.enabled:
            self._tracing.record(
                "disconnect",
                session.traceparent,
                attributes={
                    "cloudhub.node.id": session.node_id,
                    "cloudhub.session.epoch": session.epoch,
                    "cloudhub.reason": name,
                },
            )
        self._tell("session.closed", session, reason=name, detail=detail)

    def _tell(self, event: str, session: NodeSession, **facts: str) -> None:
        """A line of the log, unless its node had too many."""
        told = self._lines.take(session.node_id, self._clock.monotonic())
        if told is not None:
            _log.info(
                event,
                node=session.node_id,
                epoch=session.epoch,
                trace_id=trace_id_of(session.traceparent),
                **facts,
                **told,
            )

    def _tell_edge(self, session: NodeSession) -> None:
        now_ms = self._clock.wall_ms()
        content = {"event_type": "disconnected", "timestamp": now_ms // 1000, "client_id": session.node_id}
        message = Message(
            id=new_id(),
            timestamp_ms=now_ms,
            source="cloudhub",
            group="resource",
            operation="disconnected",
            resource=f"node/{session.node_id}",
            content=msgspec.json.encode(content),
        )
        actions = session.policy.direct(message, len(message.content), self._clock.monotonic())
        self._delivery.perform(session, actions or ())

    def close(self, node_id: str, epoch: int, reason: CloseReason.ValueType) -> None:
        """Tells the registry, as often as it takes."""
        if reason == CLOSE_REASON_REVOKED:
            reason = CLOSE_REASON_EVICTED  # as the registry calls it, also of a former release
        self._waiting.append(CloseSession(node_id=node_id, epoch=epoch, reason=reason))
        self._idle.clear()
        self._wake.set()

    def closing(self) -> set[tuple[str, int]]:
        """Node and epoch of every session of which the registry has not confirmed yet that it has ended."""
        return {(end.node_id, end.epoch) for end in self._waiting}

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.session_ends += len(self._waiting)

    async def flush(self) -> None:
        """Returns when the registry knows of every end."""
        await self._idle.wait()

    async def run(self) -> None:
        """Tells the registry until cancelled."""
        backoff, failures = Backoff(0.1, 5.0), 0
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                batch = [self._waiting[index] for index in range(min(len(self._waiting), 1024))]
                try:
                    verdicts = await self._sessions.close(batch)
                except HubError as error:
                    failures += 1
                    _log.warning("sessions.close_failed", error=str(error), sessions=len(self._waiting))
                    await asyncio.sleep(backoff.random_delay(failures))
                    continue
                failures = 0
                for verdict in verdicts:
                    ended = self._waiting.popleft()
                    if verdict.reason == CLOSE_REASON_NODE_DELETED:
                        self._delivery.writer.forget(ForgetNode(ended.node_id, ended.epoch))
                    if verdict.HasField("event"):
                        self._upstream.session_closed(verdict.event)
            self._idle.set()
