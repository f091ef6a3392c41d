"""A port that answers health checks without TLS, for probes that have no certificate: whoever reaches it may
call, and nobody may keep others from it.

gRPC's own server counts calls of all its clients together, and waits for theirs as long as they like. So it
listens on a socket of this process alone, and what comes over the port is handed to it: few connections at a
time (`Crowd`), each for a short time and a few bytes. Probes open one for each check.
"""

import asyncio
import tempfile
from pathlib import Path
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import Counter

from services.runtime.crowd import Crowd
from services.runtime.errors import StartupError
from services.runtime.health import Health
from services.runtime.listening import listening_sockets
from services.runtime.rate_limit import network_of

MAX_CONNECTIONS = 64
MAX_SECONDS = 5.0
"""Of a connection; kubelet's probes end within a second unless told otherwise."""
MAX_CALLS = 8
"""Of a connection at a time."""
MAX_BYTES = 64 * 1024
"""That a connection may send; a check takes some hundred."""
_MAX_REQUEST_BYTES = 4096
_PROBES = "probes"


class _Probes(health_pb2_grpc.HealthServicer):  # type: ignore[misc,unused-ignore]
    """Check alone: a Watch lasts as long as its caller likes."""

    def __init__(self, health_servicer: Health) -> None:
        self._health = health_servicer

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """See health.proto of gRPC."""
        return await self._health.Check(request, context)


class ProbePort:
    """Answers from `start` to `stop`. `cut` counts connections that were cut, by port and reason."""

    def __init__(self, listen: str, health_servicer: Health, cut: Counter | None = None) -> None:
        self._listen = listen
        self.port = 0
        """The port in use (of interest when 0 was asked for); 0 before the start."""
        self._cut = cut
        self._crowd: Crowd[_Probe] = Crowd(MAX_CONNECTIONS)
        self._dialling: set[asyncio.Task[None]] = set()
        self._listening: list[asyncio.Server] = []
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="cloudhub-probes-")
        except OSError as error:
            raise StartupError(
                "health checks need a directory for a socket, by the variable TMPDIR or /tmp: "
                f"{error.strerror or error}"
            ) from error
        self._path = Path(self._folder.name, "grpc")
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", _MAX_REQUEST_BYTES),
                ("grpc.max_concurrent_streams", MAX_CALLS),
                ("grpc.max_metadata_size", _MAX_REQUEST_BYTES),
            ]
        )
        health_pb2_grpc.add_HealthServicer_to_server(_Probes(health_servicer), self._server)

    async def start(self) -> None:
        """Answers from here on. Raises StartupError if the address cannot be had."""
        try:
            sockets = await listening_sockets(self._listen)
        except OSError as error:
            reason = error.strerror or error
            raise StartupError(f"cannot listen on {self._listen} for health checks: {reason}") from error
        self.port = sockets[0].getsockname()[1]
        self._server.add_insecure_port(f"unix:{self._path}")
        await self._server.start()
        loop = asyncio.get_running_loop()
        for one in sockets:
            self._listening.append(await loop.create_server(lambda: _Probe(self), sock=one))

    async def stop(self) -> None:
        """Cuts what is connected."""
        for server in self._listening:
            server.close()
        for probe in self._crowd.all():
            probe.cut()
        for task in self._dialling:
            task.cancel()
        await self._server.stop(0)
        self._folder.cleanup()

    # Of its connections.

    def arrived(self, probe: "_Probe", address: str) -> None:
        """It takes the place of another one if there is none left, and gets its way to the server."""
        gone = self._crowd.admit(probe, network_of(address))
        if gone is not None:
            gone.cut()
            self.count_cut("crowded_out")
        task = asyncio.get_running_loop().create_task(self._dial(probe), name="probe")
        self._dialling.add(task)
        task.add_done_callback(self._dialling.discard)

    async def _dial(self, probe: "_Probe") -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_unix_connection(lambda: _Inside(probe), str(self._path))
        except OSError:
            probe.cut()

    def left(self, probe: "_Probe") -> None:
        """It is gone."""
        self._crowd.leave(probe)

    def count_cut(self, reason: str) -> None:
        """One that was connected is cut: `crowded_out`, `timeout` or `too_many_bytes`."""
        if self._cut is not None:
            self._cut.labels(_PROBES, reason).inc()


class _Probe(asyncio.Protocol):
    """A connection from outside."""

    def __init__(self, port: ProbePort) -> None:
        self._port = port
        self._transport: asyncio.Transport | None = None
        self._inside: asyncio.Transport | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._early = bytearray()
        self._received = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        if not peer:
            # It was reset before it was looked at.
            self.cut()
            return
        self._deadline = asyncio.get_running_loop().call_later(MAX_SECONDS, self._cut_because, "timeout")
        self._port.arrived(self, peer[0])

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._deadline is not None:
            self._deadline.cancel()
        if self._inside is not None:
            self._inside.abort()
        self._port.left(self)

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        if self._received > MAX_BYTES:
            self._cut_because("too_many_bytes")
        elif self._inside is not None:
            self._inside.write(data)
        else:
            self._early += data

    def join(self, inside: asyncio.Transport) -> None:
        """The server is there; it hears what was said before."""
        if self._transport is None:
            inside.abort()
            return
        self._inside = inside
        inside.write(bytes(self._early))
        self._early.clear()

    def write(self, data: bytes) -> None:
        """What the server says. It says little, and whoever does not read has a few seconds."""
        if self._transport is not None:
            self._transport.write(data)

    def _cut_because(self, reason: str) -> None:
        self._port.count_cut(reason)
        self.cut()

    def cut(self) -> None:
        """Ends it at once."""
        if self._transport is not None:
            self._transport.abort()

    def finish(self) -> None:
        """The server has ended it: what it said before is still sent."""
        if self._transport is not None:
            self._transport.close()


class _Inside(asyncio.Protocol):
    """The connection to the server on behalf of one from outside."""

    def __init__(self, probe: _Probe) -> None:
        self._probe = probe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._probe.join(cast(asyncio.Transport, transport))

    def data_received(self, data: bytes) -> None:
        self._probe.write(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._probe.finish()
