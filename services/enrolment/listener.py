"""Accepts HTTPS connections, one request each, within a time and a number; owns all of them."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from typing import Any

from services.enrolment.authority import RenewedContext
from services.enrolment.metrics import EnrolmentMetrics
from services.runtime.acceptor import Accepted, Acceptor
from services.runtime.clock import Clock
from services.runtime.errors import HubError
from services.runtime.failure_log import FailureLog
from services.runtime.http import Answer, Exchange, Request, refused
from services.runtime.listening import tcp_listener
from services.runtime.logs import get_log
from services.runtime.openings import PATIENCE_SECONDS, OpeningLimits, Openings
from services.runtime.rate_limit import RateLimit
from services.runtime.tls_faults import fault_of

_log = get_log("enrolment.listener")
_BACKLOG = 1024
_READ_BYTES = 16 * 1024
# After the answer, for a client that has not read it yet: a reset would take it away.
_LINGER_SECONDS = 2.0
# Connections that cost a descriptor and nothing else, for each that is at work.
_WAITING = 4
# Of the time for a request, what each of its steps may take while others of its network wait.
_HURRIED = 1 / 3

Respond = Callable[[Request, bytes | None, str], Awaitable[Answer]]


class _Serving:
    """A connection at work, in the acceptor's table."""

    def __init__(self, accepted: Accepted) -> None:
        self.accepted = accepted
        self.task: asyncio.Task[None] | None = None
        self.has_begun = False
        self.is_answered = False
        self.gave_way = False

    def crowded_out(self) -> None:
        """See `acceptor.Opening`."""
        self.gave_way = True
        if self.task is not None:
            self.task.cancel()


class EnrolmentListener:
    """At most `most_connections` at work at a time, from their first byte on; of the others those wait that
    `openings` has room for. A connection has `request_seconds` for everything once its turn has come, and as
    long for its first byte. Implements `acceptor.AcceptorUser`. Raises StartupError if the address cannot be
    had."""

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
        self._seconds = request_seconds
        hurried = request_seconds * _HURRIED
        self._openings: Openings[Any] = Openings(
            OpeningLimits(
                most_connections, most_connections * _WAITING, min(PATIENCE_SECONDS, hurried), hurried
            )
        )
        listening = tcp_listener(listen, "enrolment", _BACKLOG)
        self._acceptor = Acceptor(listening, self._openings, self, silence_seconds=request_seconds)
        self._failures = FailureLog(_log, "handshake.failed")
        self._group: asyncio.TaskGroup | None = None

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        return self._acceptor.port

    def close(self) -> None:
        """Frees the address; for a listener that does not run."""
        self._acceptor.close()

    async def run(self) -> None:
        """Accepts until cancelled; then the listening socket is closed and what is open is cut."""
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                await self._acceptor.run()
        finally:
            self._failures.close()

    # acceptor.AcceptorUser.

    async def begin(self, accepted: Accepted) -> None:
        assert self._group is not None
        serving = _Serving(accepted)
        self._acceptor.take_over(accepted, serving)
        serving.task = self._group.create_task(self._serve(serving), name="enrolment request")
        serving.task.add_done_callback(lambda _: self._over(serving))

    def turned_away(self, accepted: Accepted, reason: str) -> None:
        self._metrics.requests.labels(reason).inc()

    def accept_failed(self, error: OSError) -> None:
        _log.warning("accept.failed", error=error.strerror or str(error))

    def turns_wait(self) -> None:
        self._metrics.requests_waited.inc()

    def _over(self, serving: _Serving) -> None:
        if not serving.has_begun:
            # Its task was cancelled before that, and has closed nothing.
            serving.accepted.socket.close()
        self._openings.end(serving)
        self._acceptor.look()

    async def _serve(self, serving: _Serving) -> None:
        serving.has_begun = True
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(_READ_BYTES)
        protocol = asyncio.StreamReaderProtocol(reader)
        transport: asyncio.Transport | None = None
        try:
            async with asyncio.timeout(self._seconds):
                transport, _ = await loop.connect_accepted_socket(
                    lambda: protocol,
                    serving.accepted.socket,
                    ssl=self._context.present,
                    ssl_handshake_timeout=self._seconds,
                )
                self._openings.progressed(serving, loop.time())
                writer = asyncio.StreamWriter(transport, protocol, reader, loop)
                await self._exchange(reader, writer, serving)
        except TimeoutError:
            self._metrics.requests.labels("timeout").inc()
        except ssl.SSLError as error:
            # The peer has an alert; an expired certificate is not to look like a bad network.
            fault = fault_of(error)
            self._metrics.requests.labels(fault.reason).inc()
            self._failures.add(fault.reason, address=serving.accepted.host, detail=fault.detail)
        except OSError:
            # The peer has gone: there is nobody to tell.
            self._metrics.requests.labels("connection_failed").inc()
        finally:
            if serving.gave_way and not serving.is_answered:
                self._metrics.requests.labels("crowded_out").inc()
            if transport is not None:
                transport.abort()
            else:
                serving.accepted.socket.close()

    async def _exchange(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, serving: _Serving
    ) -> None:
        loop, accepted = asyncio.get_running_loop(), serving.accepted
        exchange = Exchange()
        found: Request | Answer | None = None
        while found is None:
            data = await reader.read(_READ_BYTES)
            found = exchange.receive(data)
            if found is None and exchange.wants_continue:
                writer.write(exchange.go_on())
        self._openings.decide(serving, loop.time())
        answer = found if isinstance(found, Answer) else await self._answer(found, writer, accepted)
        self._metrics.requests.labels(answer.outcome).inc()
        if answer.status >= 400:
            _log.info("request.refused", address=accepted.host, status=answer.status, reason=answer.outcome)
        writer.write(exchange.answer(answer))
        serving.is_answered = True
        # All that is left is that the client reads: its place at work is another's.
        self._openings.linger(serving, accepted.network, loop.time())
        self._acceptor.look()
        await writer.drain()
        writer.close()
        try:
            async with asyncio.timeout(_LINGER_SECONDS):
                await writer.wait_closed()
        except (TimeoutError, OSError):
            # Clients that have their answer may be gone without a word.
            pass

    async def _answer(self, request: Request, writer: asyncio.StreamWriter, accepted: Accepted) -> Answer:
        wait = self._limit.take(accepted.network, self._clock.monotonic())
        if wait:
            seconds = str(int(wait) + 1)
            return refused(429, "rate_limit", f"too many requests; again in {seconds} s", Retry_After=seconds)
        certificate: bytes | None = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        try:
            return await self._respond(request, certificate, accepted.host)
        except HubError as error:
            # Sessions has something against what this service asked: a fault of ours, not of the client.
            _log.error("request.failed", reason=error.reason, error=error.detail)
            return refused(500, "fault", "the hub could not answer")
