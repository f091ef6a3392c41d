"""A gRPC server behind the TLS front: its end, strangers who call often, newer CAs, and its directory."""

import asyncio
import fcntl
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TextIO

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from services.runtime.errors import StartupError
from services.runtime.refusals import AUDIT_LOG
from services.runtime.roles import Role
from services.runtime.rpc import RpcServer, error_reason, open_channel
from services.runtime.secure_port import SecurePort
from services.runtime.security import MutualTls
from services.runtime.tls_files import TlsFiles
from tests.security.test_callers import Shown
from tests.support.certs import TestAuthority
from tests.support.processes import eventually

OK = health_pb2.HealthCheckRequest()


@pytest.fixture
def folder() -> Path:
    """Where directories of sockets are made."""
    return Path(tempfile.gettempdir())


@pytest.fixture
def security(authority: TestAuthority) -> MutualTls:
    """Of the server."""
    return authority.security(authority.service())


@pytest.fixture
async def server(security: MutualTls) -> AsyncIterator[RpcServer]:
    running = RpcServer("127.0.0.1:0", [], security)
    await running.start()
    yield running
    await running.stop(0)


def port_of(server: RpcServer) -> SecurePort:
    assert server.secure_port is not None
    return server.secure_port


async def test_a_stop_leaves_nothing_of_a_stream_that_would_go_on(
    authority: TestAuthority, security: MutualTls
) -> None:
    """C11: the stream is ended when the grace is over; then no connection is left, nor the directory."""
    server = RpcServer("127.0.0.1:0", [], security)
    await server.start()
    ann = authority.security(authority.program("ann", Role.OPERATOR))
    try:
        async with open_channel(server.address, ann) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(OK)
            await watch.read()
            async with asyncio.timeout(5):
                await server.stop(0.2)
            assert await watch.code() is not grpc.StatusCode.OK
    finally:
        await server.stop(0)
    assert port_of(server).front.connections == 0
    own = port_of(server)._folder
    assert own is not None
    assert not own.exists()


async def test_a_stop_lets_a_running_call_have_its_answer(
    authority: TestAuthority, security: MutualTls
) -> None:
    """C11: within the grace the answer still passes the front, and nobody waits for the rest of the grace."""
    server = RpcServer("127.0.0.1:0", [], security)
    begun, finish = asyncio.Event(), asyncio.Event()

    async def wait(_: bytes, __: Any) -> bytes:
        begun.set()
        await finish.wait()
        return b"answer"

    handler: Any = grpc.unary_unary_rpc_method_handler(wait, lambda data: data, None)
    # A method that the table of roles has, so that somebody may call it.
    methods = grpc.method_handlers_generic_handler("cloudhub.v1.ConnectorAdmin", {"ListLinks": handler})
    server.grpc_server.add_generic_rpc_handlers([methods])
    await server.start()
    try:
        channel: Any
        ann = authority.security(authority.program("ann", Role.OPERATOR))
        async with open_channel(server.address, ann) as channel, asyncio.timeout(8):
            call = channel.unary_unary("/cloudhub.v1.ConnectorAdmin/ListLinks", None, None)(b"x")
            await begun.wait()
            stopping = asyncio.create_task(server.stop(30))
            await eventually(lambda: not port_of(server).front._servers[0].is_serving(), 2)
            finish.set()
            assert await call == b"answer"
            await stopping
    finally:
        finish.set()
        await server.stop(0)
    assert port_of(server).front.connections == 0


async def test_a_stranger_who_calls_all_the_time_has_a_few_lines_and_their_number(
    authority: TestAuthority, security: MutualTls
) -> None:
    """C5: everybody can be on the record, and nobody can fill a disk with it."""
    server = RpcServer("127.0.0.1:0", [], security)
    await server.start()
    with capture_logs() as logs:
        async with open_channel(server.address, Shown(None, authority)) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            for _ in range(50):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await stub.Check(OK)
                assert error_reason(refused.value) == "CERTIFICATE_MISSING"
        await server.stop(0)
    lines = [line for line in logs if line.get("logger") == AUDIT_LOG]
    assert len(lines) == 11
    assert sum(line.get("count", 1) for line in lines) == 50


async def test_who_was_refused_is_taken_once_the_server_knows_the_ca(
    authority: TestAuthority, security: MutualTls, server: RpcServer, tmp_path: Path
) -> None:
    """C6: the same channel, without a restart of either side; a verdict lasts as long as its connection."""
    following = TestAuthority(tmp_path / "next", "next CA")
    issued = following.program("shop", Role.PUBLISHER)
    shop = MutualTls(TlsFiles(issued.certificate, issued.key, authority.certificate), security._clock)
    async with open_channel(server.address, shop) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.Check(OK)
        assert error_reason(refused.value) == "CERTIFICATE_UNTRUSTED"
        authority.certificate.write_bytes(
            authority.certificate.read_bytes() + following.certificate.read_bytes()
        )
        assert security.look()
        async with asyncio.timeout(15):
            while True:
                try:
                    answer = await stub.Check(OK)
                    break
                except grpc.aio.AioRpcError as error:
                    assert error.code() in (  # noqa: PT017 - the refusal is asked again until it ends
                        grpc.StatusCode.UNAUTHENTICATED,
                        grpc.StatusCode.UNAVAILABLE,
                    )
                    await asyncio.sleep(0.2)
    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING


async def test_a_client_with_another_address_is_not_another_caller(
    authority: TestAuthority, server: RpcServer
) -> None:
    """Several connections, good and bad, side by side: each call is judged by its own."""
    good = authority.security(authority.program("ann", Role.OPERATOR))
    for _ in range(5):
        async with (
            open_channel(server.address, good) as ours,
            open_channel(server.address, Shown(None, authority)) as theirs,
        ):
            stub: Any = health_pb2_grpc.HealthStub(ours)
            stranger: Any = health_pb2_grpc.HealthStub(theirs)
            for _ in range(3):
                await stub.Check(OK)
                with pytest.raises(grpc.aio.AioRpcError):
                    await stranger.Check(OK)
    await eventually(lambda: port_of(server).front.connections == 0, 10)
    assert len(port_of(server)._callers) == 0


async def test_what_a_killed_process_left_is_swept_and_what_is_in_use_stays(
    security: MutualTls, server: RpcServer, folder: Path
) -> None:
    own = port_of(server)._folder
    assert own is not None
    assert own.stat().st_mode & 0o777 == 0o700
    left = folder / "cloudhub-grpc-left"
    left.mkdir()
    (left / "lock").touch()
    other = RpcServer("127.0.0.1:0", [], security)
    await other.start()
    try:
        assert not left.exists()
        assert own.exists()
    finally:
        await other.stop(0)
    assert own.exists()


async def test_a_folder_that_another_process_swept_before_it_was_locked_is_made_anew(
    security: MutualTls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services that start at the same time sweep too."""
    swept: list[Path] = []
    flock = fcntl.flock

    def swept_before(lock: TextIO, how: int) -> None:
        if how == fcntl.LOCK_EX and not swept:
            swept.append(Path(lock.name).parent)
            shutil.rmtree(swept[0])
        flock(lock, how)

    monkeypatch.setattr(fcntl, "flock", swept_before)
    server = RpcServer("127.0.0.1:0", [], security)
    await server.start()
    try:
        own = port_of(server)._folder
        assert own is not None
        assert own.exists()
        assert [own] != swept
    finally:
        await server.stop(0)


@pytest.mark.parametrize(
    ("name", "words"),
    [("x" * 60, "is too long for sockets"), ("nowhere", "needs a directory for its sockets")],
)
async def test_a_place_where_no_sockets_can_be_is_told(
    security: MutualTls, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, words: str
) -> None:
    place = tmp_path / name
    if name != "nowhere":
        place.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", os.fspath(place))
    server = RpcServer("127.0.0.1:0", [], security)
    with pytest.raises(StartupError, match=words):
        await server.start()
    await server.stop(0)
    assert not list(place.glob("*"))


async def test_a_port_that_another_has_is_told(security: MutualTls, server: RpcServer) -> None:
    other = RpcServer(server.address, [], security)
    with pytest.raises(StartupError, match=r"cannot listen on 127.*Address already in use"):
        await other.start()
    await other.stop(0)
    assert port_of(other)._folder is None
