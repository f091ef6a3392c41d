"""Asks for health as the kubelet does: `python -m tests.deploy.probing SECONDS ADDRESS/SERVICE...` prints a
line for each that does not serve in time, with the last answer; nothing for those that do."""

import asyncio
import sys
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

_ONE_SECOND = 1.0
_SERVING = health_pb2.HealthCheckResponse.SERVING


async def _wait(probe: str, deadline: float) -> str:
    address, _, service = probe.partition("/")
    wanted = health_pb2.HealthCheckRequest(service=service)
    answer = "no answer"
    while time.monotonic() < deadline:
        async with grpc.aio.insecure_channel(address) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            try:
                status = (await stub.Check(wanted, timeout=3.0)).status
                if status == _SERVING:
                    return ""
                answer = str(health_pb2.HealthCheckResponse.ServingStatus.Name(status))
            except grpc.aio.AioRpcError as error:
                answer = f"{error.code().name}: {error.details()}"
        # Another's health over single checks, as probes are: it can only be polled.
        await asyncio.sleep(_ONE_SECOND / 4)
    return f"{probe}: {answer}"


async def _main(seconds: float, probes: list[str]) -> None:
    deadline = time.monotonic() + seconds
    for line in await asyncio.gather(*(_wait(probe, deadline) for probe in probes)):
        if line:
            print(line)


if __name__ == "__main__":
    asyncio.run(_main(float(sys.argv[1]), sys.argv[2:]))
