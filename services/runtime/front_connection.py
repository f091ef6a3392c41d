"""One connection of the TLS front: a client's socket outside, gRPC's inside, and TLS between them.

Bytes go as they come, both ways; whichever side takes nothing stops the other from being read. When either
side ends, so does the other, after what it was sent.
"""

import asyncio
import enum
from typing import Protocol, cast

from services.runtime.callers import address_of
from services.runtime.deadline import Deadline
from services.runtime.server_tls import ServerTls, TlsStream
from services.runtime.tls_faults import TlsFault

# What may wait to be written to one side before the other is not read any more.
BUFFER_BYTES = 256 * 1024
# A peer that makes us answer (TLS key updates, pings of a closed stream) and reads nothing is cut off.
_MOST_UNREAD_BYTES = 1024 * 1024
LINGER_SECONDS = 2.0
"""How long a side may take to read what it was sent before the connection is cut."""


class Phase(enum.Enum):
    """Where a connection is in its life."""

    HANDSHAKE = enum.auto()
    JOINING = enum.auto()
    """The handshake is done; gRPC's side is being connected. Nothing is read."""
    OPEN = enum.auto()
    FINISHING = enum.auto()
    """The last bytes are on their way; what still comes is discarded."""
    GONE = enum.auto()


class FrontHost(Protocol):
    """Who owns the connections."""

    def connected(self, connection: "FrontConnection") -> bool:
        """A new one, whose address is known; False: there is no room for it, and it is cut off."""
        ...

    def shaken_hands(self, connection: "FrontConnection") -> None:
        """It waits for `join`, or `abort`."""
        ...

    def handshake_failed(self, connection: "FrontConnection", fault: TlsFault) -> None:
        """It is being closed."""
        ...

    def gone(self, connection: "FrontConnection") -> None:
        """Nothing of it is left."""
        ...


class InnerSide(asyncio.Protocol):
    """gRPC's side of a connection."""

    def __init__(self, outer: "FrontConnection") -> None:
        self.transport: asyncio.Transport
        self._outer = outer

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(BUFFER_BYTES)
        self._outer.joined(self)

    def data_received(self, data: bytes) -> None:
        self._outer.send(data)

    def pause_writing(self) -> None:
        self._outer.pause_reading()

    def resume_writing(self) -> None:
        self._outer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._outer.inner_lost()


class FrontConnection(asyncio.Protocol):
    """The client's side, and the connection as its owner sees it."""

    def __init__(self, host: FrontHost, present: ServerTls, handshake_seconds: float) -> None:
        self.phase = Phase.HANDSHAKE
        self.tls = TlsStream(present)
        self.secured_by = present
        self.host, self.address = "", ""
        self.heard = False
        """Whether the client has sent anything."""
        self.name = ""
        """gRPC's name for it, once it has one."""
        self._owner = host
        self._transport: asyncio.Transport
        self._inner: InnerSide | None = None
        self._early = b""
        self._client_ended = False
        self._handshake_seconds = handshake_seconds
        self._deadline = Deadline(asyncio.get_running_loop())

    # The client's socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(BUFFER_BYTES)
        peer = transport.get_extra_info("peername")
        if not peer:
            # It was reset before it was looked at.
            self.abort()
            return
        self.host, self.address = str(peer[0]), address_of(str(peer[0]), int(peer[1]))
        if not self._owner.connected(self):
            self.abort()
            return
        self._deadline.set(self._handshake_seconds, self._out_of_time)

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self.phase is Phase.FINISHING:
            return
        try:
            plaintext = self.tls.receive(data)
        except TlsFault as fault:
            self._failed(fault)
            return
        self._flush()
        if self.phase is Phase.HANDSHAKE:
            if self.tls.established:
                self._early = plaintext
                self.phase = Phase.JOINING
                self._transport.pause_reading()
                self._owner.shaken_hands(self)
        elif self._inner is not None and not self._inner.transport.is_closing():
            if plaintext and not self._client_ended:
                self._inner.transport.write(plaintext)
            if self.tls.ended:
                self._client_has_ended()

    def eof_received(self) -> bool:
        if self.phase is Phase.HANDSHAKE:
            self.phase = Phase.FINISHING
            self._owner.handshake_failed(self, TlsFault("peer_closed", "the peer closed the connection"))
            return False
        if self.phase is Phase.FINISHING:
            # It has read all, or wants nothing more.
            return False
        self._client_has_ended()
        return True

    def _client_has_ended(self) -> None:
        """gRPC answers the end of what it reads by closing; what it has written by then still goes out."""
        if self._client_ended:
            return
        self._client_ended = True
        if self._inner is not None and not self._inner.transport.is_closing():
            self._inner.transport.write_eof()
        self._deadline.set(LINGER_SECONDS, self.abort)

    def pause_writing(self) -> None:
        if self._inner is not None and not self._inner.transport.is_closing():
            self._inner.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._inner is not None and not self._inner.transport.is_closing():
            self._inner.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.phase is Phase.HANDSHAKE and exc is not None:
            self._owner.handshake_failed(self, TlsFault("peer_closed", str(exc)))
        self.phase = Phase.GONE
        self._deadline.cancel()
        if self._inner is not None:
            self._inner.transport.abort()
        self._owner.gone(self)

    # gRPC's side.

    def joined(self, inner: InnerSide) -> None:
        """gRPC has accepted; from here on bytes go both ways."""
        if self.phase is not Phase.JOINING or self._transport.is_closing():
            inner.transport.abort()
            return
        self._deadline.cancel()
        self._inner = inner
        self.phase = Phase.OPEN
        early, self._early = self._early, b""
        if early:
            inner.transport.write(early)
        if self.tls.ended or self._client_ended:
            self._client_ended = False
            self._client_has_ended()
        self.resume_reading()

    def send(self, plaintext: bytes) -> None:
        """What gRPC says to the client."""
        if self.phase is not Phase.OPEN or self._transport.is_closing():
            return
        try:
            self._transport.write(self.tls.encrypt(plaintext))
        except TlsFault as fault:
            self._failed(fault)

    def pause_reading(self) -> None:
        """gRPC takes nothing for now."""
        if self.phase is Phase.OPEN and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """gRPC takes again, or what comes is discarded."""
        if not self._transport.is_closing():
            self._transport.resume_reading()

    def inner_lost(self) -> None:
        """gRPC has closed."""
        if self.phase is Phase.OPEN:
            self._finish(self.tls.close())

    # Ends.

    def _failed(self, fault: TlsFault) -> None:
        """Of a handshake, or of an open connection: the alert goes out, then it is closed."""
        if self.phase is Phase.HANDSHAKE:
            self._owner.handshake_failed(self, fault)
        self._finish(self.tls.outgoing())
        if self._inner is not None:
            self._inner.transport.abort()

    def _finish(self, last: bytes) -> None:
        """The client gets `last` and our end; the connection is closed by its end, or when the time is up."""
        if self.phase is Phase.GONE or self._transport.is_closing():
            return
        self.phase = Phase.FINISHING
        self._transport.write(last)
        if self._client_ended:
            self._transport.close()
        else:
            # Not closed at once: what the client sends meanwhile would reset the connection, and with it
            # what it has not read yet.
            self._transport.write_eof()
            self.resume_reading()
        self._deadline.set(LINGER_SECONDS, self.abort)

    def _out_of_time(self) -> None:
        self.out_of_time(self._handshake_seconds)

    def out_of_time(self, seconds: float) -> None:
        """Cuts a handshake that is not finished within so long."""
        self._owner.handshake_failed(
            self, TlsFault("handshake_timeout", f"the handshake was not finished within {seconds:g} s")
        )
        self.phase = Phase.FINISHING
        self.abort()

    def abort(self) -> None:
        """Cuts the connection without a word."""
        self._transport.abort()

    def _flush(self) -> None:
        waiting = self.tls.outgoing()
        if waiting:
            self._transport.write(waiting)
            if self._transport.get_write_buffer_size() > _MOST_UNREAD_BYTES:
                self.abort()
