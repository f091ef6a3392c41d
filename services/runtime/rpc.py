"""gRPC servers and channels: security, health, reflection, channelz, limits."""

import asyncio
import json
import socket
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, cast
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.runtime.access import Access
from services.runtime.caller_shares import CallerLimits
from services.runtime.callers import Callers, client_address
from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import StartupError
from services.runtime.grpc_metrics import GrpcMetrics
from services.runtime.health import Health
from services.runtime.interceptor import CallInterceptor
from services.runtime.probe_port import ProbePort
from services.runtime.refusals import Refusals
from services.runtime.renewed_channel import RenewedChannel
from services.runtime.secure_port import SecurePort
from services.runtime.security import PLAINTEXT_LOOPBACK, SERVICE_NAME, Security
from services.runtime.server_tls import ServerTls
from services.runtime.serving import READY, Serving
from services.runtime.settings import split_address

# Of one gRPC message between the hub's own; senders keep batches far below it.
MOST_MESSAGE_BYTES = 32 * 1024 * 1024
# Of an answer to programs and operators: gRPC libraries take 4 MiB unless told otherwise.
MAX_ANSWER_BYTES = 3 * 1024 * 1024
NO_ANSWER = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        # It has something against our certificate, which a newer one mends, here or there.
        grpc.StatusCode.UNAUTHENTICATED,
        # It has too much to do: gRPC's core sheds calls before any servicer sees them, and so does its front.
        # Nothing that asks here is cancelled by its own side and then looked at.
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""What a call of another service ends with that may do better later: no answer, never a verdict."""

_KEEPALIVE: list[tuple[str, int]] = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]
_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    *_KEEPALIVE,
]
_SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),
    # Of one connection; further ones wait at clients that heed it, and are refused to others.
    ("grpc.max_concurrent_streams", 100),
    ("grpc.max_metadata_size", 8_192),
    ("grpc.absolute_max_metadata_size", 16_384),
    # Calls that the event loop has not come to yet. From 1000 on core would shed some, whosever they are:
    # what one caller may have is bounded before, by the front.
    ("grpc.server.max_pending_requests", 8_192),
    ("grpc.server.max_pending_requests_hard_limit", 8_192),
    # What a client may send ahead on each stream, beyond the message that is asked for. By itself core lets
    # this grow to 8 MiB, whether or not anybody reads.
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 262_144),
]


def error_reason(error: grpc.aio.AioRpcError) -> str:
    """The ErrorInfo reason of a failed call, or the name of its gRPC status."""
    return error_info(error)[0]


def error_info(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """Reason and metadata of a failed call's ErrorInfo; without one, the name of its gRPC status.

    Details that belong to another status than the call ended with, or are none, count for nothing: something
    on the way may have ended the call otherwise than the other side did.
    """
    try:
        status = rpc_status.from_call(cast("grpc.Call", error))
    except (ValueError, DecodeError):
        status = None
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason), dict(info.metadata)
    return str(error.code().name), {}


class RpcServer:
    """A gRPC server with health, reflection and channelz beside the services registered on it.

    Register servicers on `grpc_server` first, then `start`. Health starts as NOT_SERVING, but for LIVE, which
    is SERVING until the server stops. With `probes` (HOST:PORT) a second server there answers health checks,
    and nothing else, without TLS: probes of Kubernetes speak none. `metrics` counts what was refused. With
    TLS each caller has a share by `limits`; without, gRPC's core bounds each connection alone. `needs` names
    what each service needs to do its work, where it is not READY alone; see `learned`.
    """

    def __init__(
        self,
        listen: str,
        services: Sequence[str],
        security: Security = PLAINTEXT_LOOPBACK,
        *,
        probes: str | None = None,
        clock: Clock | None = None,
        metrics: GrpcMetrics | None = None,
        limits: CallerLimits | None = None,
        needs: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        self._listen = listen
        self._services = tuple(services)
        self._security = security
        self._serving = Serving({name: {READY} for name in services} | dict(needs or {}))
        self._health = Health(self._serving)
        self._refusals = Refusals(metrics.refused if metrics else None)
        callers = self._callers = Callers() if security.authenticates else None
        access = Access(clock or SystemClock(), self._refusals, callers)
        self.secure_port: SecurePort | None = None
        """With TLS."""
        if callers is not None:
            present = cast("Callable[[], ServerTls]", security.server_tls)
            failed = metrics.failed_handshakes if metrics else None
            self.secure_port = SecurePort(present, callers, _KEEPALIVE, self._refusals, failed, limits)
        self.grpc_server = grpc.aio.server(
            interceptors=[CallInterceptor(access)], options=[*_OPTIONS, *_SERVER_OPTIONS]
        )
        self.port = 0
        self._probes = probes
        self._cut = metrics.cut if metrics else None
        self._probe_port: ProbePort | None = None

    async def start(self) -> None:
        """Binds and serves; StartupError if the address cannot be had."""
        self._security.check_address("the gRPC server's address", self._listen)
        server = self.grpc_server
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        channelz.add_channelz_servicer(server)
        names = (
            *self._services,
            health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
            "grpc.channelz.v1.Channelz",
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, server)
        await self._check_listen(self._listen)
        self._security.server_tls()
        try:
            self.port = (
                server.add_insecure_port(self._listen)
                if self.secure_port is None
                else await self.secure_port.bind(self._listen, server)
            )
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {self._listen}: {error}") from error
        await server.start()
        if self.secure_port is not None:
            await self.secure_port.start()
        if self._probes is not None:
            self._probe_port = ProbePort(self._probes, self._health, self._cut)
            await self._probe_port.start()

    @staticmethod
    async def _check_listen(listen: str) -> None:
        """Raises StartupError if the address cannot be had: gRPC's core would write lines of its own about
        it and not say why."""
        host, port = split_address(listen)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    trial.bind(address)
        except OSError as error:
            raise StartupError(f"cannot listen on {listen}: {error.strerror or error}") from error

    @property
    def probe_port(self) -> int:
        """The port for probes; 0 if there is none."""
        return self._probe_port.port if self._probe_port else 0

    @property
    def address(self) -> str:
        """HOST:PORT with the port in use."""
        host, _ = split_address(self._listen)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def caller_of(self, context: grpc.aio.ServicerContext[Any, Any]) -> str:
        """Whose share a call counts in: the name in its caller's certificate; without TLS its connection."""
        peer = unquote(context.peer())
        caller = self._callers.at(peer) if self._callers else None
        return caller.identity.name if caller and caller.identity else client_address(peer)

    def learned(self, **there: bool) -> None:
        """Whether what services need is there now, by name (`needs`, READY): health goes by it."""
        self._serving.learned(**there)
        self._health.changed()

    def drains(self) -> None:
        """Health to NOT_SERVING for good, but for LIVE; calls go on."""
        self._serving.drains()
        self._health.changed()

    async def stop(self, grace_seconds: float) -> None:
        """Health to NOT_SERVING, no new calls, running ones get the grace."""
        self._serving.stopped()
        self._health.changed()
        if self.secure_port is not None:
            self.secure_port.stop_accepting()
        await self.grpc_server.stop(grace_seconds)
        if self.secure_port is not None:
            await self.secure_port.close()
        if self._probe_port is not None:
            # Last, so that until then the probes hear NOT_SERVING.
            await self._probe_port.stop()
        self._refusals.close()


_CHANNEL_OPTIONS = [
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def open_channel(address: str, security: Security = PLAINTEXT_LOOPBACK) -> grpc.aio.Channel:
    """A channel to a service of the hub; it reconnects by itself, quickly. Raises StartupError for an address
    that `security` does not allow."""
    security.check_address("the address to dial,", address)
    return _channel(address, security, _CHANNEL_OPTIONS)


def _channel(target: str, security: Security, options: Sequence[tuple[str, int | str]]) -> grpc.aio.Channel:
    def make() -> grpc.aio.Channel:
        credentials = security.channel_credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(target, options=options)
        # The address that is dialled is in no certificate: pods come and go, and tunnels end on loopback.
        named = [*options, ("grpc.default_authority", SERVICE_NAME)]
        return grpc.aio.secure_channel(target, credentials, options=named)

    return RenewedChannel(target, make, security.follow) if security.authenticates else make()


def open_replicas_channel(
    replicas: str, service: str, security: Security = PLAINTEXT_LOOPBACK
) -> grpc.aio.Channel:
    """A channel to all replicas of another service (`Replicas` of the settings), which take turns.

    A call of the gRPC service named that a replica cannot take (NO_ANSWER, such as UNAVAILABLE, or
    UNAUTHENTICATED of one that does not know the CA yet) goes to another one, up to three in all: its calls
    must bear being made twice.
    A replica that is silent costs those calls their deadline.
    """
    for address in replicas.split(","):
        security.check_address("the address to dial,", address)
    target = replicas
    if "," in replicas:
        target = ("ipv6:" if replicas.startswith("[") else "ipv4:") + replicas
    config = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "methodConfig": [
            {
                "name": [{"service": service}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": sorted(
                        code.name for code in NO_ANSWER - {grpc.StatusCode.DEADLINE_EXCEEDED}
                    ),
                },
            }
        ],
    }
    options: list[tuple[str, int | str]] = [
        *_CHANNEL_OPTIONS,
        ("grpc.service_config", json.dumps(config)),
        # A name is looked up anew when a replica is lost, and no more often than this.
        ("grpc.dns_min_time_between_resolutions_ms", 5_000),
    ]
    return _channel(target, security, options)
