"""The Prometheus endpoint of a process. Each service declares its metrics in its own `metrics.py`."""

import asyncio
from dataclasses import dataclass, field
from typing import Any, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, make_wsgi_app

from services.runtime.crowd import Crowd
from services.runtime.http import Answer, Exchange, Request, refused
from services.runtime.listening import tcp_listener
from services.runtime.rate_limit import network_of
from services.runtime.release import release

MAX_CONNECTIONS = 32
"""A scraper or two, a person, and strangers; further ones cost others theirs (`Crowd`)."""
MAX_SECONDS = 10.0
"""Of a connection, from its first byte to its last: scrapers give up after as long."""
_BACKLOG = 128
_METRICS = "metrics"
_BUILD_INFO = "cloudhub_build_info"


def declare_release(registry: CollectorRegistry) -> None:
    """Lets `registry` tell which release this process is, if it does not yet."""
    if registry.get_sample_value(_BUILD_INFO, {"version": release()}) is None:
        info = Gauge(_BUILD_INFO, "1; which release this process is", ["version"], registry=registry)
        info.labels(release()).set(1)


@dataclass(slots=True)
class _Page:
    """What the WSGI app of prometheus_client answers."""

    status: int = 500
    headers: dict[str, str] = field(default_factory=dict)

    def start(self, status: str, headers: list[tuple[str, str]]) -> None:
        self.status = int(status.partition(" ")[0])
        self.headers = dict(headers)


class MetricsEndpoint:
    """Made by `serving`. Serves `registry` over HTTP until closed, one request a connection. `cut` counts
    connections that were cut, by port and reason."""

    def __init__(self, listen: str, registry: CollectorRegistry, cut: Counter | None = None) -> None:
        self._socket = tcp_listener(listen, "metrics", _BACKLOG)
        declare_release(registry)
        self._app = make_wsgi_app(registry)
        self._cut = cut
        self._crowd: Crowd[_Connection] = Crowd(MAX_CONNECTIONS)
        self._server: asyncio.Server | None = None
        self._rendering: set[asyncio.Task[None]] = set()
        # One at a time: what a second scrape finds meanwhile is as old as what the first one found.
        self._turn = asyncio.Lock()

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        port: int = self._socket.getsockname()[1]
        return port

    @classmethod
    async def serving(
        cls, listen: str, registry: CollectorRegistry, cut: Counter | None = None
    ) -> "MetricsEndpoint":
        """One that answers from here on. Raises StartupError if the address cannot be had."""
        made = cls(listen, registry, cut)
        loop = asyncio.get_running_loop()
        made._server = await loop.create_server(lambda: _Connection(made), sock=made._socket)
        return made

    async def close(self) -> None:
        """Frees the address and cuts what is connected."""
        assert self._server is not None
        self._server.close()
        for connection in self._crowd.all():
            connection.abort()
        for task in self._rendering:
            task.cancel()
        await asyncio.gather(*self._rendering, return_exceptions=True)

    # Of its connections.

    def arrived(self, connection: "_Connection", address: str) -> None:
        """It takes the place of another one if there is none left."""
        gone = self._crowd.admit(connection, network_of(address))
        if gone is not None:
            gone.abort()
            self.count_cut("crowded_out")

    def left(self, connection: "_Connection") -> None:
        """It is gone."""
        self._crowd.leave(connection)

    def count_cut(self, reason: str) -> None:
        """One that was connected is cut: `crowded_out` or `timeout`."""
        if self._cut is not None:
            self._cut.labels(_METRICS, reason).inc()

    def render(self, request: Request, connection: "_Connection") -> None:
        """Answers in another thread: collecting takes milliseconds in which links would wait."""
        task = asyncio.get_running_loop().create_task(self._render(request, connection), name="scrape")
        self._rendering.add(task)
        task.add_done_callback(self._rendering.discard)

    async def _render(self, request: Request, connection: "_Connection") -> None:
        async with self._turn:
            if connection.is_open:
                connection.answer(await asyncio.to_thread(self._answer, request))

    def _answer(self, request: Request) -> Answer:
        page = _Page()
        environ: dict[str, Any] = {
            "REQUEST_METHOD": request.method,
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query,
        }
        for name in ("accept", "accept-encoding"):
            value = request.header(name)
            if value is not None:
                environ[f"HTTP_{name.replace('-', '_').upper()}"] = value
        body = b"".join(self._app(environ, page.start))
        content_type = page.headers.pop("Content-Type", "text/plain; charset=utf-8")
        return Answer(page.status, _METRICS, body, content_type, page.headers)


class _Connection(asyncio.Protocol):
    def __init__(self, endpoint: MetricsEndpoint) -> None:
        self._endpoint = endpoint
        self._exchange = Exchange()
        self._transport: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._asked = False

    @property
    def is_open(self) -> bool:
        """Whether somebody is there to be answered."""
        return self._transport is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if not peer:
            # It was reset before it was looked at.
            self.abort()
            return
        self._deadline = asyncio.get_running_loop().call_later(MAX_SECONDS, self._time_is_over)
        self._endpoint.arrived(self, peer[0])

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
        self._endpoint.left(self)

    def data_received(self, data: bytes) -> None:
        if not self._asked:
            self._found(self._exchange.receive(data))

    def eof_received(self) -> bool:
        if not self._asked:
            self._found(self._exchange.receive(b""))
        return True  # whoever has said all may still listen

    def _found(self, found: Request | Answer | None) -> None:
        if isinstance(found, Answer):
            self._asked = True
            self.answer(found)
        elif found is not None:
            self._asked = True
            self._endpoint.render(found, self)
        elif self._exchange.wants_continue:
            self._asked = True
            self.answer(refused(417, "expectation_failed", "metrics take no body"))

    def answer(self, answer: Answer) -> None:
        """The last words; the peer reads them in its time."""
        if self._transport is not None:
            self._transport.write(self._exchange.answer(answer))
            self._transport.close()

    def abort(self) -> None:
        """At once, whatever is not read yet."""
        if self._transport is not None:
            self._transport.abort()

    def _time_is_over(self) -> None:
        self._endpoint.count_cut("timeout")
        self.abort()
