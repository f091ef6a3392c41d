"""Callers who take more than their share of a gRPC server, or who may have none of it: what others notice."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.runtime.caller_shares import CallerLimits
from services.runtime.grpc_metrics import GrpcMetrics
from services.runtime.refusals import AUDIT_LOG
from services.runtime.roles import Role
from services.runtime.rpc import RpcServer, error_info, open_channel
from tests.support.certs import Issued, TestAuthority
from tests.support.processes import eventually
from tests.support.raw_http2 import (
    DATA,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    RawClient,
    frame,
    message_prefix,
)

MIB = 1024 * 1024
PUBLISH = "/cloudhub.v1.DispatcherService/Publish"
BYSTANDERS_CALLS = 20
# Of a call; idle it takes some milliseconds, and here floods are made by the same process.
PATIENCE_SECONDS = 30.0


class Crowded:
    """A server for publishers, who get an answer once `open` is set."""

    def __init__(self, authority: TestAuthority, limits: CallerLimits) -> None:
        self.authority = authority
        self.metrics = GrpcMetrics("x", CollectorRegistry())
        self.limits = limits
        self.server = RpcServer(
            "127.0.0.1:0",
            [],
            authority.security(authority.service()),
            metrics=self.metrics,
            limits=limits,
        )
        self.open = asyncio.Event()
        self.open.set()
        self.served = 0

        async def publish(request: bytes, _: Any) -> bytes:
            self.served += 1
            await self.open.wait()
            return b"done"

        handler: Any = grpc.unary_unary_rpc_method_handler(publish, lambda data: data, None)
        methods = grpc.method_handlers_generic_handler("cloudhub.v1.DispatcherService", {"Publish": handler})
        self.server.grpc_server.add_generic_rpc_handlers([methods])

    @property
    def front(self) -> Any:
        assert self.server.secure_port is not None
        return self.server.secure_port.front

    def publisher(self, name: str) -> Issued:
        return self.authority.program(name, Role.PUBLISHER)

    async def raw(self, issued: Issued, stack: AsyncExitStack) -> RawClient:
        """A client that obeys nothing, of a caller."""
        context = self.authority.client_context(issued)
        context.set_alpn_protocols(["h2"])
        client = await RawClient.connect("127.0.0.1", self.server.port, context)
        running = asyncio.create_task(client.run())
        stack.callback(running.cancel)
        stack.push_async_callback(client.close)
        return client

    async def call(self, issued: Issued) -> tuple[str, str]:
        """Status and reason of one call of a caller, over a connection of its own."""
        channel: Any
        async with open_channel(self.server.address, self.authority.security(issued)) as channel:
            try:
                await channel.unary_unary(PUBLISH, None, None)(b"x", timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code().name, error_info(error)[0]
        return "OK", ""

    async def bystander(self) -> None:
        """Another publisher's calls, one after the other, all answered."""
        channel: Any
        security = self.authority.security(self.publisher("bystander"))
        async with open_channel(self.server.address, security) as channel:
            call = channel.unary_unary(PUBLISH, None, None)
            for _ in range(BYSTANDERS_CALLS):
                assert await call(b"x", timeout=PATIENCE_SECONDS) == b"done"

    def refused(self, reason: str) -> float:
        return float(self.metrics.refused.labels(reason)._value.get())


@pytest.fixture
def limits() -> CallerLimits:
    """As a server has them by default."""
    return CallerLimits()


@pytest.fixture
async def crowded(authority: TestAuthority, limits: CallerLimits) -> AsyncIterator[Crowded]:
    running = Crowded(authority, limits)
    await running.server.start()
    yield running
    running.open.set()
    await running.server.stop(0)
    assert (len(running.front.shares), running.front.shares.held_bytes) == (0, 0)


async def test_a_certificate_without_a_role_reaches_no_server(
    crowded: Crowded, authority: TestAuthority
) -> None:
    """C48: an edge's neither; the client is told, its flood of calls is a few lines and their number."""
    edge, nobody = authority.node("edge-1"), authority.program("nobody")
    assert await crowded.call(edge) == ("PERMISSION_DENIED", "ROLE_FORBIDDEN")
    assert await crowded.call(nobody) == ("PERMISSION_DENIED", "CERTIFICATE_WITHOUT_ROLE")
    with capture_logs() as logs:
        async with AsyncExitStack() as stack:
            flood = await crowded.raw(nobody, stack)
            for _ in range(300):
                stream = flood.open(PUBLISH)
                flood.writer.write(frame(DATA, END_STREAM, stream, message_prefix(0)))
            await crowded.bystander()
            await asyncio.wait_for(flood.ended.wait(), 5)
            # Answered, as far as it was heard.
            assert flood.count(HEADERS) > 0
            assert flood.count(GOAWAY) == 1
            refused = flood.count(HEADERS)
    assert refused <= 16 + 300
    assert crowded.served == BYSTANDERS_CALLS
    lines = [line for line in logs if line.get("logger") == AUDIT_LOG]
    assert {line["caller"] for line in lines} == {"CN=nobody"}
    assert len(lines) <= 11


async def test_a_role_less_callers_unfinished_requests_hold_nothing(
    crowded: Crowded, authority: TestAuthority
) -> None:
    """C48: what it sends is not kept, beyond what it takes to hear why it is refused."""
    async with AsyncExitStack() as stack:
        flood = await crowded.raw(authority.program("nobody"), stack)
        streams = [flood.open(PUBLISH) for _ in range(8)]
        body = message_prefix(32 * MIB) + bytes(MIB)
        sent = await asyncio.gather(*(flood.send(stream, body) for stream in streams))
        assert sent == [False] * 8
    assert crowded.served == 0


async def test_a_callers_unfinished_requests_hold_its_share_and_no_more(crowded: Crowded) -> None:
    """C48: thirty calls announce 32 MiB each, and never end. One has room; the others are told, and a
    bystander is served meanwhile."""
    async with AsyncExitStack() as stack:
        greedy = await crowded.raw(crowded.publisher("greedy"), stack)
        streams = [greedy.open(PUBLISH) for _ in range(30)]
        for stream in streams:
            greedy.writer.write(frame(DATA, 0, stream, message_prefix(32 * MIB) + bytes(10_000)))
        await eventually(lambda: crowded.refused("TOO_MANY_BYTES") == 29, 5)
        assert crowded.front.shares.held_bytes == 32 * MIB
        await crowded.bystander()
        told = [payload for kind, _, _, payload in greedy.frames if kind == HEADERS]
        assert len(told) == 29
        assert all(
            b"grpc-status\x018" in payload and b"is refused 33554432 more" in payload for payload in told
        )
        # The one that has room may be finished.
        (stream,) = [one for one in streams if not greedy.over(one)]
        assert await greedy.send(stream, bytes(32 * MIB - 10_000), ends=True)
        await eventually(lambda: greedy.over(stream), 10)
    await eventually(lambda: crowded.front.shares.held_bytes == 0, 5)


async def test_a_flood_of_calls_makes_no_other_callers_calls_fail(crowded: Crowded) -> None:
    """C48: by one publisher, over many connections, while the server answers nobody else slowly."""
    async with AsyncExitStack() as stack:
        issued = crowded.publisher("greedy")
        greedy = [await crowded.raw(issued, stack) for _ in range(8)]
        for client in greedy:
            for _ in range(100):
                stream = client.open(PUBLISH)
                client.writer.write(frame(DATA, END_STREAM, stream, message_prefix(0)))
        await crowded.bystander()
        await eventually(
            lambda: all(client.ended.is_set() or client.count(HEADERS) >= 100 for client in greedy), 20
        )
    assert crowded.refused("TOO_MANY_CALLS") > 0


async def test_a_flood_on_one_connection_is_the_end_of_it(crowded: Crowded) -> None:
    """C48: whoever heeds neither the bound on streams nor refusals is told once more, and cut."""
    crowded.open.clear()
    async with AsyncExitStack() as stack:
        greedy = await crowded.raw(crowded.publisher("greedy"), stack)
        for _ in range(5000):
            stream = greedy.open(PUBLISH)
            greedy.writer.write(frame(DATA, END_STREAM, stream, message_prefix(0)))
        await asyncio.wait_for(greedy.ended.wait(), 10)
        (words,) = [payload for kind, _, _, payload in greedy.frames if kind == GOAWAY]
        assert b"CN=greedy,O=cloudhub:publisher has 256 calls under way" in words
    crowded.open.set()
    await crowded.bystander()


@pytest.mark.parametrize("limits", [CallerLimits(max_calls_per_caller=3)])
async def test_a_gRPC_client_reads_why_a_call_has_no_place(
    crowded: Crowded, authority: TestAuthority
) -> None:
    """C48: status, reason and text, as for any other refusal; when a call has ended there is room again."""
    crowded.open.clear()
    issued = crowded.publisher("shop")
    channel: Any
    async with open_channel(crowded.server.address, authority.security(issued)) as channel:
        call = channel.unary_unary(PUBLISH, None, None)
        under_way = [asyncio.ensure_future(call(b"x")) for _ in range(3)]
        await eventually(lambda: crowded.served == 3, 5)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"x", timeout=5)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert error_info(refused.value)[0] == "TOO_MANY_CALLS"
        assert "CN=shop,O=cloudhub:publisher has 3 calls" in (refused.value.details() or "")
        # Another connection is the same caller's; another caller is not.
        assert await crowded.call(issued) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
        crowded.open.set()
        assert await asyncio.gather(*under_way) == [b"done"] * 3
        assert await call(b"x", timeout=5) == b"done"


@pytest.mark.parametrize("limits", [CallerLimits(max_connections_per_caller=2, max_connections=3)])
async def test_a_caller_has_so_many_connections(crowded: Crowded, authority: TestAuthority) -> None:
    """C48: one more is told why, and those of others are not touched."""
    greedy, other = crowded.publisher("greedy"), crowded.publisher("other")
    async with AsyncExitStack() as stack:
        for _ in range(2):
            await crowded.raw(greedy, stack)
        await eventually(lambda: crowded.front.shares.connections == 2, 5)
        assert await crowded.call(greedy) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CONNECTIONS")
        assert await crowded.call(other) == ("OK", "")
        await eventually(lambda: crowded.front.shares.connections == 2, 5)
        await crowded.raw(other, stack)
        await eventually(lambda: crowded.front.shares.connections == 3, 5)
        late = crowded.publisher("late")
        assert await crowded.call(late) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CONNECTIONS")


async def test_what_nobody_reads_does_not_grow(authority: TestAuthority) -> None:
    """C48: what a client may send ahead on a stream that the server does not read; also without TLS."""

    async def idle(_: Any, context: Any) -> None:
        await asyncio.Event().wait()

    server = RpcServer("127.0.0.1:0", [])
    handler: Any = grpc.stream_stream_rpc_method_handler(idle)
    methods = grpc.method_handlers_generic_handler("x.Y", {"Z": handler})
    server.grpc_server.add_generic_rpc_handlers([methods])
    await server.start()
    client = await RawClient.connect("127.0.0.1", server.port, None)
    running = asyncio.create_task(client.run())
    sent = 0

    async def pour() -> None:
        nonlocal sent
        stream = client.open("/x.Y/Z")
        while await client.send(stream, message_prefix(1000) + bytes(1000)):
            sent += 1005

    pouring = asyncio.create_task(pour())
    before = -1
    while sent != before:
        before = sent
        await asyncio.sleep(0.3)  # so long nothing moves
    assert MIB / 8 < sent < MIB
    pouring.cancel()
    running.cancel()
    await client.close()
    await server.stop(0)


async def test_too_many_streams_are_refused_alone() -> None:
    """C48: also without TLS; the hundred that may be open go on, and others are served."""
    server = RpcServer("127.0.0.1:0", [])
    go_on = asyncio.Event()

    async def wait(_: bytes, __: Any) -> bytes:
        await go_on.wait()
        return b"done"

    handler: Any = grpc.unary_unary_rpc_method_handler(wait, lambda data: data, None)
    server.grpc_server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("x.Y", {"Z": handler})])
    await server.start()
    client = await RawClient.connect("127.0.0.1", server.port, None)
    running = asyncio.create_task(client.run())
    await eventually(lambda: client.frames, 5)  # it knows the server's settings
    for _ in range(3000):
        stream = client.open("/x.Y/Z")
        client.writer.write(frame(DATA, END_STREAM, stream, message_prefix(0)))
    await eventually(lambda: client.count(3) == 2900, 10)
    go_on.set()
    await eventually(lambda: sum(client.over(stream) for stream in range(1, 201, 2)) == 100, 10)
    channel: Any
    async with open_channel(server.address) as channel:
        assert await channel.unary_unary("/x.Y/Z")(b"x", timeout=5) == b"done"
    running.cancel()
    await client.close()
    await server.stop(0)


async def test_a_message_beyond_the_bound_fails_as_soon_as_its_length_is_read(crowded: Crowded) -> None:
    """Alone: the other calls of its connection go on, and those of others."""
    async with AsyncExitStack() as stack:
        greedy = await crowded.raw(crowded.publisher("greedy"), stack)
        stream = greedy.open(PUBLISH)
        greedy.writer.write(frame(DATA, 0, stream, message_prefix(32 * MIB + 1)))
        await eventually(lambda: greedy.over(stream), 5)
        (told,) = [
            payload for kind, _, number, payload in greedy.frames if (kind, number) == (HEADERS, stream)
        ]
        assert b"grpc-status" in told
        assert crowded.served == 0
        await crowded.bystander()
        after = greedy.open(PUBLISH)
        greedy.writer.write(frame(DATA, END_STREAM, after, message_prefix(0)))
        await eventually(lambda: crowded.served == BYSTANDERS_CALLS + 1, 5)


async def test_metadata_beyond_the_bound_fails_alone(crowded: Crowded, authority: TestAuthority) -> None:
    """The caller is told, on a connection whose other calls go on."""
    channel: Any
    issued = crowded.publisher("greedy")
    async with open_channel(crowded.server.address, authority.security(issued)) as channel:
        call = channel.unary_unary(PUBLISH, None, None)
        assert await call(b"x", timeout=10) == b"done"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(b"x", metadata=(("filler", "x" * 20_000),), timeout=20)
        assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await crowded.bystander()
        assert await call(b"x", timeout=10) == b"done"


async def test_pings_without_end_are_the_end_of_their_connection(crowded: Crowded) -> None:
    """Those that gRPC's keepalive would never send; others' connections stay."""
    async with AsyncExitStack() as stack:
        greedy = await crowded.raw(crowded.publisher("greedy"), stack)
        stream = greedy.open(PUBLISH, ends=True)
        await eventually(lambda: greedy.frames, 5)
        # One after the other: a write to a connection whose end is on its way loses what came with the end.
        for number in range(20):
            greedy.writer.write(frame(PING, 0, 0, number.to_bytes(8, "big")))
            await eventually(lambda: greedy.ended.is_set() or greedy.count(PING) > number, 10)  # noqa: B023
            if greedy.ended.is_set():
                break
        await asyncio.wait_for(greedy.ended.wait(), 10)
        assert stream
        (words,) = [payload for kind, _, _, payload in greedy.frames if kind == GOAWAY]
        assert b"too_many_pings" in words
        await crowded.bystander()


async def test_a_caller_that_comes_again_after_it_was_cut_off_has_to_wait(crowded: Crowded) -> None:
    """C48: refused calls count over all its connections, old and new; others are served meanwhile."""
    crowded.open.clear()
    issued = crowded.publisher("greedy")
    async with AsyncExitStack() as stack:
        floods = [await crowded.raw(issued, stack) for _ in range(4)]
        for client in floods:
            for _ in range(1000):
                stream = client.open(PUBLISH)
                client.writer.write(frame(DATA, END_STREAM, stream, message_prefix(0)))
            await asyncio.wait_for(client.ended.wait(), 10)
    crowded.open.set()
    assert await crowded.call(issued) == ("RESOURCE_EXHAUSTED", "TOO_MANY_CALLS")
    await crowded.bystander()

    async with asyncio.timeout(15):
        while await crowded.call(issued) != ("OK", ""):  # noqa: ASYNC110 - told by nobody
            await asyncio.sleep(0.2)
