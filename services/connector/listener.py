"""Accepts TCP connections of edges."""

import asyncio
import contextlib
import socket
import ssl

from services.connector.connection_owner import ConnectionOwner, Gate
from services.connector.connections import ConnectionLimits
from services.connector.metrics import ConnectorMetrics
from services.connector.tls import EdgeTls
from services.connector.websocket import EdgeConnection
from services.runtime.listening import tcp_listener

_BACKLOG = 4096
# One link's share of the operating system's send buffer; Linux doubles it for its own bookkeeping.
_SEND_BUFFER_BYTES = 64 * 1024


class EdgeListener(ConnectionOwner):
    """At most `openings_most` connections are between TCP and an answered upgrade; the others wait
    in the operating system's backlog."""

    def __init__(
        self,
        listen: str,
        tls: EdgeTls,
        limits: ConnectionLimits,
        openings_most: int,
        gate: Gate,
        metrics: ConnectorMetrics,
    ) -> None:
        super().__init__("websocket", limits, openings_most, gate, metrics)
        self._tls = tls
        self._socket = tcp_listener(listen, "edges", _BACKLOG, send_buffer_bytes=_SEND_BUFFER_BYTES)

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections shake hands with."""
        return self._tls.context

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        port: int = self._socket.getsockname()[1]
        return port

    async def run(self) -> None:
        """Accepts until cancelled; then the listening socket is closed."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                if not self.room.is_set():
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
        while not self.room.is_set():
            left = self.hurry(loop.time())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.room.wait()

    async def _adopt(self, loop: asyncio.AbstractEventLoop, accepted: socket.socket) -> None:
        connection = EdgeConnection(self, loop)
        try:
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.adopt(connection)
            await loop.connect_accepted_socket(lambda: connection, accepted)
        except OSError as error:
            accepted.close()
            self._metrics.accept_errors.labels(error.strerror or "unknown").inc()
            self.gone(connection)

    async def close(self) -> None:
        """Accepts nothing more, cuts what is left and returns when nothing is."""
        self._socket.close()
        self.abort_all()
        await self.finish()
