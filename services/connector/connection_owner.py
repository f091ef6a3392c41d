"""Who owns the connections of one transport until nothing is left of them, and counts them."""

import asyncio
from abc import ABC, abstractmethod
from typing import Any, Protocol

from services.connector.admission import HttpRefusal
from services.connector.connections import ConnectionLimits, HostedConnection, Phase
from services.connector.metrics import ConnectorMetrics
from services.connector.transport import LinkRequest
from services.runtime.failure_log import FailureLog
from services.runtime.line_budget import LineBudget
from services.runtime.logs import get_log
from services.runtime.openings import PATIENCE_SECONDS, OpeningLimits, Openings
from services.runtime.rate_limit import network_of

_log = get_log("connector.listener")
# Of the time for an opening, what each of its steps may take while others wait for room: a narrow wire needs
# all of it, and whoever lets connections stand must not keep others out for as long.
_HURRIED = 1 / 3
# Of a network and a reason; a network may be a whole plant behind one address.
_REFUSED_LINES_AT_ONCE = 100
_SECONDS_PER_REFUSED_LINE = 1.0


def _network_of(peer_address: str) -> str:
    """Of `HOST:PORT`, with the host in brackets where it has colons of its own; empty: not known any more."""
    return "" if not peer_address else network_of(peer_address.rpartition(":")[0].strip("[]"))


class Gate(Protocol):
    """Who decides about requests for links."""

    def requested(self, connection: HostedConnection, request: LinkRequest) -> None:
        """Answered by `connection.start` and `accept`, or `refuse`, now or later."""
        ...


class ConnectionOwner(ABC):
    """Implements `connections.ConnectionHost`, but for what one transport alone needs.

    At most `openings_most` connections have an answer to their request before them; at most `max_waiting`
    more have sent nothing, wait for their turn, or are being closed. `runtime.openings` says who gives way.
    """

    def __init__(
        self,
        transport: str,
        limits: ConnectionLimits,
        openings_most: int,
        max_waiting: int,
        gate: Gate,
        metrics: ConnectorMetrics,
    ) -> None:
        self.limits = limits
        hurried = _HURRIED * limits.opening_timeout
        self._max_waiting = max_waiting
        self._openings: Openings[Any] = Openings(
            OpeningLimits(openings_most, max_waiting, min(PATIENCE_SECONDS, hurried), hurried)
        )
        self._transport = transport
        self._gate = gate
        self._metrics = metrics
        self._connections: dict[HostedConnection, str] = {}  # and their networks
        self._refused_lines = LineBudget(_REFUSED_LINES_AT_ONCE, _SECONDS_PER_REFUSED_LINE)
        self._failures = FailureLog(_log, "handshake.failed")
        self._none_left = asyncio.Event()
        self._none_left.set()
        metrics.connections.labels(transport).set_function(lambda: self.connections)
        metrics.openings.labels(transport).set_function(lambda: self.openings)
        metrics.waiting.labels(transport).set_function(lambda: self._openings.waiting)

    @property
    def connections(self) -> int:
        """How many connections there are, refused and closing ones included; not those whose turn has not
        come."""
        return len(self._connections)

    @property
    def openings(self) -> int:
        """Of these, how many wait for the answer to their request."""
        return self._openings.at_work

    def adopt(self, connection: HostedConnection, network: str) -> None:
        """A new connection, whose opening begins."""
        self._connections[connection] = network
        self._none_left.clear()

    @abstractmethod
    def room_found(self) -> None:
        """An opening has ended: another one may begin."""

    @abstractmethod
    async def close(self) -> None:
        """Accepts nothing more, cuts what is left and returns when nothing is."""

    def abort_all(self) -> None:
        """Cuts every connection that is left."""
        for connection in tuple(self._connections):
            connection.abort()

    async def finish(self) -> None:
        """Returns when no connection is left and all that failed is told."""
        await self.wait_closed()
        self._failures.close()

    async def wait_closed(self) -> None:
        """Returns when no connection is left."""
        await self._none_left.wait()

    # What connections tell: connections.ConnectionHost.

    def progressed(self, connection: HostedConnection) -> None:
        self._openings.progressed(connection, asyncio.get_running_loop().time())

    def requested(self, connection: HostedConnection, request: LinkRequest) -> None:
        self._openings.decide(connection, asyncio.get_running_loop().time())
        self._gate.requested(connection, request)

    def opened(self, connection: HostedConnection) -> None:
        self._openings.end(connection)
        self.room_found()

    def closing(self, connection: HostedConnection) -> None:
        network = self._connections.get(connection)
        if network is not None:
            self._openings.linger(connection, network, asyncio.get_running_loop().time())
            self.room_found()

    def handshake_failed(self, connection: HostedConnection, reason: str, detail: str) -> None:
        phase = "tls" if connection.phase is Phase.HANDSHAKE else "request"
        self.opening_failed(connection.peer_address, reason, detail, phase)

    def opening_failed(self, peer: str, reason: str, detail: str, phase: str) -> None:
        """Counts and tells an opening that came to nothing before there was anything to answer."""
        self._metrics.handshake_failures.labels(self._transport, reason).inc()
        self._failures.add(reason, peer=peer, transport=self._transport, detail=detail, phase=phase)

    def refused(self, connection: HostedConnection, refusal: HttpRefusal) -> None:
        self._metrics.refusals.labels(self._transport, str(refusal.status), refusal.reason).inc()
        network = _network_of(connection.peer_address)
        # Each reason has lines of its own: one that comes all the time hides no other.
        told = self._refused_lines.take(f"{network} {refusal.reason}", asyncio.get_running_loop().time())
        if told is not None:
            _log.info(
                "link.refused",
                peer=connection.peer_address,
                transport=self._transport,
                status=refusal.status,
                reason=refusal.reason,
                detail=refusal.text,
                **told,
            )

    def gone(self, connection: HostedConnection) -> None:
        self._connections.pop(connection, None)
        self._openings.end(connection)
        if not self._connections:
            self._none_left.set()
        self.room_found()
