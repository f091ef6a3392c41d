"""One link from its announcement to its end: the shell around `link.Link`.

It is told by its transport (frames, room, end) and by its dispatcher's stream (verdict, frames, receipts,
closes), synchronously; it has no task of its own.
"""

import asyncio
from dataclasses import dataclass
from typing import Protocol

from google.protobuf.message import DecodeError
from opentelemetry.trace import Span, SpanKind

from cloudhub.v1 import link_pb2
from cloudhub.v1.message_pb2 import Message
from services.connector.admission import Identity
from services.connector.close_codes import (
    BINARY_FRAME,
    FRAME_FAULT_CODES,
    CloseCode,
    LinkFault,
    close_code,
)
from services.connector.frames import FrameError
from services.connector.link import Accepted, Link, LinkLimits, Pause
from services.connector.metrics import ConnectorMetrics
from services.connector.outgoing import OutgoingBatches
from services.connector.queued_total import FREE_BYTES, QueuedTotal
from services.connector.transport import EdgeTransport, TransportEnd
from services.runtime.tracing import Tracing, fail, is_sampled

# Frames of one transport write; a link's share of the send buffer.
_CHUNK_BYTES = 64 * 1024
# A pause over the rate lasts until this part of a second's frames may follow at once.
_RATE_REST = 0.05

_Reason = link_pb2.CloseReason


class LinkStream(Protocol):
    """The dispatcher's stream as a link sees it."""

    address: str
    dispatcher_id: str
    outgoing: OutgoingBatches

    @property
    def fit(self) -> bool:
        """Whether the dispatcher can have links: attached, not draining, in time with its lease."""
        ...

    @property
    def congested(self) -> bool:
        """Whether links should stop reading until `stream_has_room`."""
        ...

    def wait_for_room(self, link: "EdgeLink") -> None:
        """Asks for `stream_has_room`, once."""
        ...


@dataclass(frozen=True, slots=True)
class LinkTools:
    """What all links of a connector share."""

    loop: asyncio.AbstractEventLoop
    limits: LinkLimits
    metrics: ConnectorMetrics
    tracing: Tracing
    queued: QueuedTotal
    """What waits for edges."""
    incoming: QueuedTotal
    """Of edges' frames: what is not whole, and what is more than a link may have without receipts."""


class LinkOwner(Protocol):
    """Who keeps the links."""

    def make_incoming_room(self, link: "EdgeLink", size_bytes: int) -> None:
        """Of what comes from all edges there is no room for so much more of this one: links whose frames
        have waited longest end."""
        ...

    def make_room(self, link: "EdgeLink", size_bytes: int) -> None:
        """The bytes that wait for all links leave no room for so many more of this one: those links that have
        the most end."""
        ...

    def link_over(
        self,
        link: "EdgeLink",
        reason: link_pb2.CloseReason.ValueType,
        detail: str,
        end: TransportEnd | None,
    ) -> None:
        """The link has ended and its transport is closing; told exactly once. `end` is how, unless the hub
        ended it."""
        ...


class EdgeLink:
    """Implements `transport.LinkHandler`. `state` is None until the dispatcher admitted the link.

    `stream` is the present dispatcher's; None after that one is lost, until another has the session. Frames
    are only kept meanwhile. `candidate` is the one that was asked to take the link over.
    """

    __slots__ = (
        "_counted_bytes",
        "_incoming_bytes",
        "_owner",
        "_rate_timer",
        "_tools",
        "_unfinished_bytes",
        "candidate",
        "identity",
        "incoming_since",
        "number",
        "opened_at",
        "opened_at_ms",
        "over",
        "state",
        "stream",
        "traceparent",
        "transport",
        "verdict_timer",
    )

    def __init__(
        self,
        number: int,
        identity: Identity,
        transport: EdgeTransport,
        stream: LinkStream | None,
        owner: LinkOwner,
        tools: LinkTools,
        traceparent: str,
    ) -> None:
        self.number = number
        self.identity = identity
        self.transport = transport
        self.stream = stream
        self.candidate: LinkStream | None = None
        self.traceparent = traceparent
        self.state: Link[Span] | None = None
        self.over = False
        self.opened_at = 0.0  # instant of the loop
        self.opened_at_ms = 0
        self.verdict_timer: asyncio.TimerHandle | None = None
        self._rate_timer: asyncio.TimerHandle | None = None
        self._owner = owner
        self._tools = tools
        # What of `queued` is this link's.
        self._counted_bytes = 0
        # The same of `incoming`, and what of it is a frame that is not whole.
        self._incoming_bytes = self._unfinished_bytes = 0
        self.incoming_since = 0.0

    @property
    def epoch(self) -> int:
        """The session's epoch; 0 while there is none."""
        return self.state.epoch if self.state else 0

    def admit(self, epoch: int) -> None:
        """The dispatcher opened a session; frames flow from here on."""
        self.opened_at = self._tools.loop.time()
        self.state = Link(epoch, self._tools.limits, self.opened_at)
        self.transport.accept()

    def announcement(self) -> link_pb2.LinkAnnouncement:
        """Who the link is, for a dispatcher."""
        return link_pb2.LinkAnnouncement(
            link=self.number,
            node_id=self.identity.node_id,
            project_id=self.identity.project_id,
            transport=self.transport.kind,
            peer_address=self.transport.peer_address,
            traceparent=self.traceparent,
            certificate_serial=self.identity.certificate_serial,
            max_window_messages=self.identity.max_window_messages,
            open_seconds=int(self._tools.loop.time() - self.opened_at) if self.state is not None else 0,
        )

    def tell_end(
        self, reason: link_pb2.CloseReason.ValueType, detail: str, end: TransportEnd | None = None
    ) -> None:
        """Tells the link's dispatcher, and the one that is asked to take it over, that it is gone."""
        by_edge, close_code = (end.by_edge, end.close_code) if end else (False, 0)
        for stream, epoch in ((self.stream, self.epoch), (self.candidate, 0)):
            if stream is not None:
                stream.outgoing.end(
                    self.number, epoch, reason, detail, by_edge=by_edge, close_code=close_code
                )

    # Between dispatchers.

    def detach(self) -> None:
        """The dispatcher is lost, or holds the session no more."""
        self.stream = None
        if self.state is not None:
            self.state.detach()
            self._apply_reading(self.state)

    def move(self, stream: LinkStream, epoch: int) -> None:
        """The session is that dispatcher's, under this epoch, from here on: it gets what came in and has no
        receipt; the former one is told, if it is there."""
        state = self.state
        assert state is not None
        if self.stream is not None and self.stream is not stream:
            moved = _Reason.CLOSE_REASON_TRANSFERRED
            self.stream.outgoing.end(self.number, state.epoch, moved, f"to {stream.dispatcher_id}")
        frames, spans = state.move(epoch)
        self._count(state)
        for span in spans:
            fail(span, "the link moved before the bytes were written")
            span.end()
        self.stream, self.candidate = stream, None
        parse = self.transport.codec.parse
        for number, frame in enumerate(frames, 1):
            stream.outgoing.upstream(self.number, epoch, number, parse(frame), len(frame))
        if stream.congested:
            self._wait_for_room(state, stream)
        self._apply_reading(state)

    # From the edge: transport.LinkHandler.

    def frame_received(self, frame: bytes) -> None:
        state = self.state
        if state is None:
            return
        try:
            parsed = self.transport.codec.parse(frame)
        except FrameError as error:
            self._refuse_frame(error.fault.value, FRAME_FAULT_CODES[error.fault], error.detail)
            return
        number, stream = state.receive(frame), self.stream
        if self._incoming_bytes or len(frame) > FREE_BYTES:
            self._unfinished_bytes = 0
            self._count_incoming(state)
            if self.over:
                return
        if stream is not None:
            stream.outgoing.upstream(self.number, state.epoch, number, parsed, len(frame))
            if stream.congested:
                self._wait_for_room(state, stream)
        self._spend(state)
        if not state.reading:
            self._apply_reading(state)

    def holding(self, size_bytes: int) -> None:
        self._unfinished_bytes = size_bytes
        if self.state is not None:
            self._count_incoming(self.state)

    def _count_incoming(self, state: Link[Span]) -> None:
        size_bytes = self._unfinished_bytes + state.inbound.excess_bytes
        incoming, more = self._tools.incoming, size_bytes - self._incoming_bytes
        if more > 0 and not incoming.admits(self._incoming_bytes, more):
            self._owner.make_incoming_room(self, more)
            if self.over:
                return
        if not self._incoming_bytes:
            self.incoming_since = self._tools.loop.time()
        incoming.bytes += more
        self._incoming_bytes = size_bytes

    @property
    def incoming_bytes(self) -> int:
        """What is kept of this edge's frames, as far as it counts among all."""
        return self._incoming_bytes

    def binary_received(self) -> None:
        self._refuse_frame(LinkFault.BINARY.value, BINARY_FRAME, "")

    def control_received(self) -> None:
        state = self.state
        if state is not None:
            self._spend(state)
            if not state.reading:
                self._apply_reading(state)

    def drained(self) -> None:
        if self.state is not None:
            self._mark_written(self.state)
            self.pump()

    def ended(self, end: TransportEnd) -> None:
        detail = end.detail
        if end.fault:
            self._tools.metrics.frames_refused.labels(end.fault).inc()
            detail = f"{end.fault}: {detail}"
        self._finish(end.reason, detail, end)

    # From the dispatcher.

    def send(self, frame: link_pb2.DownstreamFrame) -> None:
        """Queues a message for the edge; the caller pumps when it has queued all it has."""
        state, metrics = self.state, self._tools.metrics
        assert state is not None
        try:
            message = Message.FromString(frame.message)
        except DecodeError:
            metrics.dropped.labels("downstream", "unreadable").inc()
            self._queue(state, frame, b"", None)
            return
        span: Span | None = None
        if self._tools.tracing.enabled and is_sampled(message.traceparent):
            span = self._tools.tracing.start(
                "send",
                message.traceparent,
                kind=SpanKind.PRODUCER,
                attributes={
                    "messaging.system": "cloudhub",
                    "messaging.message.id": message.id,
                    "messaging.destination.name": message.resource,
                    "cloudhub.node.id": self.identity.node_id,
                    "cloudhub.session.epoch": state.epoch,
                    "cloudhub.ack_mode": "no_ack" if frame.direct else "ack",
                },
            )
        if frame.repeats and state.outbound.is_under_way(frame.repeats, self.transport.confirmed_bytes()):
            # A narrow wire would carry it twice. An empty frame keeps its place in the numbering.
            metrics.resends_withheld.inc()
            if span:
                span.set_attribute("cloudhub.withheld", True)
            self._queue(state, frame, b"", span)
            return
        try:
            data = self.transport.codec.encode(message)
        except FrameError as error:
            # The edge would drop its link over it. An empty frame keeps its place in the numbering.
            metrics.dropped.labels("downstream", error.fault.value).inc()
            if span:
                fail(span, str(error))
            data = b""
        self._queue(state, frame, data, span)

    def _queue(
        self, state: Link[Span], frame: link_pb2.DownstreamFrame, data: bytes, span: Span | None
    ) -> None:
        if not self._tools.queued.admits(self._counted_bytes, len(data)):
            self._owner.make_room(self, len(data))
            if self.over:
                return
        accepted = state.send(frame.number, data, span, direct=frame.direct)
        if accepted is Accepted.QUEUED:
            self._count(state)
            return
        self._tools.metrics.dropped.labels("downstream", accepted.value).inc()
        if span:
            fail(span, accepted.value)
            span.end()
        if accepted is Accepted.OVERFLOW:
            self.close(
                _Reason.CLOSE_REASON_OVERLOADED, "the dispatcher sent more than the link's queue holds"
            )

    def _count(self, state: Link[Span]) -> None:
        unwritten_bytes = state.outbound.unwritten_bytes
        self._tools.queued.bytes += unwritten_bytes - self._counted_bytes
        self._counted_bytes = unwritten_bytes

    @property
    def unwritten_bytes(self) -> int:
        """What waits for this edge."""
        return self._counted_bytes

    def pump(self) -> None:
        """Writes what is queued as far as the operating system takes it."""
        state, transport = self.state, self.transport
        if state is None:
            return
        outbound, metrics = state.outbound, self._tools.metrics
        while outbound and not transport.blocked and not self.over:
            frames = [frame for frame in outbound.take(_CHUNK_BYTES) if frame]
            state.frames_sent += len(frames)
            metrics.frames_sent.inc(len(frames))
            metrics.bytes_sent.inc(sum(map(len, frames)))
            is_written = not frames or transport.send(frames)
            outbound.given(transport.given_bytes)
            if not is_written:
                return
            self._mark_written(state)

    def receipt(self, through: int) -> None:
        """The dispatcher took upstream frames over."""
        state = self.state
        assert state is not None
        held = not state.reading
        known = state.receipt(through)
        if self._incoming_bytes:
            self._count_incoming(state)
        if not known:
            self._tools.metrics.dropped.labels("receipt", "number_unknown").inc()
        if held:
            self._apply_reading(state)

    def control_reading(self, paused: bool) -> None:
        """The dispatcher stops or resumes the link's input."""
        state = self.state
        assert state is not None
        if paused:
            state.pause(Pause.DISPATCHER)
        else:
            state.resume(Pause.DISPATCHER)
        self._apply_reading(state)

    def stream_has_room(self) -> None:
        """The stream caught up."""
        if self.state is not None and not self.over:
            self.state.resume(Pause.STREAM)
            self._apply_reading(self.state)

    def report_activity(self, *, ping: bool = False) -> None:
        """Answers a probe, behind all input that is queued; with `ping` the edge is asked too."""
        if ping:
            self.transport.ping()
        idle = self.transport.idle_seconds(self._tools.loop.time())
        if self.stream is not None:
            self.stream.outgoing.activity(self.number, self.epoch, idle)

    def close(
        self, reason: link_pb2.CloseReason.ValueType, detail: str, code: CloseCode | None = None
    ) -> None:
        """Ends the link from our side. What is queued goes first if the operating system takes it now."""
        if self.over:
            return
        self.pump()
        code = code or close_code(reason)
        self.transport.close(code.code, code.with_detail(detail))
        self._finish(reason, detail)

    # Shared.

    def _refuse_frame(self, label: str, code: CloseCode, detail: str) -> None:
        self._tools.metrics.frames_refused.labels(label).inc()
        self.close(_Reason.CLOSE_REASON_PROTOCOL_ERROR, f"{label}: {detail}" if detail else label, code)

    def _finish(
        self, reason: link_pb2.CloseReason.ValueType, detail: str, end: TransportEnd | None = None
    ) -> None:
        if self.over:
            return
        self.over = True
        for timer in (self._rate_timer, self.verdict_timer):
            if timer:
                timer.cancel()
        self._rate_timer = self.verdict_timer = None
        self._tools.queued.bytes -= self._counted_bytes
        self._counted_bytes = 0
        self._tools.incoming.bytes -= self._incoming_bytes
        self._incoming_bytes = 0
        if self.state is not None:
            for span in self.state.outbound.unwritten_tags():
                fail(span, "the link ended before the bytes were written")
                span.end()
        self._owner.link_over(self, reason, detail, end)

    def _mark_written(self, state: Link[Span]) -> None:
        marks, spans = state.outbound.written()
        if not self.over:
            self._count(state)
        for span in spans:
            span.end()
        if marks and not self.over and self.stream is not None:
            self.stream.outgoing.written(
                self.number, state.epoch, marks.acknowledged_through, marks.direct_through
            )

    def _wait_for_room(self, state: Link[Span], stream: LinkStream) -> None:
        """Reads no further while the stream is behind."""
        state.pause(Pause.STREAM)
        stream.wait_for_room(self)

    def _spend(self, state: Link[Span]) -> None:
        loop = self._tools.loop
        if state.spend_frame(loop.time()) or self._rate_timer:
            return
        self._tools.metrics.read_pauses.labels("rate").inc()
        rest = max(1.0, self._tools.limits.frames_per_second * _RATE_REST)
        self._rate_timer = loop.call_later(state.rate_pause_seconds(1.0 + rest), self._rate_over)

    def _rate_over(self) -> None:
        self._rate_timer = None
        if self.state is not None:
            self.state.resume(Pause.RATE)
            self._apply_reading(self.state)

    def _apply_reading(self, state: Link[Span]) -> None:
        self.transport.hold_input(not state.reading)
