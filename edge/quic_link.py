"""One QUIC link to the hub: datagrams in, messages out, no task of its own.

QUIC itself is aioquic's; this is the transport around it. The socket is not connected to the hub's address,
so the operating system may give it another of its own when the network changes: the link stays.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Iterable, Mapping
from typing import Any, cast

from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionState
from aioquic.quic.packet import QuicErrorCode, QuicFrameType, QuicHeader
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import AlertDescription, Epoch
from cryptography import x509
from OpenSSL import crypto

from edge.protocol import MalformedFrame
from edge.quic_framing import MESSAGES_BEGIN, Unframer, frames_of, json_of, read_answer, request
from edge.reconnect import UNPROVEN, LinkEnd
from edge.server_certificate import fault_of, trusting
from edge.tls_alerts import quic_certificate_refused
from edge.transport import MOST_ROUND_TRIP_SECONDS, Receiver

# The hub's limit is 4 MiB; an edge accepts more, so that a raised limit does not lock it out.
MOST_FRAME_BYTES = 16 * 1024 * 1024
_MOST_ANSWER_BYTES = 64 * 1024
# The first stream both ways, our one-way stream and the hub's.
_CONTROL, _UP, _DOWN = 0, 2, 3
# How long what was sent may take to arrive before a polite end.
_CLOSE_SECONDS = 5.0
_GOING_AWAY = 1001
_BAD_CERTIFICATE = QuicErrorCode.CRYPTO_ERROR + AlertDescription.bad_certificate
_TIMER_SECONDS = 0.001
_TOKEN_BYTES = 16
_LEAST_RESET_BYTES = 21

# The library logs every connection; the agent has lines of its own.
logging.getLogger("quic").setLevel(logging.CRITICAL)


class _Connection(QuicConnection):
    """aioquic's, which lets the hub send no more while nobody reads, and expects round trips of the length of
    that of the hub's retry. It reaches into what is not public."""

    reading = True
    _connects_at = 0.0

    def shown(self) -> list[x509.Certificate]:
        """The hub's certificates, first the one whose key it proved to have."""
        own = self.tls._peer_certificate
        return [] if own is None else [own, *self.tls._peer_certificate_chain]

    def connect(self, addr: tuple[Any, ...], now: float) -> None:
        self._connects_at = now
        super().connect(addr, now)

    def _receive_retry_packet(self, header: QuicHeader, packet_without_tag: bytes, now: float) -> None:
        retries = self._retry_count
        super()._receive_retry_packet(header, packet_without_tag, now)
        if self._retry_count > retries:
            loss = self._loss
            loss._rtt_initial = max(loss._rtt_initial, min(now - self._connects_at, MOST_ROUND_TRIP_SECONDS))

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        if self.reading:
            super()._write_connection_limits(builder=builder, space=space)

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        if self.reading:
            super()._write_stream_limits(builder=builder, space=space, stream=stream)

    def heard_at(self) -> float:
        """When the last authentic packet came; 0 before the handshake is over."""
        space = self._spaces.get(Epoch.ONE_RTT)
        return (space.largest_received_time if space is not None else None) or 0.0

    def is_reset(self, datagram: bytes) -> bool:
        """Whether it says that the hub knows nothing of the connection (RFC 9000, 10.3)."""
        if len(datagram) < _LEAST_RESET_BYTES or datagram[0] & 0x80:
            return False
        token = datagram[-_TOKEN_BYTES:]
        known = [self._peer_cid, *self._peer_cid_available]
        return any(connection_id.stateless_reset_token == token for connection_id in known)

    def delivered(self) -> bool:
        """Whether the hub has all that was sent."""
        stream = self._streams.get(_UP)
        return stream is None or stream.sender._buffer_start == stream.sender._buffer_stop

    def end(self) -> events.ConnectionTerminated | None:
        """How it was closed or timed out, if it was."""
        return self._close_event

    def closed_by_hub(self) -> bool:
        """Whether it was not ours to close."""
        return self._state is QuicConnectionState.DRAINING


class QuicLink(asyncio.DatagramProtocol):
    """A link from its dial to its end: implements `transport.EdgeLink`."""

    def __init__(self, address: tuple[str, int], headers: Mapping[str, str], receiver: Receiver) -> None:
        self._loop = asyncio.get_running_loop()
        self._host, self._port = address
        self._headers = headers
        self._receiver = receiver
        self._quic: _Connection | None = None
        self._trusted: crypto.X509Store | None = None
        self._udp: asyncio.DatagramTransport | None = None
        self._answer = Unframer(_MOST_ANSWER_BYTES)
        self._down = Unframer(MOST_FRAME_BYTES, MESSAGES_BEGIN)
        self._answered = asyncio.Event()
        self._opened_at = 0.0
        self._open = False
        self._leaving = False
        self._black_hole = False
        self._pauses: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._close_timer: asyncio.TimerHandle | None = None
        self._flush_due = False
        self.ended: asyncio.Future[LinkEnd] = self._loop.create_future()
        self.received_at = self._loop.time()

    @property
    def is_open(self) -> bool:
        """Admitted and not closing: `send` has an effect."""
        return self._open and not self._leaving and not self.ended.done()

    async def dial(self, configuration: QuicConfiguration, open_seconds: float) -> None:
        """Connects and waits until the hub has admitted the link, refused it or let the time pass.

        `configuration` is the link's own. Faults are not raised: they end the link.
        """
        try:
            async with asyncio.timeout(open_seconds):
                found = await self._loop.getaddrinfo(self._host, self._port, type=socket.SOCK_DGRAM)
                family, address = found[0][0], found[0][4]
                if self.ended.done():
                    return
                configuration.server_name = self._host
                self._trusted = trusting(configuration.cafile or "")
                # Checked when the handshake is done, before anything is said.
                configuration.verify_mode = ssl.CERT_NONE
                self._quic = quic = _Connection(configuration=configuration)
                await self._loop.create_datagram_endpoint(
                    lambda: self, local_addr=("::" if family == socket.AF_INET6 else "0.0.0.0", 0)
                )
                quic.connect(address, self._loop.time())
                quic.send_stream_data(_CONTROL, request(self._headers))
                self._flush()
                await self._answered.wait()
        except TimeoutError:
            self.abort(LinkEnd("failed", f"no answer within {open_seconds:g} s"))
        except OSError as error:
            self._finish(LinkEnd("failed", error.strerror or str(error) or type(error).__name__))
        except crypto.Error:
            self._finish(LinkEnd("failed", f"the CA {configuration.cafile} cannot be used"))

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._udp = cast("asyncio.DatagramTransport", transport)
        if self.ended.done():
            self._udp.abort()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        quic = self._quic
        if quic is None or self._black_hole or self.ended.done():
            return
        if quic.is_reset(data):
            self._finish(
                LinkEnd("lost", "the hub does not know the link any more", 0, 0.0, self._open_seconds())
            )
            return
        quic.receive_datagram(data, addr, self._loop.time())
        self.received_at = max(self.received_at, quic.heard_at())
        self._handle_events(quic)
        self._flush_soon()

    def error_received(self, exc: Exception) -> None:
        """A datagram could not be sent: to QUIC it is lost."""

    # What the agent does

    def send(self, frames: Iterable[bytes]) -> None:
        """Writes JSON messages, together. Does nothing unless the link is open."""
        if self.is_open and self._quic is not None:
            self._quic.send_stream_data(_UP, frames_of(frames))
            self._flush_soon()

    def ping(self) -> None:
        """Asks for a sign of life."""
        if self.is_open and self._quic is not None:
            self._quic.send_ping(0)
            self._flush_soon()

    def pause(self, reason: str) -> None:
        """Hands over nothing until every reason is resumed."""
        self._pauses.add(reason)
        if self._quic is not None:
            self._quic.reading = False

    def resume(self, reason: str) -> None:
        """Takes a reason back; with none left, messages go on."""
        if reason in self._pauses:
            self._pauses.discard(reason)
            if not self._pauses and self._quic is not None:
                self._quic.reading = True
                self._loop.call_soon(self._read_on)

    def block(self) -> None:
        """Behaves as behind a black hole: nothing is read, nothing is sent."""
        self._black_hole = True

    def unblock(self) -> None:
        """Ends the black hole."""
        if self._black_hole:
            self._black_hole = False
            self._flush_soon()

    def close(self) -> None:
        """Ends the link politely: when the hub has what was sent, or after a bounded time."""
        if not self.is_open or self._quic is None:
            self.abort(LinkEnd("stopped"))
            return
        self._leaving = True
        self._close_timer = self._loop.call_later(_CLOSE_SECONDS, self._leave)
        self._leave_if_delivered()

    def abort(self, end: LinkEnd) -> None:
        """Drops the connection: after a cut without a word, else with one."""
        if self.ended.done():
            return
        if self._quic is not None and end.cause != "cut" and self._quic.end() is None:
            self._quic.close(QuicErrorCode.NO_ERROR, QuicFrameType.PADDING, end.cause)
            self._flush()
        self._finish(LinkEnd(end.cause, end.detail, open_seconds=self._open_seconds(), answered=end.answered))

    # Inside

    def _handle_events(self, quic: _Connection) -> None:
        while (event := quic.next_event()) is not None:
            if isinstance(event, events.HandshakeCompleted) and not self._is_trusted(quic):
                return
            if not isinstance(event, events.StreamDataReceived):
                continue
            try:
                if event.stream_id == _CONTROL:
                    self._answer.feed(event.data)
                    payload = self._answer.next() if not self._answered.is_set() else None
                    if payload is not None:
                        self._hub_answered(quic, read_answer(payload))
                elif event.stream_id == _DOWN:
                    self._down.feed(event.data)
            except MalformedFrame as error:
                self.abort(LinkEnd("malformed", str(error)))
            if self.ended.done():
                return
        self._read_on()
        end = quic.end()
        if end is not None:
            self._finish(self._end_of(end, by_hub=quic.closed_by_hub()))
        elif self._leaving:
            self._leave_if_delivered()

    def _is_trusted(self, quic: _Connection) -> bool:
        assert self._trusted is not None
        fault = fault_of(quic.shown(), self._host, self._trusted)
        if fault:
            quic.close(_BAD_CERTIFICATE, QuicFrameType.CRYPTO, fault)
            self._flush()
            self._finish(LinkEnd("failed", fault))
        return not fault

    def _hub_answered(self, quic: _Connection, refusal: tuple[int, str, float] | None) -> None:
        if refusal is not None:
            status, text, retry_after_seconds = refusal
            quic.close(_GOING_AWAY)
            self._flush()
            self._finish(
                LinkEnd(
                    "refused",
                    text,
                    status,
                    retry_after_seconds,
                    answered=True,
                    certificate_refused=status in UNPROVEN,
                )
            )
            return
        self._open = True
        self._opened_at = self._loop.time()
        quic.send_stream_data(_UP, MESSAGES_BEGIN)
        self._answered.set()
        self._receiver.link_opened(self)

    def _read_on(self) -> None:
        while self._open and not self._pauses and not self.ended.done():
            try:
                payload = self._down.next()
                if payload is None:
                    return
                frame = json_of(payload)
            except MalformedFrame as error:
                self.abort(LinkEnd("malformed", str(error)))
                return
            self._receiver.frame_received(self, frame)

    def _flush_soon(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        quic, udp = self._quic, self._udp
        if quic is None or udp is None or self.ended.done():
            return
        for datagram, address in quic.datagrams_to_send(self._loop.time()):
            if not self._black_hole:
                udp.sendto(datagram, address)
        self._arm(quic)

    def _arm(self, quic: _Connection) -> None:
        at = quic.get_timer()
        if at is not None and (self._timer is None or self._timer_at > at):
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = at
            self._timer = self._loop.call_at(at, self._timer_fired)

    def _timer_fired(self) -> None:
        self._timer = None
        quic = self._quic
        if quic is None or self.ended.done():
            return
        now, due = self._loop.time(), quic.get_timer()
        if due is not None and due > now + _TIMER_SECONDS:
            self._arm(quic)
            return
        quic.handle_timer(max(now, due or now))
        self._handle_events(quic)
        self._flush()

    def _leave_if_delivered(self) -> None:
        if self._quic is not None and self._quic.delivered():
            self._leave()
        else:
            self._flush_soon()

    def _leave(self) -> None:
        if self._quic is not None and not self.ended.done():
            self._quic.close(_GOING_AWAY, None, "the agent stops")
            self._flush()
        self._finish(LinkEnd("stopped", open_seconds=self._open_seconds()))

    def _open_seconds(self) -> float:
        return self._loop.time() - self._opened_at if self._opened_at else 0.0

    def _end_of(self, event: events.ConnectionTerminated, *, by_hub: bool) -> LinkEnd:
        text, code = event.reason_phrase, event.error_code
        if by_hub and event.frame_type is None:
            return LinkEnd(
                *("closed", text, code, 0.0, self._open_seconds()),
                answered=True,
                certificate_refused=code in UNPROVEN,
            )
        if code >= QuicErrorCode.CRYPTO_ERROR:
            refused = by_hub and quic_certificate_refused(code)
            return LinkEnd("failed", f"TLS: {text or hex(code)}", answered=True, certificate_refused=refused)
        if self._opened_at:
            return LinkEnd("lost", text, 0, 0.0, self._open_seconds())
        return LinkEnd("failed", text or f"QUIC error {code:#x}", answered=by_hub)

    def _finish(self, end: LinkEnd) -> None:
        self._answered.set()
        for timer in (self._timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._close_timer = None
        if not self.ended.done():
            self.ended.set_result(end)
        if self._udp is not None:
            self._udp.close()
