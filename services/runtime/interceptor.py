"""What stands between gRPC and a servicer: who may call, errors as statuses, bytes that are no request.

All in one interceptor, so that each message of a stream passes one generator and not three.
"""

import asyncio
import base64
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar, cast
from urllib.parse import quote

import grpc
from google.protobuf import any_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from services.runtime.access import Access, Call, Context
from services.runtime.errors import HubError, InvalidRequest

Request = TypeVar("Request")

ERROR_DOMAIN = "cloudhub.dev"
# Printable ASCII but for the percent sign.
_UNQUOTED = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


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


def trailers_of(error: HubError) -> list[tuple[bytes, bytes]]:
    """What ends a call with that status, as HTTP/2 has it (gRPC over HTTP2, "Responses")."""
    status = status_of(error)
    trailers = [
        (b"grpc-status", str(status.code.value[0]).encode()),
        (b"grpc-message", quote(status.details, safe=_UNQUOTED).encode()),
    ]
    # Of names that end in -bin.
    return trailers + [
        (key.encode(), base64.b64encode(value).rstrip(b"="))
        for key, value in status.trailing_metadata
        if isinstance(value, bytes)
    ]


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


async def next_request(context: grpc.aio.ServicerContext[Request, Any]) -> Request | None:
    """The next request of a streaming call; None when the caller has no more. Raises InvalidRequest for bytes
    that are none."""
    request: object = await context.read()
    return None if request is grpc.aio.EOF else cast("Request", _well_formed(request))


def _hub_error_of(group: BaseExceptionGroup[BaseException]) -> HubError | None:
    """The first error of a servicer's TaskGroup if they are all for the caller; else None."""
    errors, others = group.split(HubError)
    if errors is None or others is not None:
        return None
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    return cast("HubError", first)


class CallInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc,unused-ignore]
    """Asks `access` before anything of a request is looked at; turns a HubError that a servicer raises, alone
    or out of a TaskGroup, into its status; and so bytes that are no request.

    A stream is admitted once, at its start.
    """

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method: str = handler_call_details.method
        if handler.response_streaming:
            return self._streaming(handler, method)
        return self._unary(handler, method)

    def _taken(self, handler: Any, requests: Any, call: Call | None) -> Any:
        """What the servicer gets: the request, or each one as it is read."""
        if handler.request_streaming:
            return _well_formed_each(requests)
        request = _well_formed(_tolerant(handler.request_deserializer)(requests))
        if call is not None:
            self._access.asked(call, request)
        return request

    async def _refuse(self, error: HubError, call: Call | None, context: Context) -> None:
        if call is not None:
            self._access.ended(call, error.status.name, error.reason)
        await context.abort_with_status(status_of(error))

    async def _refuse_group(
        self, group: BaseExceptionGroup[BaseException], call: Call | None, context: Context
    ) -> None:
        error = _hub_error_of(group)
        if error is None:
            raise group
        await self._refuse(error, call, context)

    def _unary(self, handler: Any, method: str) -> Any:
        inner = handler.stream_unary or handler.unary_unary
        access = self._access

        async def serve(requests: Any, context: Context) -> Any:
            call = None
            try:
                call = access.admit(method, context)
                answer = await inner(self._taken(handler, requests, call), context)
                if call is not None:
                    access.ended(call, "OK")
                return answer
            except HubError as error:
                await self._refuse(error, call, context)
            except BaseExceptionGroup as group:
                await self._refuse_group(group, call, context)
            finally:
                self._abandoned(call)

        make = (
            grpc.stream_unary_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_unary_rpc_method_handler
        )
        return make(serve, _reader(handler), handler.response_serializer)

    def _abandoned(self, call: Call | None) -> None:
        """For a call that was neither answered nor refused: the caller went, or the servicer failed."""
        if call is not None and not call.ended:
            task = asyncio.current_task()
            gone = task is not None and task.cancelling()
            self._access.ended(call, "CANCELLED" if gone else "UNKNOWN")

    def _streaming(self, handler: Any, method: str) -> Any:
        inner = handler.stream_stream or handler.unary_stream
        access = self._access

        async def serve_writer(requests: Any, context: Context) -> None:
            call = None
            try:
                call = access.admit(method, context)
                await inner(self._taken(handler, requests, call), context)
                if call is not None:
                    access.ended(call, "OK")
            except HubError as error:
                await self._refuse(error, call, context)
            except BaseExceptionGroup as group:
                await self._refuse_group(group, call, context)
            finally:
                self._abandoned(call)

        async def serve(requests: Any, context: Context) -> AsyncIterator[Any]:
            call = None
            try:
                call = access.admit(method, context)
                async for answer in inner(self._taken(handler, requests, call), context):
                    yield answer
                if call is not None:
                    access.ended(call, "OK")
            except HubError as error:
                await self._refuse(error, call, context)
            except BaseExceptionGroup as group:
                await self._refuse_group(group, call, context)
            finally:
                self._abandoned(call)

        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else grpc.unary_stream_rpc_method_handler
        )
        chosen = serve if inspect.isasyncgenfunction(inner) else serve_writer
        return make(chosen, _reader(handler), handler.response_serializer)


def _reader(handler: Any) -> Callable[[bytes], Any] | None:
    """A single request is read after its caller was admitted; those of a stream are read one by one."""
    return _tolerant(handler.request_deserializer) if handler.request_streaming else None
