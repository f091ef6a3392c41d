"""What a supervisor asks a process: whether it works, and whether it lives."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.rpc import LIVE, RpcServer

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
            for serving, wanted in ((None, NOT_SERVING), (True, SERVING), (False, NOT_SERVING)):
                if serving is not None:
                    await server.set_serving(serving)
                assert [await health(channel, name) for name in ("", SERVICE)] == [wanted, wanted]
                assert await health(channel, LIVE) == SERVING
    finally:
        await server.stop(0)
