"""The process: `services.sessions.app` and `python -m services.sessions`."""

import asyncio
import os
import signal
import socket
import sqlite3
import sys
import urllib.request
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from cloudhub.v1 import sessions_pb2 as pb
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub, SessionsServiceStub
from services.runtime.errors import StartupError, StoreUnavailable
from services.runtime.rpc import error_reason, open_channel
from services.sessions.app import SERVICES, SessionsApp, running_app
from services.sessions.registry import Registry
from tests.sessions.test_servicer import active
from tests.support.sessions import FakeRegistry, running_sessions, settings

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health_of(channel: grpc.aio.Channel, service: str = "") -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    response: health_pb2.HealthCheckResponse = await stub.Check(
        health_pb2.HealthCheckRequest(service=service)
    )
    return response.status


async def test_a_started_service_is_serving_and_describes_itself(tmp_path: Path) -> None:
    async with running_sessions(tmp_path) as (app, channel):
        for name in ("", *SERVICES):
            assert await health_of(channel, name) == SERVING
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
        call = reflection.ServerReflectionInfo(iter([request]))
        listed = [service.name async for r in call for service in r.list_services_response.service]
        assert set(SERVICES) <= set(listed)
        url = f"http://127.0.0.1:{app.metrics_port}/metrics"
        text = (await asyncio.to_thread(lambda: urllib.request.urlopen(url).read())).decode()
        assert "cloudhub_sessions_store_available 1.0" in text


class Flickering(FakeRegistry):
    """A registry whose database can be away."""

    away = False

    async def probe(self) -> None:
        if self.away:
            raise StoreUnavailable("the database refused: disk full")


async def test_health_is_serving_only_while_the_database_answers(tmp_path: Path) -> None:
    registry = Flickering()

    def flickering(_: Registry) -> Registry:
        return registry

    async with running_sessions(tmp_path, wrap=flickering) as (app, channel):
        assert await health_of(channel) == SERVING
        registry.away = True
        await app.reaper.check()
        assert await health_of(channel) == NOT_SERVING
        registry.away = False
        await app.reaper.check()
        assert await health_of(channel) == SERVING


async def test_a_stop_ends_the_streams_and_frees_port_and_database(tmp_path: Path) -> None:
    async with AsyncExitStack() as outlives:
        async with running_app(settings(tmp_path)) as app:
            channel = await outlives.enter_async_context(open_channel(f"127.0.0.1:{app.port}"))
            admin, stub = SessionsAdminStub(channel), SessionsServiceStub(channel)
            await active(stub)
            await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-1"))
            watching: Any = admin.WatchSessions(pb.WatchSessionsRequest(include_present=True))
            listening: Any = stub.WatchDirectives(pb.WatchDirectivesRequest(dispatcher_id="d1"))
            for stream in (watching, listening):
                assert await stream.read()
        for stream in (watching, listening):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await stream.read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert error_reason(caught.value) == "STOPPING"
        async with running_app(settings(tmp_path, listen=f"127.0.0.1:{app.port}")) as second:
            assert second.port == app.port


async def test_a_dead_loop_ends_the_service(tmp_path: Path) -> None:
    class Broken(FakeRegistry):
        rounds = 0

        async def probe(self) -> None:
            self.rounds += 1
            if self.rounds == 3:
                raise RuntimeError("a bug")

    def broken(_: Registry) -> Registry:
        return Broken()

    with pytest.raises(ExceptionGroup) as caught:
        async with running_sessions(tmp_path, wrap=broken, lease_seconds=0.3):
            await asyncio.Event().wait()
    assert caught.group_contains(RuntimeError, match="a bug")


async def test_a_taken_port_is_one_sentence_and_leaves_nothing_open(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for field, what in (("listen", ""), ("metrics_listen", " for metrics")):
            with pytest.raises(StartupError, match=f"cannot listen on 127.0.0.1:{port}{what}"):
                await SessionsApp(settings(tmp_path, **{field: f"127.0.0.1:{port}"})).start()
    async with running_sessions(tmp_path):
        pass


async def test_a_database_in_use_is_refused(tmp_path: Path) -> None:
    async with running_sessions(tmp_path):
        with pytest.raises(StartupError, match="in use by another process"):
            await SessionsApp(settings(tmp_path)).start()


async def run_process(*flags: str, stop: bool = False) -> tuple[int, str]:
    """Exit status and standard error of the process; with `stop`, it gets SIGTERM once it serves."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.sessions", *flags, stderr=asyncio.subprocess.PIPE, env={**os.environ}
    )
    assert process.stderr
    lines: list[str] = []
    try:
        async with asyncio.timeout(60):
            while line := await process.stderr.readline():
                lines.append(line.decode())
                if stop and "service.started" in lines[-1]:
                    process.send_signal(signal.SIGTERM)
            return await process.wait(), "".join(lines)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_the_process_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    free = (
        "--listen",
        "127.0.0.1:0",
        "--metrics-listen",
        "127.0.0.1:0",
        "--log-format",
        "json",
        "--grpc-insecure-loopback=true",
    )
    status, text = await run_process(*free, "--database", f"sqlite:///{tmp_path}/s.db", stop=True)
    assert status == 0, text
    assert "service.stopped" in text


async def test_a_bad_flag_is_one_sentence(tmp_path: Path) -> None:
    status, text = await run_process("--listen", "nowhere")
    assert status == 2
    assert text.startswith("cloudhub-sessions: --listen (or CLOUDHUB_SESSIONS_LISTEN): should be HOST:PORT")
    assert text.count("\n") == 1


async def test_a_wrong_database_is_one_sentence(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.db"
    foreign.write_bytes(b"this is no database " * 100)
    other = sqlite3.connect(tmp_path / "other.db")
    other.execute("CREATE TABLE dispatcher_schema (version_num VARCHAR PRIMARY KEY)")
    other.commit()
    other.close()
    for url, said in (
        ("mysql://x/y", "should be sqlite:///PATH or postgresql://"),
        (f"sqlite:///{foreign}", "cannot use the database"),
        (f"sqlite:///{tmp_path}/other.db", "holds the schema of dispatcher, not the schema of sessions"),
    ):
        with pytest.raises(StartupError, match=said):
            await SessionsApp(settings(tmp_path, database=url)).start()
    status, text = await run_process(
        "--grpc-insecure-loopback=true", "--listen=127.0.0.1:0", "--database", f"sqlite:///{foreign}"
    )
    assert status == 1
    assert text.startswith("cloudhub-sessions: cannot use the database")
    assert text.count("\n") == 1
