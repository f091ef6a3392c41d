"""gRPC servers and channels: error mapping, health, reflection, channelz, limits."""

import asyncio
import inspect
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar, cast

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from grpc_status import rpc_status

from services.runtime.errors import HubError, InvalidRequest, StartupError
from services.runtime.settings import split_address

Request = TypeVar("Request")

ERROR_DOMAIN = "cloudhub.dev"
# A batch of the link stream holds many frames of up to 1 MiB; senders keep batches below a quarter of this.
MOST_MESSAGE_BYTES = 32 * 1024 * 1024
# The name whose health says that the process works, whatever it waits for: what a supervisor restarts it by.
LIVE = "live"

_OPTIONS: list[tuple[str, int]] = [
    ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
]


def status_of(error: HubError) -> grpc.Status:
    """The gRPC status of an error, with google.rpc.ErrorInfo."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=ERROR_DOMAIN, metadata=error.metadata)
    packed = any_pb2.Any()
    packed.Pack(info)
    code: int = error.status.value[0]
    status: grpc.Status = rpc_status.to_status(
        status_pb2.Status(code=code, message=error.detail, details=[packed])
    )
    return status


def error_reason(error: grpc.aio.AioRpcError) -> str:
    """The ErrorInfo reason of a failed call, or the name of its gRPC status."""
    return error_info(error)[0]


def error_info(error: grpc.aio.AioRpcError) -> tuple[str, dict[str, str]]:
    """Reason and metadata of a failed call's ErrorInfo; without one, the name of its gRPC status."""
    status = rpc_status.from_call(cast("grpc.Call", error))
    for detail in status.details if status else ():
        info = error_details_pb2.ErrorInfo()
        if detail.Unpack(info):
            return str(info.reason), dict(info.metadata)
    return str(error.code().name), {}


class _Malformed:
    """Stands for a request whose bytes are no message of its type. gRPC itself would answer UNKNOWN."""

    __slots__ = ("detail",)

    def __init__(self, detail: str) -> None:
        self.detail = detail


def _tolerant(read: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    def deserialize(data: bytes) -> Any:
        try:
            return read(data)
        except DecodeError as error:
            return _Malformed(str(error))

    return deserialize


def _well_formed(request: Any) -> Any:
    if isinstance(request, _Malformed):
        raise InvalidRequest("request", request.detail, reason="REQUEST_MALFORMED")
    return request


async def _well_formed_each(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _well_formed(request)


def _hub_error_of(group: BaseExceptionGroup[BaseException]) -> HubError | None:
    """The first error of a servicer's TaskGroup if they are all for the caller; else None."""
    errors, others = group.split(HubError)
    if errors is None or others is not None:
        return None
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return cast("HubError", first)


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Turns a HubError that a servicer raises, alone or out of a TaskGroup, into its status; and so bytes
    that are no request."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        if handler.response_streaming:
            return self._streaming(handler)
        return self._unary(handler)

    @staticmethod
    def _checked(handler: Any, requests: Any) -> Any:
        """What the servicer gets: the request, or each one as it is read."""
        return _well_formed_each(requests) if handler.request_streaming else _well_formed(requests)

    def _unary(self, handler: Any) -> Any:
        inner = handler.stream_unary or handler.unary_unary

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                return await inner(self._checked(handler, request), context)
            except HubError as error:
                await context.abort_with_status(status_of(error))
            except BaseExceptionGroup as group:
                await self._abort(group, context)

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(call, _tolerant(handler.request_deserializer), handler.response_serializer)

    @staticmethod
    async def _abort(
        group: BaseExceptionGroup[BaseException], context: grpc.aio.ServicerContext[Any, Any]
    ) -> None:
        error = _hub_error_of(group)
        if error is None:
            raise group
        await context.abort_with_status(status_of(error))

    def _streaming(self, handler: Any) -> Any:
        inner = handler.stream_stream or handler.unary_stream

        async def call_writer(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            try:
                await inner(self._checked(handler, request), context)
            except HubError as error:
                await context.abort_with_status(status_of(error))
            except BaseExceptionGroup as group:
                await self._abort(group, context)

        async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
            try:
                async for response in inner(self._checked(handler, request), context):
                    yield response
            except HubError as error:
                await context.abort_with_status(status_of(error))
            except BaseExceptionGroup as group:
                await self._abort(group, context)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        chosen = call if inspect.isasyncgenfunction(inner) else call_writer
        return make(chosen, _tolerant(handler.request_deserializer), handler.response_serializer)


class RpcServer:
    """A gRPC server with health, reflection and channelz beside the services registered on it.

    Register servicers on `grpc_server` first, then `start`. Health starts as NOT_SERVING, but for LIVE, which
    is SERVING until the server stops.
    """

    def __init__(self, listen: str, services: Sequence[str]) -> None:
        self._listen = listen
        self._services = tuple(services)
        self._health = health.aio.HealthServicer()
        self.grpc_server = grpc.aio.server(
            interceptors=[ErrorInterceptor()], options=[*_OPTIONS, ("grpc.so_reuseport", 0)]
        )
        self.port = 0

    async def start(self) -> None:
        """Binds and serves; StartupError if the address cannot be had."""
        server = self.grpc_server
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        channelz.add_channelz_servicer(server)
        names = (
            *self._services,
            health.SERVICE_NAME,
            "grpc.channelz.v1.Channelz",
            reflection.SERVICE_NAME,
        )
        reflection.enable_server_reflection(names, server)
        await self._check_listen()
        try:
            self.port = server.add_insecure_port(self._listen)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {self._listen}: {error}") from error
        await self.set_serving(False)
        await self.set_serving(True, LIVE)
        await server.start()

    async def _check_listen(self) -> None:
        """Raises StartupError if the address cannot be had: gRPC's core would write lines of its own about
        it and not say why."""
        host, port = split_address(self._listen)
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            for family, kind, protocol, _, address in found:
                with socket.socket(family, kind, protocol) as trial:
                    trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    trial.bind(address)
        except OSError as error:
            raise StartupError(f"cannot listen on {self._listen}: {error.strerror or error}") from error

    @property
    def address(self) -> str:
        """HOST:PORT with the port in use."""
        host, _ = split_address(self._listen)
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    async def set_serving(self, serving: bool, service: str | None = None) -> None:
        """Sets the health of one service ("": the server as a whole), or of all of these."""
        status = (
            health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        )
        for name in ("", *self._services) if service is None else (service,):
            await self._health.set(name, status)

    async def stop(self, grace_seconds: float) -> None:
        """Health to NOT_SERVING, no new calls, running ones get the grace."""
        await self._health.enter_graceful_shutdown()
        await self.grpc_server.stop(grace_seconds)


async def next_request(context: grpc.aio.ServicerContext[Request, Any]) -> Request | None:
    """The next request of a streaming call; None when the caller has no more. Raises InvalidRequest for bytes
    that are none."""
    request: object = await context.read()
    return None if request is grpc.aio.EOF else cast("Request", _well_formed(request))


_CHANNEL_OPTIONS = [
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 500),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to another service of the hub; it reconnects by itself, quickly."""
    return grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)


def open_replicas_channel(replicas: str, service: str) -> grpc.aio.Channel:
    """A channel to all replicas of another service (`Replicas` of the settings), which take turns.

    A call of the gRPC service named that a replica cannot take (UNAVAILABLE) goes to another one, up to three
    in all: its calls must bear being made twice. A replica that is silent costs those calls their deadline.
    """
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
                    "retryableStatusCodes": ["UNAVAILABLE"],
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
    return grpc.aio.insecure_channel(target, options=options)
