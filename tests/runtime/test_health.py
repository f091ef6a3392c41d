"""What a supervisor asks a process: whether it works, and whether it lives."""

from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.rpc import RpcServer
from services.runtime.serving import LIVE

SERVICE = "cloudhub.v1.SessionsService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


async def health(channel: grpc.aio.Channel, service: str) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
    return int(answer.status)


async def test_a_process_lives_whatever_it_waits_for() -> None:
    """Nobody restarts a service because its database is away: that mends nothing."""
    server = RpcServer("127.0.0.1:0", [SERVICE])
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            for ready, wanted in ((None, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
                if ready is not None:
                    server.learned(ready=ready)
                assert [await health(channel, name) for name in ("", SERVICE)] == [wanted, wanted]
                assert await health(channel, LIVE) == SERVING
    finally:
        await server.stop(0)


async def test_watchers_hear_of_changes_and_a_silent_one_keeps_nobody_waiting() -> None:
    """What is learned waits for no watcher; each hears the latest."""
    server = RpcServer("127.0.0.1:0", [SERVICE])
    await server.start()
    try:
        async with grpc.aio.insecure_channel(server.address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            silent = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            watch = stub.Watch(health_pb2.HealthCheckRequest(service=SERVICE))
            unknown = stub.Watch(health_pb2.HealthCheckRequest(service="nobody"))
            assert (await watch.read()).status == NOT_SERVING
            assert (await unknown.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
            for _ in range(1000):
                server.learned(ready=False)
                server.learned(ready=True)
            assert (await watch.read()).status == SERVING
            assert await health(channel, SERVICE) == SERVING
            server.drains()
            server.learned(ready=True)
            assert (await watch.read()).status == NOT_SERVING
            assert await health(channel, LIVE) == SERVING
            with pytest.raises(grpc.aio.AioRpcError, match="NOT_FOUND"):
                await health(channel, "nobody")
            for call in (silent, watch, unknown):
                call.cancel()
    finally:
        await server.stop(0)
