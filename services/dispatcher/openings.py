"""From an announced link to a live session: open, claim, activate, admit; a batch at a time. Or from a link
that moves here: transfer, claim, admit."""

import asyncio
from collections import deque
from collections.abc import Sequence

from cloudhub.v1 import link_pb2 as link_pb
from cloudhub.v1.resources_pb2 import DispatcherResources
from cloudhub.v1.sessions_pb2 import OpenSession, OpenVerdict, SessionRef, TransferSession, TransferVerdict
from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.delivery import Delivery
from services.dispatcher.entry import Cause
from services.dispatcher.keepalive import Keepalive
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_session import NodeSession
from services.dispatcher.outbox.records import Loaded
from services.dispatcher.session_ends import SessionEnds, reason_name
from services.dispatcher.sessions_client import SessionsClient
from services.dispatcher.stranded import Stranded
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.line_budget import LineBudget
from services.runtime.logs import get_log
from services.runtime.names import (
    check_certificate_serial,
    check_label,
    check_node_id,
    check_project_id,
    check_transport,
)
from services.runtime.tracing import trace_id_of

_log = get_log(__name__)

MOST_PER_BATCH = 512
# The connector says when to come back, as it is told by its own settings.
AS_THE_CONNECTOR_SAYS = 0.0
# The largest integer that a row of the registry holds.
MOST_LINK = 2**63 - 1


class Opening:
    """A link without a verdict yet: announced, or with `former_epoch` asking to be transferred."""

    __slots__ = ("announcement", "ended", "former_epoch", "gone", "stream")

    def __init__(
        self, stream: ConnectorStream, announcement: link_pb.LinkAnnouncement, former_epoch: int = 0
    ) -> None:
        self.stream = stream
        self.announcement = announcement
        self.former_epoch = former_epoch
        # Nobody waits for the verdict any more: the link has ended, for this reason, or its stream is lost.
        self.gone = False
        self.ended = link_pb.CLOSE_REASON_UNSPECIFIED

    @property
    def is_end_to_tell(self) -> bool:
        """A link that had a session and ended is taken over all the same: somebody has to end that."""
        return self.gone and self.former_epoch > 0 and self.ended != link_pb.CLOSE_REASON_UNSPECIFIED

    def is_of(self, session: NodeSession) -> bool:
        """Whether the link is that of the session, over whichever stream."""
        there = (session.stream.connector_id, session.link)
        return there == (self.stream.connector_id, self.announcement.link)


def _fault_of(announcement: link_pb.LinkAnnouncement) -> str | None:
    """What sessions would refuse, and the whole batch with it."""
    return (
        check_node_id(announcement.node_id)
        or check_project_id(announcement.project_id)
        or check_transport(announcement.transport)
        or check_label(announcement.peer_address)
        or check_certificate_serial(announcement.certificate_serial)
        or (None if announcement.link <= MOST_LINK else f"no link has the number {announcement.link}")
    )


class Openings:
    """Opens sessions and takes sessions over. `run` must be awaited by the owner.

    The order that nothing may change: the session is open in the registry, the pool is registered, this
    dispatcher owns the node's rows, the session is ACTIVE, `connected` is on its way upstream, the link
    is admitted, sending starts. A session that moves is ACTIVE from the start, and nothing is told upstream.
    """

    def __init__(
        self,
        delivery: Delivery,
        sessions: SessionsClient,
        upstream: Upstream,
        ends: SessionEnds,
        keepalive: Keepalive,
        stranded: Stranded,
        clock: Clock,
        metrics: DispatcherMetrics,
    ) -> None:
        self._lines, self._refused_lines = LineBudget(), LineBudget()
        self._delivery = delivery
        self._sessions = sessions
        self._upstream = upstream
        self._ends = ends
        self._keepalive = keepalive
        self._stranded = stranded
        self._clock = clock
        self._metrics = metrics
        self._waiting: deque[Opening] = deque()
        self._wake = asyncio.Event()
        self.draining = False

    def drain(self) -> None:
        """Refuses all that comes, and what waits to move here: it would have to move again. New links that
        wait are opened, since their edges would be sent away; what sessions was asked gets its verdict."""
        self.draining = True
        waiting, self._waiting = self._waiting, deque()
        for opening in waiting:
            if opening.gone or not opening.former_epoch:
                self._waiting.append(opening)
            else:
                self._refuse_draining(opening)

    def announce(self, opening: Opening) -> None:
        """Queues a link, new or to be transferred; its verdict goes out on its stream."""
        announcement = opening.announcement
        fault = _fault_of(announcement)
        if fault:
            self._refuse(opening, link_pb.REFUSAL_REASON_FORBIDDEN, fault, 0.0)
        elif self.draining:
            self._refuse_draining(opening)
        else:
            self._waiting.append(opening)
            self._wake.set()

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.openings += len(self._waiting)

    async def run(self) -> None:
        """Opens until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._open(self._next_batch())

    def _next_batch(self) -> list[Opening]:
        """The next openings, one per node: a second link of a node waits for the first's verdict."""
        batch: dict[str, Opening] = {}
        later: list[Opening] = []
        while self._waiting and len(batch) < MOST_PER_BATCH:
            opening = self._waiting.popleft()
            if opening.gone and not opening.is_end_to_tell:
                continue
            if opening.announcement.node_id in batch:
                later.append(opening)
            else:
                batch[opening.announcement.node_id] = opening
        self._waiting.extendleft(reversed(later))
        return list(batch.values())

    async def _open(self, batch: Sequence[Opening]) -> None:
        opened = await self._ask_to_open([opening for opening in batch if not opening.former_epoch])
        opened += await self._ask_to_transfer([opening for opening in batch if opening.former_epoch])
        if opened:
            await self._take_over(opened)

    async def _ask_to_open(self, batch: Sequence[Opening]) -> list[tuple[Opening, NodeSession]]:
        if not batch:
            return []
        try:
            verdicts = await self._sessions.open([self._request(opening) for opening in batch])
        except HubError as error:
            for opening in batch:
                self._unavailable(opening, error.detail)
            return []
        opened: list[tuple[Opening, NodeSession]] = []
        for opening, verdict in zip(batch, verdicts, strict=True):
            if verdict.HasField("refusal"):
                refusal = verdict.refusal
                self._refuse(opening, refusal.reason, refusal.detail, refusal.retry_after_seconds)
            else:
                opened.append((opening, self._opened(opening, verdict)))
        return opened

    async def _ask_to_transfer(self, batch: Sequence[Opening]) -> list[tuple[Opening, NodeSession]]:
        if not batch:
            return []
        wanted = [
            TransferSession(
                node_id=opening.announcement.node_id,
                epoch=opening.former_epoch,
                connector_id=opening.stream.connector_id,
                link=opening.announcement.link,
            )
            for opening in batch
        ]
        try:
            verdicts = await self._sessions.transfer(wanted)
        except HubError as error:
            for opening in batch:
                self._unavailable(opening, error.detail)
            return []
        granted: list[tuple[Opening, NodeSession]] = []
        for opening, verdict in zip(batch, verdicts, strict=True):
            if verdict.epoch:
                granted.append((opening, self._granted(opening, verdict)))
            else:
                detail = f"the session is over: {reason_name(verdict.reason)}"
                self._refuse(opening, link_pb.REFUSAL_REASON_NOT_NEWEST, detail, 0.0, verdict.reason)
        return granted

    def _request(self, opening: Opening) -> OpenSession:
        announcement = opening.announcement
        return OpenSession(
            node_id=announcement.node_id,
            project_id=announcement.project_id,
            connector_id=opening.stream.connector_id,
            link=announcement.link,
            transport=announcement.transport,
            peer_address=announcement.peer_address,
            traceparent=announcement.traceparent,
            certificate_serial=announcement.certificate_serial,
        )

    def _opened(self, opening: Opening, verdict: OpenVerdict) -> NodeSession:
        node_id = opening.announcement.node_id
        former = self._delivery.sessions.get(node_id)
        if former is not None:
            self._ends.superseded(former, link_pb.CLOSE_REASON_SUPERSEDED)
        self._stranded.superseded(node_id)
        if verdict.earlier_events:
            self._upstream.adopt_events(verdict.earlier_events)
        if verdict.HasField("superseded_event"):
            self._upstream.session_closed(verdict.superseded_event)
        return self._register(opening, verdict.epoch)

    def _granted(self, opening: Opening, verdict: TransferVerdict) -> NodeSession:
        node_id = opening.announcement.node_id
        former = self._delivery.sessions.get(node_id)
        if former is not None and opening.is_of(former):
            self._ends.moved(former, "its link came back")
        elif former is not None:
            # The registry's directive to end it is still on its way.
            self._ends.superseded(former, link_pb.CLOSE_REASON_SUPERSEDED)
        stranded = self._stranded.get(node_id)
        if stranded is not None and opening.is_of(stranded):
            self._stranded.returned(node_id)
        else:
            self._stranded.superseded(node_id)
        if verdict.earlier_events:
            self._upstream.adopt_events(verdict.earlier_events)
        return self._register(opening, verdict.epoch)

    def _register(self, opening: Opening, epoch: int) -> NodeSession:
        announcement = opening.announcement
        session = NodeSession(
            announcement.node_id,
            announcement.project_id,
            epoch,
            opening.stream,
            announcement.link,
            self._delivery.new_policy(
                announcement.node_id, epoch, opening.stream, announcement.max_window_messages
            ),
            announcement.traceparent,
            self._clock.monotonic(),
            announcement.open_seconds,
        )
        self._delivery.register(session)
        return session

    async def _take_over(self, opened: list[tuple[Opening, NodeSession]]) -> None:
        loaded = await self._delivery.claim(
            (session, opening.former_epoch > 0) for opening, session in opened
        )
        fresh: list[tuple[Opening, NodeSession, Loaded]] = []
        for (opening, session), rows in zip(opened, loaded, strict=True):
            if isinstance(rows, HubError):
                self._give_up(opening, session, rows.detail)
            elif not opening.former_epoch:
                fresh.append((opening, session, rows))
            elif rows.fenced:
                self._ends.let_go(session)
                self._unavailable(opening, "the session has moved on meanwhile")
            else:
                self._admit(opening, session, rows)
        if fresh:
            await self._activate(fresh)

    async def _activate(self, fresh: list[tuple[Opening, NodeSession, Loaded]]) -> None:
        refs = [SessionRef(node_id=session.node_id, epoch=session.epoch) for _, session, _ in fresh]
        try:
            verdicts = await self._sessions.activate(refs)
        except HubError as error:
            for opening, session, _ in fresh:
                self._give_up(opening, session, error.detail)
            return
        for (opening, session, rows), verdict in zip(fresh, verdicts, strict=True):
            if rows.fenced or not verdict.active:
                self._give_up(opening, session, "another link of the node was opened meanwhile")
                continue
            self._upstream.session_opened(verdict.event)
            self._admit(opening, session, rows)

    def _admit(self, opening: Opening, session: NodeSession, rows: Loaded) -> None:
        stream = opening.stream
        if opening.gone and opening.former_epoch and not opening.ended:
            # The link is whole; only the stream that asked for it is lost.
            self._count(opening, "admitted")
            self._stranded.keep(session)
            return
        if not opening.gone:
            stream.admit(session.link, session.epoch)
            stream.links[session.link] = session
        self._count(opening, "admitted")
        cause = Cause.LINK_MOVED if opening.former_epoch else Cause.SESSION_OPENED
        if not opening.former_epoch:
            self._delivery.notices.opened(session.node_id, session.epoch)
        self._delivery.start(session, rows, cause)
        self._keepalive.watch(session)
        told = self._lines.take(session.node_id, self._clock.monotonic())
        if told is not None:
            _log.info(
                "session.taken_over" if opening.former_epoch else "session.opened",
                node=session.node_id,
                epoch=session.epoch,
                connector=stream.name,
                pending=rows.pending,
                trace_id=trace_id_of(session.traceparent),
                **told,
            )
        if opening.gone:
            reason = opening.ended or link_pb.CLOSE_REASON_TRANSPORT_ERROR
            self._ends.end(session, reason, "the link ended while it was opened", close_link=False)

    def _give_up(self, opening: Opening, session: NodeSession, detail: str) -> None:
        if opening.former_epoch:
            # The registry says that this dispatcher has it; the link stays where it is and asks again.
            self._stranded.keep(session)
        else:
            self._delivery.remove(session)
            self._ends.close(session.node_id, session.epoch, link_pb.CLOSE_REASON_DISPATCHER_LOST)
        self._unavailable(opening, detail)

    def _count(self, opening: Opening, verdict: str) -> None:
        counter = self._metrics.transfers if opening.former_epoch else self._metrics.sessions_opened
        counter.labels(verdict).inc()

    def _refuse_draining(self, opening: Opening) -> None:
        self._unavailable(opening, "the dispatcher is stopping", nothing_asked=True)

    def _unavailable(self, opening: Opening, detail: str, *, nothing_asked: bool = False) -> None:
        reason = link_pb.REFUSAL_REASON_UNAVAILABLE
        self._refuse(opening, reason, detail, AS_THE_CONNECTOR_SAYS, nothing_asked=nothing_asked)

    def _refuse(
        self,
        opening: Opening,
        reason: link_pb.RefusalReason.ValueType,
        detail: str,
        retry_after_seconds: float,
        close_reason: link_pb.CloseReason.ValueType = link_pb.CLOSE_REASON_UNSPECIFIED,
        *,
        nothing_asked: bool = False,
    ) -> None:
        name = link_pb.RefusalReason.Name(reason).removeprefix("REFUSAL_REASON_").lower()
        self._count(opening, name)
        node_id = opening.announcement.node_id[:253]
        # Each reason has lines of its own: a limit that is reached all the time hides no revocation.
        told = self._refused_lines.take(f"{node_id} {name}", self._clock.monotonic())
        if told is not None:
            _log.info("session.refused", node=node_id, reason=name, detail=detail, **told)
        link = opening.announcement.link
        opening.stream.links.pop(link, None)
        if not opening.gone:
            refusal = link_pb.Refusal(
                reason=reason,
                detail=detail,
                retry_after_seconds=retry_after_seconds,
                close_reason=close_reason,
                nothing_asked=nothing_asked,
            )
            opening.stream.refuse(link, refusal)
