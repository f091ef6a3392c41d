"""Who owns the connections of one transport until nothing is left of them, and counts them."""

import asyncio
from abc import ABC, abstractmethod
from typing import Protocol

from services.connector.admission import HttpRefusal
from services.connector.connections import ConnectionLimits, HostedConnection, Phase
from services.connector.metrics import ConnectorMetrics
from services.connector.transport import LinkRequest
from services.runtime.failure_log import FailureLog
from services.runtime.logs import get_log

_log = get_log("connector.listener")
HURRIED = 1 / 3


class Gate(Protocol):
    """Who decides about requests for links."""

    def requested(self, connection: HostedConnection, request: LinkRequest) -> None:
        """Answered by `connection.start` and `accept`, or `refuse`, now or later."""
        ...


class ConnectionOwner(ABC):
    """Implements `connections.ConnectionHost`, but for what one transport alone needs.

    At most `openings_most` connections have an answer to their request before them; `room` is set while
    there may be one more. While others wait for room an opening has only `HURRIED` of its time: a narrow wire
    needs all of it, and whoever lets connections stand must not keep others out for as long.
    """

    def __init__(
        self,
        transport: str,
        limits: ConnectionLimits,
        openings_most: int,
        gate: Gate,
        metrics: ConnectorMetrics,
    ) -> None:
        self.limits = limits
        self.room = asyncio.Event()
        self.room.set()
        self._transport = transport
        self._gate = gate
        self._metrics = metrics
        self._openings_most = openings_most
        self._connections: set[HostedConnection] = set()
        self._opening: dict[HostedConnection, float] = {}  # since when, the oldest first
        self._failures = FailureLog(_log, "handshake.failed")
        self._none_left = asyncio.Event()
        self._none_left.set()

    @property
    def connections(self) -> int:
        """How many connections there are, refused and closing ones included."""
        return len(self._connections)

    @property
    def openings(self) -> int:
        """Of these, how many wait for the answer to their request."""
        return len(self._opening)

    def adopt(self, connection: HostedConnection) -> None:
        """A new connection, whose opening begins."""
        self._connections.add(connection)
        self._opening[connection] = asyncio.get_running_loop().time()
        self._none_left.clear()
        self._count()

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

    def hurry(self, now: float) -> float | None:
        """Somebody waits for room: cuts the opening that has had its share of time, or says in how many
        seconds one will have; None if there is none to cut (those whose request is whole wait for a verdict,
        which has a time of its own)."""
        limit = HURRIED * self.limits.opening_timeout
        oldest = next((one for one in self._opening if one.phase in (Phase.HANDSHAKE, Phase.REQUEST)), None)
        if oldest is None:
            return None
        left = self._opening[oldest] + limit - now
        if left <= 0:
            oldest.out_of_time(limit)
        return max(left, 0.0)

    async def wait_closed(self) -> None:
        """Returns when no connection is left."""
        await self._none_left.wait()

    def _count(self) -> None:
        self._metrics.connections.labels(self._transport).set(len(self._connections))
        self._metrics.openings.labels(self._transport).set(len(self._opening))
        if len(self._opening) < self._openings_most:
            self.room.set()
        else:
            self.room.clear()

    # What connections tell: connections.ConnectionHost.

    def requested(self, connection: HostedConnection, request: LinkRequest) -> None:
        self._gate.requested(connection, request)

    def opened(self, connection: HostedConnection) -> None:
        self._opening.pop(connection, None)
        self._count()

    def handshake_failed(self, connection: HostedConnection, reason: str, detail: str) -> None:
        self._metrics.handshake_failures.labels(self._transport, reason).inc()
        self._failures.add(
            reason,
            peer=connection.peer_address,
            transport=self._transport,
            detail=detail,
            phase="tls" if connection.phase is Phase.HANDSHAKE else "request",
        )

    def refused(self, connection: HostedConnection, refusal: HttpRefusal) -> None:
        self._metrics.refusals.labels(self._transport, str(refusal.status), refusal.reason).inc()
        _log.info(
            "link.refused",
            peer=connection.peer_address,
            transport=self._transport,
            status=refusal.status,
            reason=refusal.reason,
            detail=refusal.text,
        )

    def gone(self, connection: HostedConnection) -> None:
        self._connections.discard(connection)
        if not self._connections:
            self._none_left.set()
        self.opened(connection)
