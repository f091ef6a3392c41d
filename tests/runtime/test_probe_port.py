"""The port that probes ask without a certificate, and strangers at it."""

import asyncio
import errno
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.runtime import probe_port
from services.runtime.errors import StartupError
from services.runtime.grpc_metrics import GrpcMetrics
from services.runtime.health import Health
from services.runtime.probe_port import MAX_BYTES, MAX_CONNECTIONS
from services.runtime.rpc import RpcServer
from services.runtime.serving import LIVE, Serving
from tests.support.figures import Figures
from tests.support.strangers import reset_at_once, shown, times

SERVING = health_pb2.HealthCheckResponse.SERVING
CHECK = "/grpc.health.v1.Health/Check"


class Probed:
    """A server with a port for probes."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.server = RpcServer(
            "127.0.0.1:0", [], probes="127.0.0.1:0", metrics=GrpcMetrics("sessions", self.registry)
        )

    def cuts(self, reason: str) -> float:
        labels = {"port": "probes", "reason": reason}
        return self.registry.get_sample_value("cloudhub_sessions_port_connections_cut_total", labels) or 0.0

    def channel(self) -> grpc.aio.Channel:
        return grpc.aio.insecure_channel(
            f"127.0.0.1:{self.server.probe_port}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    async def check(self) -> float:
        """Asks as a probe does, with a connection of its own; how long that took."""
        began = time.monotonic()
        async with self.channel() as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=LIVE), timeout=5)
        assert answer.status == SERVING
        return time.monotonic() - began

    async def connect(self, source: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.server.probe_port, local_addr=(source, 0))


@asynccontextmanager
async def probed() -> AsyncIterator[Probed]:
    made = Probed()
    await made.server.start()
    try:
        yield made
    finally:
        await made.server.stop(0)


async def never_ends() -> AsyncIterator[Any]:
    await asyncio.Event().wait()
    yield health_pb2.HealthCheckRequest()


async def test_unfinished_calls_keep_no_probe_waiting() -> None:
    """C47: what restarts a pod is asked beside a hundred calls that never say what they want."""
    async with probed() as one, AsyncExitStack() as stack:
        idle = await one.check()
        calls: list[Any] = []
        for _ in range(10):
            channel = await stack.enter_async_context(one.channel())
            calls += [channel.stream_unary(CHECK)(never_ends()) for _ in range(10)]
        await asyncio.wait([asyncio.ensure_future(call.wait_for_connection()) for call in calls], timeout=2)
        beside = await one.check()
        assert beside < 2 * idle + 0.5, f"{beside:.3f} s beside {len(calls)} calls, {idle:.3f} s without"
        for call in calls:
            call.cancel()


async def test_silent_connections_of_one_network_keep_no_probe_out(figures: Figures) -> None:
    """C47: as many as there may be, and as many again."""
    async with probed() as one:

        async def check(_: int) -> None:
            await one.check()

        idle = await times(100, check)
        silent = [await one.connect("127.0.0.2") for _ in range(2 * MAX_CONNECTIONS)]
        beside = await times(100, check)
        figures(shown("probe, 128 silent connections", idle, beside))
        assert beside[-2] < 2 * idle[-2] + 0.5
        assert one.cuts("crowded_out") >= MAX_CONNECTIONS
        for _, writer in silent:
            writer.close()


async def test_a_connection_has_its_time_and_its_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_port, "MAX_SECONDS", 0.3)
    async with probed() as one:
        reader, writer = await one.connect("127.0.0.1")
        async with asyncio.timeout(5):
            await _until_cut(reader)
        assert one.cuts("timeout") == 1
        writer.close()
        reader, writer = await one.connect("127.0.0.1")
        writer.write(b"x" * (MAX_BYTES + 1))
        async with asyncio.timeout(5):
            await _until_cut(reader)
        assert one.cuts("too_many_bytes") == 1
        writer.close()


async def _until_cut(reader: asyncio.StreamReader) -> None:
    try:
        while await reader.read(65536):
            pass
    except ConnectionError:
        pass


async def test_probes_may_check_and_nothing_else() -> None:
    async with probed() as one, one.channel() as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            async for _ in stub.Watch(health_pb2.HealthCheckRequest(), timeout=5):
                pass
        assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_an_address_that_is_taken_is_named() -> None:
    async with probed() as one:
        taken = f"127.0.0.1:{one.server.probe_port}"
        other = RpcServer("127.0.0.1:0", [], probes=taken)
        with pytest.raises(StartupError, match=f"cannot listen on {taken} for health checks"):
            await other.start()
        await other.stop(0)


async def test_connections_that_are_reset_before_they_are_accepted_leave_no_trace() -> None:
    """C47: what any stranger can do as often as he likes writes no traceback."""
    faults: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, fault: faults.append(fault))
    async with probed() as one:
        reset_at_once(one.server.probe_port, 20)
        await one.check()
        assert not faults


async def test_a_machine_without_a_directory_for_sockets_is_told_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none_found(**_: str) -> None:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "TemporaryDirectory", none_found)
    with pytest.raises(
        StartupError, match=r"health checks need a directory for a socket, by the variable TMPDIR"
    ):
        probe_port.ProbePort("127.0.0.1:0", Health(Serving({})))
