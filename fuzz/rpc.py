"""Every method of every service of a running hub gets any request: typed or mutated."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import grpc
from google.protobuf.message_factory import GetMessageClass

from cloudhub.v1 import connector_pb2
from fuzz.answers import fault_of_answer, fault_of_error
from fuzz.hub import FuzzedHub, fuzzed_hub
from fuzz.requests import Call
from fuzz.target import Check
from services.dispatcher.outbox.schema import SCHEMA as OUTBOX_SCHEMA
from services.sessions.schema import SCHEMA as SESSIONS_SCHEMA
from tests.support.postgres import running_databases

_SERVERS = {
    "ConnectorAdmin": "connector",
    "DispatcherAdmin": "dispatcher",
    "DispatcherService": "dispatcher",
    "EnrolmentAdmin": "sessions",
    "EnrolmentService": "sessions",
    "LinkService": "dispatcher",
    "PeerService": "dispatcher",
    "SessionsAdmin": "sessions",
    "SessionsService": "sessions",
}
# A stream that goes on for so long with its requests has taken them.
_STREAM_SECONDS = 0.1
_CALL_SECONDS = 10.0


def would_drain(call: Call) -> bool:
    """Whether this is a valid order to end every link, which is no fault to obey."""
    if call.method.name != "Drain":
        return False
    try:
        request = connector_pb2.DrainRequest.FromString(call.requests[0])
    except Exception:  # noqa: BLE001  # protobuf's own kinds differ by its implementation
        return False
    return all(0 <= value <= 1e9 for value in (request.links_per_second, request.deadline_seconds))


async def _make(hub: FuzzedHub, call: Call) -> str:
    """Makes the call; what is wrong with what came of it."""
    channel: Any = await hub.hub.channel(_SERVERS[call.method.containing_service.name])
    read = GetMessageClass(call.method.output_type).FromString
    streams = call.method.client_streaming or call.method.server_streaming
    try:
        if not streams:
            answer = await channel.unary_unary(call.path, None, read)(call.requests[0], timeout=_CALL_SECONDS)
            return fault_of_answer(call, answer)
        return await _stream(channel, call, read)
    except grpc.aio.AioRpcError as error:
        # What the client calls a write that came after the end of the stream, whose status it forgets then.
        return "" if error.details() == "Internal error from Core" else fault_of_error(call, error)


async def _stream(channel: Any, call: Call, read: Callable[[bytes], Any]) -> str:
    stream: Any
    if call.method.client_streaming:
        stream = channel.stream_stream(call.path, None, read)()
        try:
            for request in call.requests:
                await stream.write(request)
            await stream.done_writing()
        except asyncio.InvalidStateError:
            pass  # it has ended: reading says how
    else:
        stream = channel.unary_stream(call.path, None, read)(call.requests[0])
    try:
        async with asyncio.timeout(_STREAM_SECONDS):
            while (answer := await stream.read()) is not grpc.aio.EOF:
                if fault := fault_of_answer(call, answer):
                    return fault
    except TimeoutError:
        pass
    finally:
        stream.cancel()
    return ""


@contextmanager
def requests_checked(databases: Mapping[str, str] | None = None) -> Iterator[Check[Call]]:
    """The check of one call; see `fuzzed_hub` for what holds at the end."""
    with fuzzed_hub(databases) as hub:
        count = 0

        def check(call: Call) -> None:
            nonlocal count
            if would_drain(call):
                return
            fault = hub.wait(_make(hub, call))
            assert not fault, fault
            hub.nothing_raised()
            count += 1
            if count % 100 == 0:
                hub.wait(hub.exchange())

        yield check


@contextmanager
def requests_checked_on_postgresql() -> Iterator[Check[Call]]:
    """The same with the databases on a PostgreSQL server, which takes less than SQLite does."""
    with running_databases() as databases:
        urls = {
            schema.service: asyncio.run(databases.fresh(schema))
            for schema in (OUTBOX_SCHEMA, SESSIONS_SCHEMA)
        }
        with requests_checked(urls) as check:
            yield check
