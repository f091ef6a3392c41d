"""LinkService: frames of many links over one stream per connector."""

import asyncio
from collections.abc import Callable, Iterable

import grpc

from cloudhub.v1 import link_pb2 as pb
from cloudhub.v1.link_pb2_grpc import LinkServiceServicer
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.resources_pb2 import DispatcherResources
from cloudhub.v1.sessions_pb2 import ConnectorLoad
from services.dispatcher.caution import LinkCut
from services.dispatcher.connector_room import RoomLimits
from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.delivery import Delivery
from services.dispatcher.keepalive import Keepalive
from services.dispatcher.lease import Lease
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_notices import Notice
from services.dispatcher.node_session import NodeSession
from services.dispatcher.openings import Opening, Openings
from services.dispatcher.session_ends import SessionEnds
from services.dispatcher.sizes import check_number
from services.dispatcher.stranded import Stranded
from services.dispatcher.upstream.routing import (
    Acknowledgement,
    DurableUpload,
    NegativeAcknowledgement,
    answer_route,
    classify,
    is_receipt,
)
from services.dispatcher.upstream.routing import (
    Keepalive as KeepaliveRoute,
)
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.clock import Clock
from services.runtime.errors import InvalidRequest
from services.runtime.interceptor import next_request
from services.runtime.logs import get_log
from services.runtime.names import check_instance_id, check_label, check_version

_log = get_log(__name__)


def _check_hello(hello: pb.ConnectorHello) -> None:
    """What is said here goes to sessions with every opening and renewal of the dispatcher, for all
    connectors: a fault in it must not get that far."""
    for field, fault in (
        ("hello.connector_id", check_instance_id(hello.connector_id)),
        ("hello.name", check_label(hello.name)),
        ("hello.address", check_label(hello.address)),
        ("hello.version", check_version(hello.version)),
    ):
        if fault:
            raise InvalidRequest(field, fault)


class LinkServicer(LinkServiceServicer):
    """Accepts connectors. `run` must be awaited by the owner."""

    def __init__(
        self,
        dispatcher_id: str,
        name: str,
        lease_seconds: float,
        delivery: Delivery,
        openings: Openings,
        ends: SessionEnds,
        keepalive: Keepalive,
        stranded: Stranded,
        lease: Lease,
        upstream: Upstream,
        clock: Clock,
        metrics: DispatcherMetrics,
        room_limits: RoomLimits | None = None,
    ) -> None:
        self._id = dispatcher_id
        self._room_limits = room_limits
        self._name = name
        self._lease_seconds = lease_seconds
        self._delivery = delivery
        self._openings = openings
        self._ends = ends
        self._keepalive = keepalive
        self._stranded = stranded
        self._lease = lease
        self._upstream = upstream
        self._clock = clock
        self._metrics = metrics
        # In the order in which they came.
        self._streams: dict[ConnectorStream, None] = {}
        self._finishing = False
        self._detached = asyncio.Event()
        self.on_drained_connector: Callable[[], None] = lambda: None
        """Called when a connector says that it takes no new links."""

    async def run(self) -> None:
        """Heartbeats to every connector, a third of the lease apart, until cancelled."""
        while True:
            await asyncio.sleep(self._lease_seconds / 3)
            for stream in self._streams:
                stream.heartbeat(self._lease.age_seconds())
                self._relieve(stream)

    def _relieve(self, stream: ConnectorStream) -> None:
        """Where nodes wait since links write nothing, those that have written nothing for longest give way:
        their sessions end, and what they were sent stays pending."""
        if not stream.room.waiting or not stream.room.is_full:
            self._delivery.room_made(stream)
            return
        now = self._clock.monotonic()
        stalled = [
            (session.policy.stalled_since, link)
            for link, session in stream.links.items()
            if isinstance(session, NodeSession) and session.active and session.policy.is_stalled(now)
        ]
        for since, link in sorted(stalled):
            if stream.room.is_half_empty:
                break
            session: NodeSession = stream.links[link]
            self._metrics.stalled_links.inc()
            detail = (
                f"its link wrote none of {session.policy.unwritten_bytes} bytes in {now - since:.0f} s, "
                "and other nodes wait for the connector"
            )
            self._ends.end(session, pb.CLOSE_REASON_OVERLOADED, detail, close_link=True)
        self._delivery.room_made(stream)

    def streams(self) -> list[ConnectorStream]:
        """Those of the attached connectors, in the order in which they came."""
        return list(self._streams)

    def loads(self) -> list[ConnectorLoad]:
        """The attached connectors and how many of their links are here."""
        found: dict[str, ConnectorLoad] = {}
        for stream in self._streams:
            load = found.setdefault(
                stream.connector_id,
                ConnectorLoad(
                    connector_id=stream.connector_id,
                    name=stream.name,
                    address=stream.address,
                    version=stream.version,
                ),
            )
            load.draining = load.draining or stream.connector_drains
            load.links += sum(isinstance(link, NodeSession) for link in stream.links.values())
        return list(found.values())

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.connector_streams += len(self._streams)
        held.links += sum(len(stream.links) for stream in self._streams)

    def drain(self) -> None:
        """Asks the connectors to transfer every link."""
        self._openings.drain()
        for stream in self._streams:
            stream.draining()

    async def finish(self) -> None:
        """Ends the streams; whatever is queued on them goes out first. Returns when all are ended."""
        self._finishing = True
        for stream in self._streams:
            stream.finish()
        while self._streams:
            self._detached.clear()
            await self._detached.wait()

    async def Attach(  # type: ignore[override]  # the coroutine form, with context.read and write
        self, _: object, context: grpc.aio.ServicerContext[pb.ConnectorBatch, pb.DispatcherBatch]
    ) -> None:
        """One connector's stream, until it ends or falls silent for a lease."""
        first = await next_request(context)
        if first is None:
            raise InvalidRequest("hello.connector_id", "the first batch must say which connector attaches")
        _check_hello(first.hello)
        hello = first.hello
        stream = ConnectorStream(
            hello.connector_id, hello.name, hello.address, self._room_limits, hello.version
        )
        stream.hello(self._id, self._name, self._lease_seconds)
        self._streams[stream] = None
        self._metrics.connectors.set(len(self._streams))
        _log.info("connector.attached", connector=stream.name, connector_id=stream.connector_id)
        try:
            self._handle(stream, first)
            if self._openings.draining:
                stream.draining()
            if self._finishing:
                stream.finish()
            async with asyncio.TaskGroup() as group:
                reader = group.create_task(self._read(stream, context), name="connector-reader")
                writer = group.create_task(self._write(stream, context), name="connector-writer")
                await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
                reader.cancel()
                writer.cancel()
        finally:
            self._detach(stream)
            self._detached.set()

    async def _read(
        self,
        stream: ConnectorStream,
        context: grpc.aio.ServicerContext[pb.ConnectorBatch, pb.DispatcherBatch],
    ) -> None:
        try:
            while True:
                async with asyncio.timeout(self._lease_seconds):
                    batch = await next_request(context)
                if batch is None:
                    return
                self._handle(stream, batch)
        except TimeoutError:
            _log.warning("connector.silent", connector=stream.name, seconds=self._lease_seconds)

    async def _write(
        self,
        stream: ConnectorStream,
        context: grpc.aio.ServicerContext[pb.ConnectorBatch, pb.DispatcherBatch],
    ) -> None:
        try:
            while not stream.finished:
                for batch in await stream.next_batches():
                    await context.write(batch)
                    stream.passed_on()
                    self._delivery.room_made(stream)
        except grpc.aio.BaseError:
            # The connector is gone, and gRPC has not cancelled the call yet.
            _log.debug("connector.write_failed", connector=stream.name)

    def _detach(self, stream: ConnectorStream) -> None:
        self._streams.pop(stream, None)
        stream.questions.lost()
        self._metrics.connectors.set(len(self._streams))
        _log.info("connector.detached", connector=stream.name, links=len(stream.links))
        links, stream.links = stream.links, {}
        for link in links.values():
            if isinstance(link, Opening):
                link.gone = True
            elif link.active:
                self._stranded.keep(link)

    # -- one batch ---------------------------------------------------------------------------------

    def _handle(self, stream: ConnectorStream, batch: pb.ConnectorBatch) -> None:
        """The fields in the order of their numbers (link.proto)."""
        for field in ("announcements", "transfers", "written", "upstream", "activity", "ended", "answers"):
            check_number(field, getattr(batch, field))
        if batch.draining and not stream.connector_drains:
            stream.connector_drains = True
            self.on_drained_connector()
        for announcement in batch.announcements:
            opening = Opening(stream, announcement)
            stream.links[announcement.link] = opening
            self._openings.announce(opening)
        for transfer in batch.transfers:
            self._handle_transfer(stream, transfer)
        for report in batch.written:
            session = self._session(stream, report.link, report.epoch)
            if session:
                self._delivery.written(session, report.acknowledged_through, report.direct_through)
        if batch.upstream:
            self._handle_upstream(stream, batch)
        for activity in batch.activity:
            session = self._session(stream, activity.link, activity.epoch)
            if session:
                self._keepalive.reported(session, activity.idle_seconds)
        for end in batch.ended:
            self._handle_end(stream, end)
        stream.questions.answered(batch.answers)
        self._delivery.room_made(stream)

    def _handle_transfer(self, stream: ConnectorStream, transfer: pb.LinkTransfer) -> None:
        number = transfer.link.link
        if isinstance(stream.links.get(number), Opening):
            return  # asked before; that verdict is on its way
        if not transfer.epoch:
            self._metrics.ignored.labels("transfer_without_epoch").inc()
            return
        opening = Opening(stream, transfer.link, transfer.epoch)
        stream.links[number] = opening
        self._openings.announce(opening)

    def _handle_upstream(self, stream: ConnectorStream, batch: pb.ConnectorBatch) -> None:
        now = self._clock.monotonic()
        touched: dict[int, NodeSession] = {}
        for frame in batch.upstream:
            session = self._session(stream, frame.link, frame.epoch)
            if session is None:
                continue
            session.last_input_at = now
            if frame.number <= session.received:
                continue
            session.received = frame.number
            touched[frame.link] = session
            self._handle_frame(session, frame)
        for session in touched.values():
            if session.active:
                session.receipt()

    def _handle_frame(self, session: NodeSession, frame: pb.UpstreamFrame) -> None:
        message = frame.message
        route = classify(message)
        if isinstance(route, Acknowledgement):
            if is_receipt(message.content) or session.policy.knows(route.parent_id):
                self._delivery.acknowledged(session, message)
                return
            route = answer_route(message)
        elif isinstance(route, NegativeAcknowledgement):
            if session.policy.knows(route.parent_id):
                self._delivery.refused(session, message, route.text)
                return
            route = answer_route(message)
        if not isinstance(route, KeepaliveRoute):
            # Noted first: an upload that needs no storing is told to be stored at once.
            if isinstance(route, DurableUpload):
                session.unstored[frame.number] = None
            self._upstream.receive(
                session.node_id, session.epoch, route, message, frame.size_bytes, frame.number
            )

    def _handle_end(self, stream: ConnectorStream, end: pb.LinkEnd) -> None:
        link = stream.links.get(end.link)
        if isinstance(link, Opening):
            link.gone, link.ended = True, end.reason
            del stream.links[end.link]
        elif link is not None and link.epoch == end.epoch:
            del stream.links[end.link]
            if end.reason == pb.CLOSE_REASON_TRANSFERRED:
                if link.active:
                    self._ends.moved(link, "its connector says that another dispatcher has it")
                return
            reason = end.reason or pb.CLOSE_REASON_TRANSPORT_ERROR
            cut = LinkCut(end.close_code) if end.by_edge else None
            if reason == pb.CLOSE_REASON_PROTOCOL_ERROR and link.active:
                self._delivery.notices.tell(link.node_id, link.epoch, Notice.LINK_REFUSED, end.detail)
            self._ends.end(link, reason, end.detail, close_link=False, cut=cut)

    def _session(self, stream: ConnectorStream, link: int, epoch: int) -> NodeSession | None:
        """The link's live session, if the element carries its epoch: the one place that compares it."""
        session = stream.links.get(link)
        if isinstance(session, NodeSession) and session.epoch == epoch and session.active:
            return session
        self._metrics.ignored.labels("stale_epoch").inc()
        return None


class EdgeLinks:
    """What the upstream half may do to a link (its `EdgePort`)."""

    def __init__(self, delivery: Delivery, ends: "SessionEnds | None" = None) -> None:
        self._delivery = delivery
        self.ends = ends  # set by the composition root: the two halves know each other

    def _session(self, node_id: str, epoch: int) -> NodeSession | None:
        session = self._delivery.sessions.get(node_id)
        return session if session is not None and session.epoch == epoch and session.active else None

    def answer(self, node_id: str, epoch: int, message: Message) -> None:
        """Sends an answer over the direct lane, if the session still lives."""
        session = self._session(node_id, epoch)
        if session is not None:
            self._delivery.direct(session, message, message.ByteSize())

    def stored(self, frames: Iterable[tuple[str, int, int]]) -> None:
        """Uploads by (node, epoch, frame number) are stored, or need not be: connectors may forget them."""
        touched: dict[str, NodeSession] = {}
        for node_id, epoch, number in frames:
            session = self._session(node_id, epoch)
            if session is not None:
                session.stored(number)
                touched[node_id] = session
        for session in touched.values():
            session.receipt()

    def pause_reads(self, node_id: str, epoch: int, paused: bool) -> None:
        """Stops or resumes reading from the link; its timers stand still meanwhile."""
        session = self._session(node_id, epoch)
        if session is not None:
            self._delivery.paused(session, paused)
            session.stream.read_control(session.link, session.epoch, paused=paused)

    def refused(self, node_id: str, epoch: int, reason: str) -> None:
        """Tells that something the edge sent goes nowhere."""
        self._delivery.notices.tell(node_id, epoch, Notice.MESSAGE_REFUSED, reason)

    def close_link(self, node_id: str, epoch: int, reason: pb.CloseReason.ValueType, detail: str) -> None:
        """Ends the session and closes its link."""
        session = self._session(node_id, epoch)
        if session is not None and self.ends is not None:
            self.ends.end(session, reason, detail, close_link=True)
