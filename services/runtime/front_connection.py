"""One connection of the TLS front: a client's socket outside, gRPC's inside, and TLS between them.

Bytes go as they come, both ways; whichever side takes nothing stops the other from being read. When either
side ends, so does the other, after what it was sent.
"""

import asyncio
import enum
from collections import Counter
from typing import Protocol, cast

from services.runtime.callers import address_of
from services.runtime.deadline import Deadline
from services.runtime.errors import HubError
from services.runtime.http2_calls import HttpCalls
from services.runtime.server_tls import ServerTls, TlsStream
from services.runtime.tls_faults import TlsFault

# What may wait to be written to one side before the other is not read any more.
BUFFER_BYTES = 256 * 1024
# A peer that makes us answer (TLS key updates, pings of a closed stream) and reads nothing is cut off.
_MOST_UNREAD_BYTES = 1024 * 1024
# What a client says first, in clear; and so much of it waits while others shake hands.
_MOST_HELLO_BYTES = 16 * 1024
# What one who is refused may say to hear why, before the connection ends.
_MOST_REFUSED_BYTES = 128 * 1024
_MOST_REFUSED_CALLS = 16
_FORGIVEN_SECONDS = 1.0
LINGER_SECONDS = 2.0
"""How long a side may take to read what it was sent before the connection is cut."""


class Phase(enum.Enum):
    """Where a connection is in its life."""

    SILENT = enum.auto()
    """Nothing came yet."""
    WAITING = enum.auto()
    """Something came; others shake hands, and it waits for its turn."""
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

    def heard(self, connection: "FrontConnection") -> bool:
        """Its first bytes came: it waits for `shake_hands`, or `abort`. False: it is cut off."""
        ...

    def calls_refused(self, connection: "FrontConnection", refusal: HubError, calls: int) -> None:
        """So many calls that its caller may not have; they have been answered."""
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
    """gRPC's side of a connection. `join` once it is connected: from `connection_made` a transport of uvloop
    cannot be aborted, since it has not got hold of its socket yet."""

    def __init__(self, outer: "FrontConnection") -> None:
        self.transport: asyncio.Transport
        self._outer = outer
        self._early: list[bytes] | None = []
        """What came before `join`."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.transport.set_write_buffer_limits(BUFFER_BYTES)

    def join(self) -> None:
        """From here on bytes go both ways."""
        early, self._early = self._early or [], None
        self._outer.joined(self)
        for data in early:
            self._outer.send(data)
        if self.transport.is_closing():
            self._outer.inner_lost()

    def data_received(self, data: bytes) -> None:
        if self._early is None:
            self._outer.send(data)
        else:
            self._early.append(data)

    def pause_writing(self) -> None:
        self._outer.pause_reading()

    def resume_writing(self) -> None:
        self._outer.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._outer.inner_lost()


class FrontConnection(asyncio.Protocol):
    """The client's side, and the connection as its owner sees it."""

    def __init__(self, host: FrontHost, handshake_seconds: float) -> None:
        self.phase = Phase.SILENT
        self.tls: TlsStream
        self.secured_by: ServerTls
        self.host, self.address = "", ""
        self.calls: HttpCalls | None = None
        """What it calls, where that is counted. Set before gRPC has it."""
        self.refusal: HubError | None = None
        """What it is answered whatever it says. Set with `calls`."""
        self.name = ""
        """gRPC's name for it, once it has one."""
        self._owner = host
        self._transport: asyncio.Transport
        self._inner: InnerSide | None = None
        self._early = b""
        self._received_bytes = 0
        self._forgiven_at = 0.0
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

    @property
    def heard(self) -> bool:
        """Whether the client has sent anything."""
        return self.phase is not Phase.SILENT

    @property
    def shakes_hands(self) -> bool:
        """Whether it is not known yet who that is."""
        return self.phase in (Phase.SILENT, Phase.WAITING, Phase.HANDSHAKE)

    def shake_hands(self, present: ServerTls) -> None:
        """It is its turn."""
        self.secured_by = present
        self.tls = TlsStream(present)
        self.phase = Phase.HANDSHAKE
        early, self._early = self._early, b""
        self._transport.resume_reading()
        self._receive(early)

    def data_received(self, data: bytes) -> None:
        if self.phase is Phase.SILENT:
            if len(data) > _MOST_HELLO_BYTES:
                self._failed(TlsFault("not_tls", "it begins with no ClientHello"))
                return
            self.phase = Phase.WAITING
            self._early = data
            self._transport.pause_reading()
            if not self._owner.heard(self):
                self.abort()
        elif self.phase is not Phase.FINISHING:
            self._receive(data)

    def _receive(self, data: bytes) -> None:
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
                self._pass_on(plaintext)
            if self.tls.ended:
                self._client_has_ended()

    def _pass_on(self, plaintext: bytes) -> None:
        """To gRPC, but for what the caller may not have."""
        assert self._inner is not None
        calls = self.calls
        if calls is None:
            self._inner.transport.write(plaintext)
            return
        before = calls.opened
        passed = calls.from_client(plaintext)
        if self.refusal is not None:
            self._received_bytes += len(plaintext)
            if calls.opened > _MOST_REFUSED_CALLS or self._received_bytes > _MOST_REFUSED_BYTES:
                self._owner.calls_refused(self, self.refusal, calls.opened - before)
                self.say_goodbye(self.refusal)
                return
        self._inner.transport.write(passed)
        if calls.refused:
            self._told_refusals(calls)

    def _told_refusals(self, calls: HttpCalls) -> None:
        refusals, calls.refused = calls.refused, []
        words = calls.for_client()
        if words:
            self._encrypt(words)
        # Of one read, they are of a kind or two.
        last = {refusal.reason: refusal for refusal in refusals}
        for reason, count in Counter(refusal.reason for refusal in refusals).items():
            self._owner.calls_refused(self, last[reason], count)
        now = asyncio.get_running_loop().time()
        if calls.overrun:
            self.say_goodbye(refusals[-1])
        elif now - self._forgiven_at > _FORGIVEN_SECONDS:
            self._forgiven_at = now
            calls.forgive()

    def say_goodbye(self, error: HubError) -> None:
        """Ends the connection with all its calls, and says why if that can be said now."""
        if self.phase is not Phase.OPEN:
            self.abort()
            return
        words = self.calls.goodbye(error) if self.calls is not None else b""
        if words:
            self._encrypt(words)
        if self.phase is Phase.OPEN:
            self._finish(self.tls.close())
        if self._inner is not None:
            self._inner.transport.abort()

    def eof_received(self) -> bool:
        if self.shakes_hands:
            self._owner.handshake_failed(self, TlsFault("peer_closed", "the peer closed the connection"))
            self.phase = Phase.FINISHING
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
        if self.shakes_hands and exc is not None:
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
            self._pass_on(early)
            if self.phase is not Phase.OPEN:
                return
        if self.tls.ended or self._client_ended:
            self._client_ended = False
            self._client_has_ended()
        self.resume_reading()

    def send(self, plaintext: bytes) -> None:
        """What gRPC says to the client."""
        if self.phase is not Phase.OPEN or self._transport.is_closing():
            return
        if self.calls is not None:
            plaintext = self.calls.from_server(plaintext)
            waiting = self.calls.for_client()
            if waiting:
                plaintext += waiting
        self._encrypt(plaintext)

    def _encrypt(self, plaintext: bytes) -> None:
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
        if self.phase is Phase.SILENT:
            self._owner.handshake_failed(self, fault)
            self.phase = Phase.FINISHING
            self.abort()
            return
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
