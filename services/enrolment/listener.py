"""Accepts HTTPS connections, one request each, within a time and a number; owns all of them."""

import asyncio
import socket
from collections import Counter
from collections.abc import Awaitable, Callable

from services.enrolment.authority import RenewedContext
from services.enrolment.metrics import EnrolmentMetrics
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.http import Answer, Exchange, Request, refused
from services.runtime.listening import tcp_listener
from services.runtime.logs import get_log
from services.runtime.rate_limit import RateLimit, network_of

_log = get_log("enrolment.listener")
_BACKLOG = 1024
_READ_BYTES = 16 * 1024
# After the answer, for a client that has not read it yet: a reset would take it away.
_LINGER_SECONDS = 2.0

Respond = Callable[[Request, bytes | None, str], Awaitable[Answer]]


class EnrolmentListener:
    """At most `most_connections` at a time; the others wait in the operating system's backlog. Of these one
    network (`network_of`) has a quarter at most. A connection has `request_seconds` for everything. Raises
    StartupError if the address cannot be had."""

    def __init__(
        self,
        listen: str,
        context: RenewedContext,
        respond: Respond,
        limit: RateLimit,
        metrics: EnrolmentMetrics,
        clock: Clock,
        *,
        most_connections: int,
        request_seconds: float,
    ) -> None:
        self._context = context
        self._respond = respond
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._room = asyncio.Semaphore(most_connections)
        self._most_per_network = max(1, most_connections // 4)
        self._open: Counter[str] = Counter()
        # Accepted, and their tasks have not begun: one that is cancelled before that closes nothing.
        self._unserved: set[socket.socket] = set()
        self._seconds = request_seconds
        self._socket = tcp_listener(listen, "enrolment", _BACKLOG)

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        port: int = self._socket.getsockname()[1]
        return port

    def close(self) -> None:
        """Frees the address; for a listener that does not run."""
        self._socket.close()

    async def run(self) -> None:
        """Accepts until cancelled; then the listening socket is closed and what is open is cut."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as group:
                while True:
                    await self._room.acquire()
                    try:
                        accepted, address = await loop.sock_accept(self._socket)
                    except OSError as error:
                        # Out of descriptors, or the peer was gone before it was accepted.
                        self._room.release()
                        _log.warning("accept.failed", error=error.strerror or str(error))
                        await asyncio.sleep(0.05)
                        continue
                    host = str(address[0])
                    network = network_of(host)
                    if self._open[network] >= self._most_per_network:
                        self._metrics.requests.labels("address_connections").inc()
                        self._room.release()
                        accepted.close()
                        continue
                    self._open[network] += 1
                    self._unserved.add(accepted)
                    group.create_task(self._serve(accepted, host, network), name="enrolment request")
        finally:
            self._socket.close()
            for accepted in self._unserved:
                accepted.close()

    async def _serve(self, accepted: socket.socket, address: str, network: str) -> None:
        self._unserved.discard(accepted)
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_READ_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(self._seconds):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    accepted,
                    ssl=self._context.present,
                    ssl_handshake_timeout=self._seconds,
                )
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await self._exchange(reader, writer, address)
        except TimeoutError:
            self._metrics.requests.labels("timeout").inc()
        except OSError:
            # The TLS handshake failed, or the peer has gone: there is nobody to tell.
            self._metrics.requests.labels("connection_failed").inc()
        finally:
            if transport is not None:
                transport.abort()
            else:
                accepted.close()
            self._open[network] -= 1
            if not self._open[network]:
                del self._open[network]
            self._room.release()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: str
    ) -> None:
        exchange = Exchange()
        found: Request | Answer | None = None
        while found is None:
            data = await reader.read(_READ_BYTES)
            found = exchange.receive(data)
            if found is None and exchange.wants_continue:
                writer.write(exchange.go_on())
        answer = found if isinstance(found, Answer) else await self._answer(found, writer, address)
        self._metrics.requests.labels(answer.outcome).inc()
        if answer.status >= 400:
            _log.info("request.refused", address=address, status=answer.status, reason=answer.outcome)
        writer.write(exchange.answer(answer))
        await writer.drain()
        writer.close()
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await writer.wait_closed()
        except (TimeoutError, OSError):
            # Clients that have their answer may be gone without a word.
            pass

    async def _answer(self, request: Request, writer: asyncio.StreamWriter, address: str) -> Answer:
        wait = self._limit.take(network_of(address), self._clock.monotonic())
        if wait:
            seconds = str(int(wait) + 1)
            return refused(429, "rate_limit", f"too many requests; again in {seconds} s", Retry_After=seconds)
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            return await self._respond(request, certificate, address)
        except HubError as error:
            # Sessions has something against what this service asked: a fault of ours, not of the client.
            _log.error("request.failed", reason=error.reason, error=error.detail)
            return refused(500, "fault", "the hub could not answer")
