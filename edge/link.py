"""One WebSocket link to the hub: bytes in, frames out, no task of its own.

The WebSocket protocol itself is `websockets`' Sans-I/O client; this is the transport around it.
Many frames leave in one write, and nothing is scheduled per message.
"""

import asyncio
import ssl
from collections.abc import Iterable
from typing import cast

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidHandshake, InvalidStatus
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import parse_uri

from edge.reconnect import UNPROVEN, LinkEnd, retry_after
from edge.tls_alerts import says_certificate_refused
from edge.transport import Receiver

# The hub's limit is 4 MiB; an edge accepts more, so that a raised limit does not lock it out.
MOST_FRAME_BYTES = 16 * 1024 * 1024
# How long a peer may take to answer a close frame.
_CLOSE_SECONDS = 5.0


class Link(asyncio.Protocol):
    """A link from its dial to its end: implements `transport.EdgeLink`. A header may stand several times."""

    def __init__(self, url: str, headers: Iterable[tuple[str, str]], receiver: Receiver) -> None:
        self._loop = asyncio.get_running_loop()
        self._receiver = receiver
        self._headers = tuple(headers)
        self._uri = parse_uri(url)
        self._websocket = ClientProtocol(self._uri, max_size=MOST_FRAME_BYTES)
        self._transport: asyncio.Transport | None = None
        self._fragments: list[bytes] = []
        self._held: list[bytes] | None = None
        self._pauses: set[str] = set()
        self._end: LinkEnd | None = None
        self._opened_at = 0.0
        self._answered = asyncio.Event()
        self._close_timer: asyncio.TimerHandle | None = None
        self.ended: asyncio.Future[LinkEnd] = self._loop.create_future()
        self.received_at = self._loop.time()
        """When the last bytes came in, on the loop's clock."""

    @property
    def is_open(self) -> bool:
        """Admitted and not closing: `send` has an effect."""
        return self._websocket.state is State.OPEN and not self.ended.done()

    async def dial(self, context: ssl.SSLContext, open_seconds: float) -> None:
        """Connects and waits until the hub has admitted the link, refused it or let the time pass.

        Faults are not raised: they end the link.
        """
        try:
            async with asyncio.timeout(open_seconds):
                await self._loop.create_connection(
                    lambda: self,
                    self._uri.host,
                    self._uri.port,
                    ssl=context,
                    server_hostname=self._uri.host,
                )
                await self._answered.wait()
        except TimeoutError:
            self.abort(LinkEnd("failed", f"no answer within {open_seconds:g} s"))
        except ssl.SSLError as error:
            self._finish(_tls_failed(error))
        except OSError as error:
            self._finish(LinkEnd("failed", error.strerror or str(error) or type(error).__name__))

    # What asyncio tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        request = self._websocket.connect()
        for name, value in self._headers:
            request.headers[name] = value
        self._websocket.send_request(request)
        self._flush()
        if self._pauses:
            self._transport.pause_reading()
        if self._end is not None:
            # Given up while the connection was being made.
            self._transport.abort()

    def data_received(self, data: bytes) -> None:
        self.received_at = self._loop.time()
        self._websocket.receive_data(data)
        self._handle_events()
        self._flush()

    def eof_received(self) -> None:
        self._websocket.receive_eof()
        self._handle_events()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._websocket.receive_eof()
        self._finish(self._end or self._natural_end(exc))

    # What the agent does

    def send(self, frames: Iterable[bytes]) -> None:
        """Writes text messages, together. Does nothing unless the link is open."""
        if not self.is_open:
            return
        for frame in frames:
            self._websocket.send_text(frame)
        self._flush()

    def ping(self) -> None:
        """Asks for a sign of life."""
        if self.is_open:
            self._websocket.send_ping(b"")
            self._flush()

    def pause(self, reason: str) -> None:
        """Stops reading until every reason is resumed."""
        if not self._pauses and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._pauses.add(reason)

    def resume(self, reason: str) -> None:
        """Takes a reason back; with none left, reading goes on."""
        if reason in self._pauses:
            self._pauses.discard(reason)
            if not self._pauses and self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    def block(self) -> None:
        """Behaves as behind a black hole: nothing is read, what is written is held."""
        if self._held is None:
            self._held = []
            self.pause("blocked")

    def unblock(self) -> None:
        """Ends the black hole; what was held goes out."""
        held, self._held = self._held, None
        if held and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(held))
        self.resume("blocked")

    def close(self) -> None:
        """Ends the link politely; it is cut if the hub does not answer in time."""
        if self.is_open:
            self._end = LinkEnd("stopped", open_seconds=self._open_seconds())
            self._websocket.send_close(CloseCode.GOING_AWAY)
            self._flush()
            self._expect_close()
        else:
            self.abort(LinkEnd("stopped"))

    def abort(self, end: LinkEnd) -> None:
        """Drops the connection without a close frame."""
        self._end = self._end or LinkEnd(end.cause, end.detail, open_seconds=self._open_seconds())
        if self._transport is None:
            self._finish(self._end)
        elif not self.ended.done():
            self._transport.abort()

    # Inside

    def _handle_events(self) -> None:
        for event in self._websocket.events_received():
            if isinstance(event, Response):
                if self._websocket.state is State.OPEN:
                    self._opened_at = self._loop.time()
                    self._answered.set()
                    self._receiver.link_opened(self)
                continue
            assert isinstance(event, Frame)
            if event.opcode is Opcode.TEXT or event.opcode is Opcode.BINARY or event.opcode is Opcode.CONT:
                if event.fin and not self._fragments:
                    self._receiver.frame_received(self, bytes(event.data))
                else:
                    self._fragments.append(bytes(event.data))
                    if event.fin:
                        whole, self._fragments = b"".join(self._fragments), []
                        self._receiver.frame_received(self, whole)
            if self._end is not None:
                return

    def _flush(self) -> None:
        chunks = self._websocket.data_to_send()
        transport = self._transport
        if not chunks or transport is None or transport.is_closing():
            return
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        if data:
            if self._held is None:
                transport.write(data)
            else:
                self._held.append(data)
        if not chunks[-1]:
            # The protocol's mark for "half-close"; TLS has none, so it is a close.
            transport.close()
        elif self._websocket.close_expected():
            self._expect_close()

    def _expect_close(self) -> None:
        if self._close_timer is None and self._transport is not None:
            self._close_timer = self._loop.call_later(_CLOSE_SECONDS, self._transport.abort)

    def _open_seconds(self) -> float:
        return self._loop.time() - self._opened_at if self._opened_at else 0.0

    def _natural_end(self, exc: Exception | None) -> LinkEnd:
        refused = self._websocket.handshake_exc
        if isinstance(refused, InvalidStatus):
            response = refused.response
            detail = bytes(response.body or b"")[:200].decode(errors="replace").strip()
            return LinkEnd(
                "refused",
                detail,
                response.status_code,
                retry_after(response.headers.get("Retry-After")),
                certificate_refused=response.status_code in UNPROVEN,
            )
        received = self._websocket.close_rcvd
        if received is not None:
            code = int(received.code)
            open_seconds, unproven = self._open_seconds(), code in UNPROVEN
            return LinkEnd("closed", received.reason, code, 0.0, open_seconds, certificate_refused=unproven)
        if not self._opened_at:
            if isinstance(exc, ssl.SSLError):
                return _tls_failed(exc)
            detail = str(refused) if isinstance(refused, InvalidHandshake) else ""
            return LinkEnd("failed", str(exc or "") or detail or "the connection was closed before an answer")
        return LinkEnd("lost", str(exc or ""), 0, 0.0, self._open_seconds())

    def _finish(self, end: LinkEnd) -> None:
        self._answered.set()
        if not self.ended.done():
            self.ended.set_result(end)


def _tls_failed(error: ssl.SSLError) -> LinkEnd:
    return LinkEnd(
        "failed", f"TLS: {error.reason or error}", certificate_refused=says_certificate_refused(error)
    )
