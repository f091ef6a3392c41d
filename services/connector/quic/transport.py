"""A link over QUIC: implements `transport.EdgeTransport` on one connection, without a task.

The control stream carries the request and its answer, one one-way stream of each side the messages. What the
listener is told of here is sent in batches: a connection that has something to send is `touched`.
"""

import asyncio
from collections.abc import Sequence

from aioquic.quic import events
from aioquic.quic.packet import QuicErrorCode, QuicFrameType
from aioquic.tls import AlertDescription

from cloudhub.v1 import link_pb2
from services.connector.admission import CertificateNames, HttpRefusal
from services.connector.close_codes import LinkFault
from services.connector.codec import PROTOBUF_FRAMES
from services.connector.connections import CROWDED_OUT, Phase, opening_timeout, shown_address
from services.connector.quic.connection import (
    CONTROL_STREAM,
    DOWNSTREAM,
    MOST_HANDSHAKE_BYTES,
    UPSTREAM,
    HubConnection,
)
from services.connector.quic.control_stream import (
    RequestReader,
    UnreadableRequest,
    ack_frame,
    nack_frame,
)
from services.connector.quic.ends import opening_failure, transport_end
from services.connector.quic.framing import FramingError, FramingFault
from services.connector.quic.goodbye import Goodbye
from services.connector.quic.host import Address, QuicHost
from services.connector.quic.inbound_messages import InboundMessages
from services.connector.quic.outbound_messages import OutboundMessages
from services.connector.quic.peer_certificate import ALERTS, check_certificates
from services.connector.quic.wire import Wire
from services.connector.tokens import TokenBucket
from services.connector.transport import LinkHandler, LinkRequest, TransportEnd
from services.runtime.deadline import Deadline
from services.runtime.tls_faults import TlsFault

NO_ONE_WAY_STREAM = (
    "the hub needs one one-way stream for its messages: let it open one, and send on it, from the handshake "
    "on (initial_max_streams_uni, initial_max_stream_data_uni)"
)
_Reason = link_pb2.CloseReason


class QuicEdgeConnection:
    """One connection; `receive`, `flush` and its timer are called by the listener and the loop."""

    __slots__ = (
        "_blocked",
        "_control",
        "_deadline",
        "_decided",
        "_goodbye",
        "_handler",
        "_held",
        "_host",
        "_inbound",
        "_loop",
        "_names",
        "_outbound",
        "_quic",
        "_reading",
        "_resumed_at",
        "_told_bytes",
        "_wire",
        "phase",
    )

    kind = "quic"
    codec = PROTOBUF_FRAMES

    def __init__(
        self, host: QuicHost, quic: HubConnection, loop: asyncio.AbstractEventLoop, packets: TokenBucket
    ) -> None:
        self._host = host
        self._quic = quic
        self._loop = loop
        self._handler: LinkHandler | None = None
        self._names = CertificateNames()
        self._control: RequestReader | None = RequestReader()
        self._inbound: InboundMessages | None = InboundMessages(
            host.limits.frame_most_bytes, host.window_bytes
        )
        self._outbound = OutboundMessages(quic)
        self._wire = Wire(self, host, quic, loop, packets)
        self._decided = ""
        self._blocked = False
        self._held = False
        self._reading = False
        self._resumed_at = loop.time()
        self._goodbye: Goodbye | None = None
        self._told_bytes = 0
        self._deadline = Deadline(loop)
        self.phase = Phase.HANDSHAKE
        limit = host.limits.opening_timeout
        self._deadline.set(limit, lambda: self._out_of_time(limit))

    # What the listener says.

    def receive(self, datagram: bytes, address: Address, now: float) -> None:
        """A datagram with one of the connection's ids."""
        if self.phase is Phase.GONE or not self._wire.receive(datagram, address, now):
            return
        if self._quic.handshake_bytes > MOST_HANDSHAKE_BYTES:
            self._tls_failed(
                "certificate_too_large",
                f"over {MOST_HANDSHAKE_BYTES} bytes",
                AlertDescription.bad_certificate,
            )
        self._handle_events()
        inbound = self._inbound
        if inbound is not None and (inbound.is_large or self._told_bytes):
            self._tell_holding(inbound)
        self._host.touched(self)

    def _tell_holding(self, inbound: InboundMessages) -> None:
        """Only a frame that is larger than the window lets in more than that."""
        held = inbound.waiting_bytes + self._quic.unordered_bytes(UPSTREAM) if inbound.is_large else 0
        self._told_bytes = held
        if self._handler and self.phase is Phase.OPEN:
            self._handler.holding(held)

    def flush(self, now: float) -> None:
        """Sends what waits as far as it may be sent now."""
        if self.phase is Phase.GONE:
            return
        self._transmit(now)
        while self._blocked and self.phase is Phase.OPEN and self._outbound.sent:
            self._blocked = False
            if self._handler:
                self._handler.drained()
        self._say_goodbye_if_heard()

    def own(self, connection_id: bytes) -> None:
        """Datagrams with this id are the connection's."""
        self._wire.own(connection_id)

    # What the link asks for: transport.EdgeTransport.

    @property
    def peer_address(self) -> str:
        """HOST:PORT of the peer where it is now, for people."""
        address = self._quic.get_peer_address()
        return shown_address(address) if address else ""

    @property
    def blocked(self) -> bool:
        return self._blocked

    @property
    def given_bytes(self) -> int:
        return self._outbound.written_bytes

    def confirmed_bytes(self) -> int:
        return self._outbound.confirmed_bytes

    def start(self, handler: LinkHandler) -> None:
        """The link that is told from here on; before `accept`, only its end."""
        self._handler = handler

    def accept(self) -> None:
        if self.phase is not Phase.DECIDING:
            return
        if not self._quic.can_send(CONTROL_STREAM):
            self.abort()
            return
        self.phase = Phase.OPEN
        self._deadline.cancel()
        self._quic.send_stream_data(CONTROL_STREAM, ack_frame(self._decided))
        self._outbound.begin()
        self._host.opened(self)
        self._host.touched(self)
        # Not from within the caller's decision: what came already follows after `accept` returned.
        self._loop.call_soon(self._read_on)

    def refuse(self, refusal: HttpRefusal) -> None:
        if self.phase is not Phase.DECIDING:
            return
        self._handler = None
        self._host.refused(self, refusal)
        self._answer_nack(refusal.status, refusal.text, refusal.retry_after_seconds)

    def send(self, frames: Sequence[bytes]) -> bool:
        if self.phase is not Phase.OPEN:
            return False
        self._outbound.write(frames)
        if not self._quic.unheard:  # else with its next probe
            self._transmit(self._loop.time())
        self._blocked = not self._outbound.sent
        return not self._blocked

    def close(self, code: int, text: str) -> None:
        self._handler = None
        if self.phase is Phase.DECIDING:
            self.abort()
        if self.phase is not Phase.OPEN:
            return
        self._end_politely(code, text, DOWNSTREAM, self._host.limits.close_timeout)

    def ping(self) -> None:
        if self.phase is Phase.OPEN:
            self._quic.send_ping(0)
            self._host.touched(self)

    def hold_input(self, held: bool) -> None:
        if held == self._held:
            return
        self._held = held
        if not held:
            # Silence cannot be told from input that was not looked at: the clock starts anew.
            self._resumed_at = self._loop.time()
            self._loop.call_soon(self._read_on)

    def idle_seconds(self, now: float) -> float:
        if self._held or (self._inbound is not None and self._inbound.waiting):
            return 0.0
        return max(0.0, now - max(self._quic.last_input_at or 0.0, self._resumed_at))

    def abort(self) -> None:
        """Cuts the connection with no more than one datagram that says so."""
        if self.phase is Phase.GONE:
            return
        self._close_now(QuicErrorCode.NO_ERROR, "", QuicFrameType.PADDING)
        self._gone("the connection was cut")

    # Input.

    def _handle_events(self) -> None:
        quic = self._quic
        while (event := quic.next_event()) is not None:
            if isinstance(event, events.StreamDataReceived):
                self._data_received(event)
            elif isinstance(event, events.HandshakeCompleted):
                self._handshake_completed()
            elif isinstance(event, events.ConnectionIdIssued):
                self._wire.own(event.connection_id)
            elif isinstance(event, events.ConnectionIdRetired):
                self._wire.retire(event.connection_id)
            elif isinstance(event, events.StreamReset | events.StopSendingReceived):
                self._stream_given_up(event.stream_id)
            elif isinstance(event, events.ConnectionTerminated):
                self._connection_over(event)
                self._gone("")
                return
        if quic.end is not None:
            self._connection_over(quic.end)

    def _data_received(self, event: events.StreamDataReceived) -> None:
        if self.phase in (Phase.CLOSING, Phase.FINISHED, Phase.GONE):
            return
        if event.stream_id == CONTROL_STREAM:
            if self.phase is Phase.REQUEST:
                self._look_for_request(event.data)
        elif event.stream_id == UPSTREAM and self._inbound is not None:
            self._inbound.receive(event.data, ended=event.end_stream)
            self._read_on()

    def _look_for_request(self, data: bytes) -> None:
        assert self._control is not None
        try:
            request = self._control.receive(data)
        except UnreadableRequest as fault:
            self._host.handshake_failed(self, fault.reason, fault.text)
            self._answer_nack(fault.status, fault.text, 0.0)
            return
        if request is None:
            return
        if not self._quic.lets_messages_through:
            # Its `ack` would be the last that it hears.
            self._host.handshake_failed(self, "no_one_way_stream", NO_ONE_WAY_STREAM)
            self._answer_nack(400, NO_ONE_WAY_STREAM, 0.0)
            return
        self._control = None
        self.phase = Phase.DECIDING
        self._deadline.cancel()
        self._decided = request.message_id
        self._host.requested(self, LinkRequest(self._names, None, request.headers))

    def _read_on(self) -> None:
        """Hands over messages as far as they may be looked at now."""
        inbound = self._inbound
        if self._reading or inbound is None:
            return
        self._reading = True
        try:
            while self.phase is Phase.OPEN and not self._held:
                payload = inbound.next_message()
                if payload is None:
                    self._all_taken(inbound)
                    break
                if self._handler:
                    self._handler.frame_received(payload)
        except FramingError as error:
            fault = LinkFault.TOO_BIG if error.fault is FramingFault.TOO_BIG else LinkFault.QUIC
            self._breach(fault, str(error))
        finally:
            self._reading = False

    def _all_taken(self, inbound: InboundMessages) -> None:
        if inbound.over():
            self._end(TransportEnd(_Reason.CLOSE_REASON_EDGE_CLOSED, "the edge ended its stream"))
            self._end_politely(1000, "closed by the edge", DOWNSTREAM, self._host.limits.linger_timeout)
            return
        through = inbound.let_in()
        if through is not None:
            self._quic.let_in(UPSTREAM, through)
            self._host.touched(self)

    def _stream_given_up(self, stream_id: int) -> None:
        if self.phase is Phase.OPEN and stream_id != CONTROL_STREAM:
            self._breach(LinkFault.QUIC, f"stream {stream_id} was given up")

    def _breach(self, fault: LinkFault, detail: str) -> None:
        """The peer broke the rules of framing: the link is over, and the peer is told."""
        code = 1009 if fault is LinkFault.TOO_BIG else 1002
        self._end(TransportEnd(_Reason.CLOSE_REASON_PROTOCOL_ERROR, detail, fault.value))
        self._end_politely(code, detail, DOWNSTREAM, self._host.limits.linger_timeout)

    # The handshake.

    def _handshake_completed(self) -> None:
        if self.phase is not Phase.HANDSHAKE:
            return
        try:
            self._names = check_certificates(self._quic.certificates(), self._host.authorities)
        except TlsFault as fault:
            alert = ALERTS.get(fault.reason, AlertDescription.bad_certificate)
            self._tls_failed(fault.reason, fault.detail, alert)
            return
        self._quic.release_handshake()
        self.phase = Phase.REQUEST
        self._host.progressed(self)

    def _tls_failed(self, reason: str, detail: str, alert: AlertDescription) -> None:
        if self.phase in (Phase.FINISHED, Phase.GONE):
            return
        if self.phase is Phase.HANDSHAKE:
            self._host.handshake_failed(self, reason, detail)
        self._close_now(QuicErrorCode.CRYPTO_ERROR + alert, detail, QuicFrameType.CRYPTO)

    def _out_of_time(self, seconds: float) -> None:
        self._host.handshake_failed(self, *opening_timeout(self.phase, seconds))
        self.phase = Phase.FINISHED
        self.abort()

    def crowded_out(self) -> None:
        """It has to give way to others, and is cut."""
        if self.phase in (Phase.HANDSHAKE, Phase.REQUEST):
            self._host.handshake_failed(self, *CROWDED_OUT)
            self.phase = Phase.FINISHED
        self.abort()

    # Output.

    def _answer_nack(self, status: int, text: str, retry_after_seconds: float) -> None:
        if not self._quic.can_send(CONTROL_STREAM):
            self.abort()
            return
        self._quic.send_stream_data(CONTROL_STREAM, nack_frame(status, text, retry_after_seconds))
        self._end_politely(status, text, CONTROL_STREAM, self._host.limits.linger_timeout)

    def _transmit(self, now: float) -> None:
        self._wire.transmit(now, self._timer_due)

    def _timer_due(self, now: float) -> None:
        self._quic.handle_timer(now)
        self._handle_events()
        self.flush(now)

    # Ends.

    def _end_politely(self, code: int, text: str, stream_id: int, seconds: float) -> None:
        """Closes when the peer has what was sent before, or at the latest after so long."""
        if self.phase is Phase.GONE or self._goodbye is not None:
            return
        self.phase = Phase.CLOSING
        self._drop_input()
        self._goodbye = Goodbye(code, text, stream_id)
        self._deadline.set(seconds, self._say_goodbye)
        self._host.touched(self)
        self._host.closing(self)

    def _say_goodbye_if_heard(self) -> None:
        goodbye = self._goodbye
        if goodbye is not None and self.phase is Phase.CLOSING and goodbye.may_be_said(self._quic):
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        assert self._goodbye is not None
        self._close_now(self._goodbye.code, self._goodbye.short_text, None)

    def _close_now(self, code: int, text: str, frame_type: int | None) -> None:
        self._deadline.cancel()
        if self.phase is not Phase.GONE:
            self.phase = Phase.FINISHED
        self._drop_input()
        self._quic.close(int(code), frame_type, text)
        self._transmit(self._loop.time())
        self._host.closing(self)

    def _connection_over(self, event: events.ConnectionTerminated) -> None:
        """The connection is closed by the peer, by its breach of QUIC, or by silence."""
        if self.phase in (Phase.FINISHED, Phase.GONE):
            return
        by_peer = self._quic.closed_by_peer
        if self.phase in (Phase.HANDSHAKE, Phase.REQUEST):
            self._host.handshake_failed(self, *opening_failure(event, by_peer=by_peer))
        self._end(transport_end(event, by_peer=by_peer))
        self.phase = Phase.FINISHED
        self._deadline.cancel()
        self._drop_input()
        self._host.touched(self)
        self._host.closing(self)

    def _end(self, end: TransportEnd) -> None:
        """Tells the link, once, that the connection is over."""
        handler, self._handler = self._handler, None
        if handler:
            handler.ended(end)

    def _gone(self, detail: str) -> None:
        if self.phase is Phase.GONE:
            return
        self._end(TransportEnd(_Reason.CLOSE_REASON_TRANSPORT_ERROR, detail))
        self.phase = Phase.GONE
        self._deadline.cancel()
        self._wire.cut()
        self._drop_input()
        self._host.gone(self)

    def _drop_input(self) -> None:
        self._held = False
        self._control = self._inbound = None
