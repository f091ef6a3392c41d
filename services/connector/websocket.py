"""A WebSocket link over mutual TLS: one asyncio.Protocol per connection, no task.

TLS is `tls.TlsChannel`, the protocol is `websockets`' Sans-I/O ServerProtocol; this module moves bytes
between them and the TCP transport and says what happened to a `LinkHandler`.
"""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from typing import Protocol, cast

from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import SEND_EOF, State
from websockets.server import ServerProtocol

from services.connector.admission import HttpRefusal
from services.connector.codec import JSON_FRAMES
from services.connector.connections import (
    CROWDED_OUT,
    ConnectionHost,
    Phase,
    opening_timeout,
    shown_address,
)
from services.connector.queued_total import FREE_BYTES
from services.connector.tcp import unacknowledged_bytes
from services.connector.tls import TlsChannel
from services.connector.transport import LinkHandler, LinkRequest, TransportEnd
from services.connector.websocket_ends import closed_by_edge, connection_lost, protocol_over, tls_failed
from services.connector.websocket_inbox import WebSocketInbox
from services.connector.websocket_request import RequestFault, refusal_response, take_request, text_frames
from services.runtime.deadline import Deadline
from services.runtime.tls_faults import TlsFault

# The library logs every connection; the hub has lines of its own.
_quiet = logging.getLogger("services.connector.websocket.library")
_quiet.setLevel(logging.CRITICAL)


class WebSocketHost(ConnectionHost, Protocol):
    """Who owns WebSocket connections."""

    @property
    def context(self) -> ssl.SSLContext:
        """What a new connection shakes hands with."""
        ...


class EdgeConnection(asyncio.Protocol):
    """One connection; implements `transport.EdgeTransport`."""

    __slots__ = (
        "_blocked",
        "_deadline",
        "_decided",
        "_given_bytes",
        "_handler",
        "_held",
        "_host",
        "_inbox",
        "_last_input_at",
        "_loop",
        "_pong",
        "_reading",
        "_tcp",
        "_tcp_paused",
        "_tls",
        "_told_bytes",
        "_ws",
        "peer_address",
        "phase",
    )

    kind = "websocket"
    codec = JSON_FRAMES

    def __init__(self, host: WebSocketHost, loop: asyncio.AbstractEventLoop, peer_address: str = "") -> None:
        self._host = host
        self._loop = loop
        self._tls = TlsChannel(host.context)
        self._ws = ServerProtocol(max_size=host.limits.frame_most_bytes, logger=_quiet)
        self._tcp: asyncio.Transport | None = None
        self._handler: LinkHandler | None = None
        self._inbox = WebSocketInbox(self._ws)
        self._pong = b""
        self._told_bytes = 0
        self._decided: Response | None = None
        self._deadline = Deadline(loop)
        self._given_bytes = 0
        self._last_input_at = loop.time()
        self._blocked = False
        self._held = False
        self._tcp_paused = False
        self._reading = False
        self.peer_address = peer_address  # empty: the socket's
        self.phase = Phase.HANDSHAKE

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._tcp = tcp = cast("asyncio.Transport", transport)
        # With a high-water mark of 0, `resume_writing` means that the operating system has every byte.
        tcp.set_write_buffer_limits(high=0)
        if not self.peer_address and (peer := tcp.get_extra_info("peername")):
            self.peer_address = shown_address(peer)
        limit = self._host.limits.opening_timeout
        self._deadline.set(limit, lambda: self._out_of_time(limit))

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.GONE or self.phase is Phase.FINISHED:
            return
        self._last_input_at = self._loop.time()
        established = self._tls.established
        try:
            plaintext = self._tls.receive(data)
        except TlsFault as fault:
            self._tls_failed(fault)
            return
        outgoing = self._tls.outgoing()
        if outgoing:
            self._write_tcp(outgoing)
        if not established and self._tls.established:
            self.phase = Phase.REQUEST
            self._host.progressed(self)
        if plaintext:
            self._inbox.unread += plaintext
            self._read_on()
        if self._tls.ended:
            self._input_ended()

    def eof_received(self) -> bool:
        self._input_ended()
        return False

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        if self._pong and self.phase is Phase.OPEN:
            pong, self._pong = self._pong, b""
            self._write(pong)
        if self._handler and not self._blocked:
            self._handler.drained()

    def connection_lost(self, error: Exception | None) -> None:
        if self.phase in (Phase.HANDSHAKE, Phase.REQUEST):
            detail = str(error) if error else "the peer closed the connection"
            self._host.handshake_failed(self, "peer_closed", detail)
        self._end(connection_lost(error))
        self.phase = Phase.GONE
        self._deadline.cancel()
        self._tcp = None
        self._inbox.clear()
        self._host.gone(self)

    # What the link asks for: transport.EdgeTransport.

    @property
    def blocked(self) -> bool:
        return self._blocked

    @property
    def given_bytes(self) -> int:
        return self._given_bytes

    def confirmed_bytes(self) -> int:
        if self._tcp is None:
            return self._given_bytes
        unconfirmed = self._tcp.get_write_buffer_size() + unacknowledged_bytes(
            self._tcp.get_extra_info("socket")
        )
        return self._given_bytes - unconfirmed

    def start(self, handler: LinkHandler) -> None:
        """The link that is told from here on; before `accept`, only its end."""
        self._handler = handler

    def accept(self) -> None:
        if self.phase is not Phase.DECIDING or not self._decided:
            return
        self.phase = Phase.OPEN
        self._deadline.cancel()
        response, self._decided = self._decided, None
        self._ws.send_response(response)
        self._flush_ws()
        self._host.opened(self)
        # Not from within the caller's decision: what is in the inbox comes after `accept` returned.
        self._loop.call_soon(self._read_on)

    def refuse(self, refusal: HttpRefusal) -> None:
        if self.phase is not Phase.DECIDING:
            return
        self._handler = None
        self._refuse_with(refusal_response(self._ws, refusal), refusal)

    def send(self, frames: Sequence[bytes]) -> bool:
        if self.phase is not Phase.OPEN or self._ws.eof_sent:
            return False
        self._write(text_frames(frames))
        return not self._blocked

    def close(self, code: int, text: str) -> None:
        self._handler = None
        if self.phase is Phase.DECIDING:
            self.abort()
        if self.phase is not Phase.OPEN:
            return
        self.phase = Phase.CLOSING
        self._drop_held()
        self._deadline.set(self._host.limits.close_timeout, self.abort)
        self._host.closing(self)
        if self._ws.state is State.OPEN:
            self._ws.send_close(code, text)
            self._write(b"".join(self._ws.data_to_send()))
        self._resume_tcp()

    def ping(self) -> None:
        if self.phase is Phase.OPEN and self._ws.state is State.OPEN:
            self._ws.send_ping(b"")
            self._write(b"".join(self._ws.data_to_send()))

    def hold_input(self, held: bool) -> None:
        if held == self._held:
            return
        self._held = held
        if held:
            return
        # Silence cannot be told from input that was not looked at: the clock starts anew.
        self._last_input_at = self._loop.time()
        self._loop.call_soon(self._read_on)

    def idle_seconds(self, now: float) -> float:
        if self._held or self._inbox.waiting:
            return 0.0
        return max(0.0, now - self._last_input_at)

    # Input.

    def _read_on(self) -> None:
        """Looks at input as far as it may be looked at now."""
        if self._reading:
            return
        self._reading = True
        try:
            while self._step():
                pass
        finally:
            self._reading = False
        unfinished = self._inbox.unfinished_bytes
        if (unfinished > FREE_BYTES or self._told_bytes) and self._handler and self.phase is Phase.OPEN:
            self._told_bytes = unfinished if unfinished > FREE_BYTES else 0
            self._handler.holding(self._told_bytes)
        if self.phase in (Phase.OPEN, Phase.DECIDING) and (self._held or self.phase is Phase.DECIDING):
            if (self._held or self._inbox.full) and not self._tcp_paused and self._tcp:
                self._tcp_paused = True
                self._tcp.pause_reading()
        else:
            self._resume_tcp()

    def _step(self) -> bool:
        """One event or one slice; False if there is nothing to look at now."""
        phase, inbox = self.phase, self._inbox
        if phase is Phase.OPEN:
            if self._held:
                return False
            if inbox.frames:
                self._handle_frame(inbox.frames.popleft())
                return True
            if self._ws.state is not State.OPEN:
                self._end(protocol_over(self._ws))
                return False
        elif phase is Phase.CLOSING:
            inbox.frames.clear()
        elif phase is not Phase.REQUEST:
            return False
        if not inbox.unread:
            return False
        if phase is Phase.REQUEST:
            return self._look_for_request()
        inbox.parse_slice()
        self._flush_ws()
        return True

    def _look_for_request(self) -> bool:
        """False: there is no request yet, or what follows it has to wait."""
        found = take_request(self._ws, self._inbox.unread)
        if isinstance(found, RequestFault):
            self._host.handshake_failed(self, found.reason, found.detail)
            self._finish(found.answer(), told=True)
        elif found is not None:
            self._requested(found)
        return False

    def _requested(self, request: Request) -> None:
        self.phase = Phase.DECIDING
        self._deadline.cancel()
        response = self._ws.accept(request)
        if response.status_code != 101:
            text = (response.body or b"").decode(errors="replace").strip()
            self._refuse_with(response, HttpRefusal(response.status_code, "upgrade", text))
            return
        self._decided = response
        headers = tuple(request.headers.raw_items())
        self._host.requested(self, LinkRequest(self._tls.names(), request.path, headers))

    def _handle_frame(self, frame: Frame) -> None:
        if self._handler is None:
            return
        if frame.opcode is Opcode.CLOSE:
            self._end(closed_by_edge(self._ws))
        else:
            self._inbox.hand_over(frame, self._handler)

    def _input_ended(self) -> None:
        """The peer closed its direction: what it sent before is looked at, then we close ours."""
        if self.phase in (Phase.HANDSHAKE, Phase.REQUEST):
            self.abort()
            return
        if self.phase in (Phase.OPEN, Phase.DECIDING):
            self._end(connection_lost(None))
        if self._tcp:
            self._tcp.close()
            # A peer that does not read would keep what is not written yet, and the descriptor, for ever.
            if not self._deadline.is_set:
                self._deadline.set(self._host.limits.linger_timeout, self.abort)

    # Output.

    def _write(self, plaintext: bytes) -> None:
        try:
            ciphertext = self._tls.encrypt(plaintext)
        except TlsFault as fault:
            self._tls_failed(fault)
            return
        self._write_tcp(ciphertext)

    def _write_tcp(self, data: bytes) -> None:
        if self._tcp and not self._tcp.is_closing():
            self._given_bytes += len(data)
            self._tcp.write(data)

    def _flush_ws(self) -> None:
        """Writes what the library wants written: pongs, close frames, the end of our direction."""
        writes = self._ws.data_to_send()
        if not writes:
            return
        if self._blocked and self.phase is Phase.OPEN and self._ws.state is State.OPEN:
            # The peer pings and does not read: only the last ping needs an answer (RFC 6455, 5.5.3).
            self._pong = writes[-1]
            return
        ending = writes[-1] == SEND_EOF
        data = b"".join(writes)
        if ending:
            self._finish(data, told=False)
        elif not self._blocked or self.phase is not Phase.CLOSING:
            self._write(data)

    def _refuse_with(self, response: Response, refusal: HttpRefusal) -> None:
        self._ws.send_response(response)
        self._host.refused(self, refusal)
        self._finish(b"".join(self._ws.data_to_send()), told=True)

    def _finish(self, last_words: bytes, *, told: bool) -> None:
        """Writes the last words, ends TLS and our direction, and gives the peer time to read them.

        With `told` false, frames that came before the end are still to be handled.
        """
        tcp = self._tcp
        if tcp is None or self.phase in (Phase.FINISHED, Phase.GONE):
            return
        if last_words:
            self._write(last_words)
        self._write_tcp(self._tls.close())
        if not tcp.is_closing():
            tcp.write_eof()
        if told or self.phase is Phase.CLOSING:
            self.phase = Phase.FINISHED
            self._drop_held()
            self._resume_tcp()
        self._deadline.set(self._host.limits.linger_timeout, self.abort)
        self._host.closing(self)

    # Ends.

    def _end(self, end: TransportEnd) -> None:
        """Tells the link, once, that the connection is over."""
        handler, self._handler = self._handler, None
        if self.phase is Phase.OPEN:
            self.phase = Phase.FINISHED if self._ws.eof_sent else Phase.CLOSING
            self._drop_held()
            if not self._deadline.is_set:
                self._deadline.set(self._host.limits.linger_timeout, self.abort)
            self._resume_tcp()
            self._host.closing(self)
        if handler:
            handler.ended(end)

    def _tls_failed(self, fault: TlsFault) -> None:
        self._write_tcp(self._tls.outgoing())
        if self.phase is Phase.HANDSHAKE:
            self._host.handshake_failed(self, fault.reason, fault.detail)
            self.phase = Phase.FINISHED
            self._host.closing(self)
            # Time for the peer to read the alert: closing at once could reset the connection before.
            if self._tcp and not self._tcp.is_closing():
                self._tcp.write_eof()
            self._deadline.set(self._host.limits.linger_timeout, self.abort)
            return
        self._end(tls_failed(fault.detail))
        self.abort()

    def _out_of_time(self, seconds: float) -> None:
        self._host.handshake_failed(self, *opening_timeout(self.phase, seconds))
        self.phase = Phase.FINISHED
        self.abort()

    def crowded_out(self) -> None:
        if self.phase in (Phase.HANDSHAKE, Phase.REQUEST):
            self._host.handshake_failed(self, *CROWDED_OUT)
            self.phase = Phase.FINISHED
        self.abort()

    def abort(self) -> None:
        """Cuts the connection without a word."""
        self._deadline.cancel()
        if self._tcp:
            self._tcp.abort()

    def _drop_held(self) -> None:
        self._held = False
        self._inbox.drop_partial()
        self._pong = b""

    def _resume_tcp(self) -> None:
        if self._tcp_paused and self._tcp and not self._tcp.is_closing():
            self._tcp_paused = False
            self._tcp.resume_reading()
