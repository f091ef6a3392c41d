"""Accepts TCP connections of edges."""

import asyncio
import socket
import ssl

from services.connector.admission import HttpRefusal, Identity, check_identity
from services.connector.connection_owner import ConnectionOwner, Gate
from services.connector.connections import ConnectionLimits, HostedConnection, shown_address
from services.connector.metrics import ConnectorMetrics
from services.connector.tls import EdgeTls
from services.connector.transport import LinkRequest
from services.connector.websocket import EdgeConnection
from services.runtime.acceptor import Accepted, Acceptor, Proxies
from services.runtime.listening import tcp_listener

_BACKLOG = 4096
# One link's share of the operating system's send buffer; Linux doubles it for its own bookkeeping.
_SEND_BUFFER_BYTES = 64 * 1024
NO_PROXIES = Proxies()
"""Nobody may send a PROXY header."""
_WHY = {
    "crowded": "there was no room for one more of its network",
    "crowded_out": "others had to get in",
    "peer_closed": "the peer closed the connection",
    "proxy_header_timeout": "its PROXY header did not come in time",
    "silent": "it sent nothing in its time",
    "turn_timeout": "its turn did not come in time",
}


class EdgeListener(ConnectionOwner):
    """A connection is an opening from its first byte on; implements `acceptor.AcceptorUser`. `max_links` is
    what the process has descriptors for."""

    def __init__(
        self,
        listen: str,
        tls: EdgeTls,
        limits: ConnectionLimits,
        openings_most: int,
        max_waiting: int,
        gate: Gate,
        metrics: ConnectorMetrics,
        *,
        max_links: int,
        retry_after: float,
        proxies: Proxies = NO_PROXIES,
    ) -> None:
        super().__init__("websocket", limits, openings_most, max_waiting, gate, metrics)
        self._max_links = max_links
        self._retry_after = retry_after
        self._tls = tls
        listening = tcp_listener(listen, "edges", _BACKLOG, send_buffer_bytes=_SEND_BUFFER_BYTES)
        self._acceptor = Acceptor(
            listening, self._openings, self, silence_seconds=limits.opening_timeout, proxies=proxies
        )

    @property
    def context(self) -> ssl.SSLContext:
        """What new connections shake hands with."""
        return self._tls.context

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        return self._acceptor.port

    @property
    def connections(self) -> int:
        return super().connections + self._acceptor.waiting

    @property
    def links(self) -> int:
        """Connections that are links: past their opening and not being closed."""
        closing = self._openings.waiting - self._acceptor.waiting
        return super().connections - self._openings.at_work - closing

    def requested(self, connection: HostedConnection, request: LinkRequest) -> None:
        if self.links >= self._max_links and self._may_have_a_link(request):
            text = f"there are descriptors for {self._max_links} links"
            connection.refuse(HttpRefusal(503, "descriptors", text, self._retry_after))
        else:
            super().requested(connection, request)

    @staticmethod
    def _may_have_a_link(request: LinkRequest) -> bool:
        """Who may not is told that, and not to come back when there is room."""
        return isinstance(check_identity(request.certificate, request.path, request.headers), Identity)

    async def run(self) -> None:
        """Accepts until cancelled; then the listening socket is closed."""
        await self._acceptor.run()

    def room_found(self) -> None:
        self._acceptor.look()

    # acceptor.AcceptorUser.

    async def begin(self, accepted: Accepted) -> None:
        loop = asyncio.get_running_loop()
        connection = EdgeConnection(self, loop, shown_address((accepted.host, accepted.port)))
        try:
            accepted.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.adopt(connection, accepted.network)
            self._acceptor.take_over(accepted, connection)
            await loop.connect_accepted_socket(lambda: connection, accepted.socket)
        except OSError as error:
            accepted.socket.close()
            self.accept_failed(error)
            self.gone(connection)

    def turned_away(self, accepted: Accepted, reason: str) -> None:
        peer = shown_address((accepted.host, accepted.port))
        self.opening_failed(peer, reason, accepted.fault or _WHY[reason], "tcp")

    def accept_failed(self, error: OSError) -> None:
        self._metrics.accept_errors.labels(error.strerror or "unknown").inc()

    def turns_wait(self) -> None:
        self._metrics.accept_waits.inc()

    async def close(self) -> None:
        """Accepts nothing more, cuts what is left and returns when nothing is."""
        self._acceptor.close()
        self.abort_all()
        await self.finish()
