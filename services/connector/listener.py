"""Accepts TCP connections of edges and owns every one of them until it is gone."""

import asyncio
import contextlib
import socket
import ssl
from typing import Protocol

from services.connector.admission import HttpRefusal
from services.connector.connections import HostedConnection, Phase, WebSocketLimits
from services.connector.failure_log import FailureLog
from services.connector.metrics import ConnectorMetrics
from services.connector.tls import EdgeTls
from services.connector.transport import LinkRequest
from services.connector.websocket import EdgeConnection
from services.runtime.errors import StartupError
from services.runtime.logs import get_log
from services.runtime.settings import split_address

_log = get_log("connector.listener")
_BACKLOG = 4096
# One link's share of the operating system's send buffer; Linux doubles it for its own bookkeeping.
_SEND_BUFFER_BYTES = 64 * 1024
HURRIED = 1 / 3


class Gate(Protocol):
    """Who decides about requests for links."""

    def requested(self, connection: HostedConnection, request: LinkRequest) -> None:
        """Answered by `connection.start` and `accept`, or `refuse`, now or later."""
        ...


class EdgeListener:
    """At most `openings_most` connections are between TCP and an answered upgrade; the others wait
    in the operating system's backlog, and while they do an opening has only `HURRIED` of its time: a narrow
    wire needs all of it, and whoever lets connections stand must not keep others out for as long."""

    def __init__(
        self,
        listen: str,
        tls: EdgeTls,
        limits: WebSocketLimits,
        openings_most: int,
        gate: Gate,
        metrics: ConnectorMetrics,
    ) -> None:
        self._tls = tls
        self.limits = limits
        self._gate = gate
        self._metrics = metrics
        self._openings_most = openings_most
        self._connections: set[HostedConnection] = set()
        self._opening: dict[HostedConnection, float] = {}  # since when, the oldest first
        self._failures = FailureLog(_log, "handshake.failed")
        self._room = asyncio.Event()
        self._room.set()
        self._none_left = asyncio.Event()
        self._none_left.set()
        self._socket = self._bind(listen)

    @staticmethod
    def _bind(listen: str) -> socket.socket:
        host, port = split_address(listen)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Accepted sockets inherit it.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
            listening.setblocking(False)
            listening.bind((host, port))
            listening.listen(_BACKLOG)
        except OSError as error:
            listening.close()
            raise StartupError(f"cannot listen on {listen} for edges: {error.strerror or error}") from error
        return listening

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections shake hands with."""
        return self._tls.context

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def connections(self) -> int:
        """How many TCP connections there are, refused and closing ones included."""
        return len(self._connections)

    @property
    def openings(self) -> int:
        """Of these, how many wait for the answer to their upgrade."""
        return len(self._opening)

    async def run(self) -> None:
        """Accepts until cancelled; then the listening socket is closed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self._room.is_set():
                    self._metrics.accept_waits.inc()
                    await self._make_room(loop)
                try:
                    accepted, _ = await loop.sock_accept(self._socket)
                except OSError as error:
                    # Out of descriptors, or the peer was gone before it was accepted.
                    self._metrics.accept_errors.labels(error.strerror or "unknown").inc()
                    await asyncio.sleep(0.05)
                    continue
                await self._adopt(loop, accepted)
        finally:
            self._socket.close()

    async def _make_room(self, loop: asyncio.AbstractEventLoop) -> None:
        """Returns when an opening has ended."""
        limit = HURRIED * self.limits.opening_timeout
        while not self._room.is_set():
            # Those whose request is whole wait for a verdict, which has a time of its own.
            oldest = next(
                (one for one in self._opening if one.phase in (Phase.HANDSHAKE, Phase.REQUEST)), None
            )
            if oldest is None:
                await self._room.wait()
            elif (left := self._opening[oldest] + limit - loop.time()) <= 0:
                oldest.out_of_time(limit)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._room.wait()

    async def _adopt(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        connection = EdgeConnection(self, loop)
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._connections.add(connection)
            self._opening[connection] = loop.time()
            self._none_left.clear()
            self._count()
            await loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError as error:
            accepted.close()
            self._metrics.accept_errors.labels(error.strerror or "unknown").inc()
            self.gone(connection)

    async def close(self) -> None:
        """Accepts nothing more, cuts what is left and returns when nothing is."""
        self._socket.close()
        for connection in tuple(self._connections):
            connection.abort()
        await self._none_left.wait()
        self._failures.close()

    async def wait_closed(self) -> None:
        """Returns when no connection is left."""
        await self._none_left.wait()

    def _count(self) -> None:
        self._metrics.connections.set(len(self._connections))
        self._metrics.openings.set(len(self._opening))
        if len(self._opening) < self._openings_most:
            self._room.set()
        else:
            self._room.clear()

    # What connections tell: websocket.ConnectionHost.

    def requested(self, connection: HostedConnection, request: LinkRequest) -> None:
        self._gate.requested(connection, request)

    def opened(self, connection: HostedConnection) -> None:
        self._opening.pop(connection, None)
        self._count()

    def handshake_failed(self, connection: HostedConnection, reason: str, detail: str) -> None:
        self._metrics.handshake_failures.labels(reason).inc()
        self._failures.add(
            reason,
            peer=connection.peer_address,
            detail=detail,
            phase="tls" if connection.phase is Phase.HANDSHAKE else "request",
        )

    def refused(self, connection: HostedConnection, refusal: HttpRefusal) -> None:
        self._metrics.refusals.labels(str(refusal.status), refusal.reason).inc()
        _log.info(
            "link.refused",
            peer=connection.peer_address,
            status=refusal.status,
            reason=refusal.reason,
            detail=refusal.text,
        )

    def gone(self, connection: HostedConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()
        self.opened(connection)
