"""Accepts TCP connections of strangers and keeps each, as a bare socket, until it has sent something and its
turn has come (`openings`): whoever only connects takes nothing but a descriptor, and that only while there is
no better use for it.
"""

import asyncio
import errno
import select
import socket
from dataclasses import dataclass
from typing import Any, Protocol

from services.runtime.deadline import Deadline
from services.runtime.openings import Openings
from services.runtime.proxy_header import (
    FIXED_BYTES,
    SIGNATURE,
    HeaderFault,
    Network,
    begins_with_header,
    is_among,
    read_header,
)
from services.runtime.rate_limit import network_of

# Accepted, or found to have sent something, in one turn of the event loop, which has other things to do.
_MOST_AT_ONCE = 64
_MOST_BEGUN = 16
# How often it is looked whether somebody has waited long enough for others to give way.
_LOOK_SECONDS = 0.1
# Out of descriptors, or of the kernel's memory: trying again at once would spin.
_REST_SECONDS = 0.05
_ENDED = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_NONE_LEFT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Opening(Protocol):
    """Who has a place in an acceptor's table: `Accepted`, and what its owner makes of it."""

    def crowded_out(self) -> None:
        """It has to give way, and is cut at once. The table has forgotten it."""
        ...


class AcceptorUser(Protocol):
    """Whose connections they are."""

    async def begin(self, accepted: "Accepted") -> None:
        """Its turn has come; the socket is the user's from here on. It tells the table what becomes of it,
        under `accepted` until `Acceptor.take_over` names another. May not raise, and not take long."""
        ...

    def turned_away(self, accepted: "Accepted", reason: str) -> None:
        """It is closed: `crowded` (no room for it), `crowded_out` (it gave way to another network), `silent`
        (nothing came in time), `peer_closed` (it ended without a byte) or `turn_timeout` (its turn did not
        come in time). Where there are `Proxies`, also `proxy_header_timeout` (none came in time) and, with
        what is wrong in `accepted.fault`, `proxy_header_malformed` and `proxy_header_unexpected`."""
        ...

    def accept_failed(self, error: OSError) -> None:
        """Nothing could be accepted, for now."""
        ...

    def turns_wait(self) -> None:
        """Somebody has to wait for his turn."""
        ...


@dataclass(frozen=True, slots=True)
class Proxies:
    """Balancers that say by a PROXY header from where each connection comes: those of `networks`, who have
    to; nobody else may."""

    networks: tuple[Network, ...] = ()
    header_seconds: float = 5.0


class Accepted:
    """A connection of which nothing was read yet, but for a PROXY header: then `host`, `port` and `network`
    are those that it tells."""

    __slots__ = (
        "_acceptor",
        "_deadline",
        "fault",
        "header_bytes",
        "host",
        "network",
        "port",
        "socket",
    )

    def __init__(self, acceptor: "Acceptor", accepted: socket.socket, address: tuple[Any, ...]) -> None:
        self.socket = accepted
        self.host, self.port = str(address[0]), int(address[1])
        self.network = network_of(self.host)
        self.header_bytes = 0  # of a PROXY header, wanted for the next look
        self.fault = ""
        self._acceptor = acceptor
        self._deadline = Deadline(asyncio.get_running_loop())

    def crowded_out(self) -> None:
        """See `Opening`."""
        self.turn_away("crowded_out")

    def turn_away(self, reason: str) -> None:
        """Cuts it, and says why."""
        self._acceptor.turn_away(self, reason)

    def comes_from(self, host: str, port: int) -> None:
        """What its PROXY header tells."""
        self.host, self.port = host, port
        self.network = network_of(host)

    def set_deadline(self, seconds: float, reason: str) -> None:
        """It is turned away for `reason` after so long."""
        self._deadline.set(seconds, lambda: self.turn_away(reason))

    def free(self) -> None:
        """It waits no more."""
        self._deadline.cancel()


class Acceptor:
    """`run` accepts until cancelled; then what waits is cut and the listening socket closed. Whatever frees a
    place in `openings` is followed by `look`."""

    def __init__(
        self,
        listening: socket.socket,
        openings: Openings[Any],
        user: AcceptorUser,
        *,
        silence_seconds: float,
        proxies: Proxies | None = None,
    ) -> None:
        self._listening = listening
        self._proxies = proxies
        self._openings = openings
        self._user = user
        self._silence_seconds = silence_seconds
        self._waiting: set[Accepted] = set()
        # The event loop looks at one descriptor for all that are silent; it tells a few at a time.
        self._silent = select.epoll()
        self._by_descriptor: dict[int, Accepted] = {}
        self._changed = asyncio.Event()
        self._rest: asyncio.TimerHandle | None = None

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        port: int = self._listening.getsockname()[1]
        return port

    @property
    def waiting(self) -> int:
        """Connections that were accepted and not begun."""
        return len(self._waiting)

    def close(self) -> None:
        """Frees the address and cuts what waits; once is enough."""
        if self._silent.closed:
            return
        asyncio.get_running_loop().remove_reader(self._silent.fileno())
        self._stop_listening()
        self._listening.close()
        for accepted in tuple(self._waiting):
            self._drop(accepted)
        self._silent.close()

    def look(self) -> None:
        """A place has become free."""
        self._changed.set()

    def take_over(self, accepted: Accepted, item: Opening) -> None:
        """`item` has the place of `accepted` at work."""
        self._openings.end(accepted)
        self._openings.begin(item, accepted.network, asyncio.get_running_loop().time())

    async def run(self) -> None:
        """Accepts until cancelled."""
        self._listen()
        asyncio.get_running_loop().add_reader(self._silent.fileno(), self._some_heard)
        try:
            while True:
                await self._take_turns()
                try:
                    async with asyncio.timeout(_LOOK_SECONDS if self._openings.ready else None):
                        await self._changed.wait()
                except TimeoutError:
                    pass
                self._changed.clear()
        finally:
            self.close()

    async def _take_turns(self) -> None:
        """Some at once: where the event loop has much to do in each of its turns, a fleet would wait for one
        after the other. Not all at once, so that it gets to others between them."""
        loop = asyncio.get_running_loop()
        while True:
            begun: list[asyncio.Task[None]] = []
            while len(begun) < _MOST_BEGUN and (turn := self._openings.next_turn(loop.time())) is not None:
                if turn.gives_way is not None:
                    turn.gives_way.crowded_out()
                accepted: Accepted = turn.begins
                self._let_go(accepted)
                begun.append(loop.create_task(self._user.begin(accepted), name="begin"))
            if not begun:
                break
            await _all_done(begun)
        if self._openings.ready and not self._openings.has_room:
            self._user.turns_wait()

    # The listening socket.

    def _listen(self) -> None:
        self._rest = None
        asyncio.get_running_loop().add_reader(self._listening, self._acceptable)

    def _stop_listening(self) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        elif self._listening.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._listening)

    def _acceptable(self) -> None:
        for _ in range(_MOST_AT_ONCE):
            try:
                accepted, address = self._listening.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                self._failed(error)
                return
            self._arrived(accepted, address)

    def _failed(self, error: OSError) -> None:
        """Else the peer was gone before it was accepted, which says nothing about the next one."""
        self._user.accept_failed(error)
        if error.errno in _NONE_LEFT:
            spared = self._openings.spare()
            if spared is not None:
                spared.crowded_out()
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._listening)
            self._rest = loop.call_later(_REST_SECONDS, self._listen)

    def _arrived(self, accepted: socket.socket, address: tuple[Any, ...]) -> None:
        accepted.setblocking(False)
        one = Accepted(self, accepted, address)
        self._waiting.add(one)
        if not self._has_place(one):
            return
        one.set_deadline(self._silence_seconds, "silent")
        if self._proxies is not None and is_among(one.host, self._proxies.networks):
            one.set_deadline(self._proxies.header_seconds, "proxy_header_timeout")
            self._want_header(one, FIXED_BYTES)
        self._by_descriptor[accepted.fileno()] = one
        self._silent.register(accepted, select.EPOLLIN | select.EPOLLRDHUP)

    def _has_place(self, one: Accepted) -> bool:
        """Among those that are silent, under its network; else it is turned away."""
        gone = self._openings.arrive(one, one.network, asyncio.get_running_loop().time())
        if gone is one:
            one.turn_away("crowded")
            return False
        if gone is not None:
            gone.crowded_out()
        return True

    # What waits.

    def _some_heard(self) -> None:
        for descriptor, events in self._silent.poll(0, _MOST_AT_ONCE):
            accepted = self._by_descriptor.get(descriptor)
            if accepted is not None:
                self._heard(accepted, bool(events & _ENDED))

    def _heard(self, accepted: Accepted, ended: bool) -> None:
        """Bytes, or its end."""
        wanted = accepted.header_bytes
        try:
            # What is only looked at stays with the operating system, so that nothing of TLS is read here.
            data = accepted.socket.recv(wanted or len(SIGNATURE), socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data or (len(data) < wanted and ended):
            accepted.turn_away("peer_closed")
            return
        if wanted:
            self._header_heard(accepted, data)
            return
        if self._proxies is not None and begins_with_header(data):
            accepted.fault = "it begins with a PROXY header; --proxy-networks names who may send one"
            accepted.turn_away("proxy_header_unexpected")
            return
        self._look_away(accepted)
        accepted.set_deadline(self._silence_seconds, "turn_timeout")
        self._openings.heard(accepted, asyncio.get_running_loop().time())
        self._changed.set()

    @staticmethod
    def _want_header(accepted: Accepted, number: int) -> None:
        """It is heard of again when it has sent so many bytes."""
        accepted.header_bytes = number
        accepted.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, max(1, number))

    def _header_heard(self, accepted: Accepted, data: bytes) -> None:
        """What comes after the header is its first byte."""
        try:
            found = read_header(data)
        except HeaderFault as fault:
            accepted.fault = str(fault)
            accepted.turn_away("proxy_header_malformed")
            return
        if isinstance(found, int):
            self._want_header(accepted, found)
            return
        accepted.socket.recv(found.size)
        self._want_header(accepted, 0)
        if found.origin is not None:
            self._openings.end(accepted)
            accepted.comes_from(*found.origin)
            if not self._has_place(accepted):
                return
        accepted.set_deadline(self._silence_seconds, "silent")

    def turn_away(self, accepted: Accepted, reason: str) -> None:
        """Cuts it, and tells its user why."""
        self._drop(accepted)
        self._user.turned_away(accepted, reason)

    def _drop(self, accepted: Accepted) -> None:
        self._openings.end(accepted)
        self._let_go(accepted)
        accepted.socket.close()

    def _let_go(self, accepted: Accepted) -> None:
        self._waiting.discard(accepted)
        accepted.free()
        self._look_away(accepted)

    def _look_away(self, accepted: Accepted) -> None:
        if self._by_descriptor.pop(accepted.socket.fileno(), None) is not None:
            self._silent.unregister(accepted.socket)


async def _all_done(begun: list[asyncio.Task[None]]) -> None:
    """Also if it is cancelled meanwhile: a connection that is half begun would never end."""
    try:
        await asyncio.wait(begun)
    except asyncio.CancelledError:
        await asyncio.wait(begun)
        raise
    for task in begun:
        task.result()
