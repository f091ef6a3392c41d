"""grpc.health.v1.Health of a process: tells what `Serving` decides."""

import asyncio
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.serving import Serving

_Answer = health_pb2.HealthCheckResponse
_STATUS = {True: _Answer.SERVING, False: _Answer.NOT_SERVING, None: _Answer.SERVICE_UNKNOWN}


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc,unused-ignore]
    """See health.proto of gRPC. Whoever changes `serving` calls `changed`, which waits for nobody: a watcher
    that reads late is told the latest, one that never reads keeps neither others nor the service waiting."""

    def __init__(self, serving: Serving) -> None:
        self._serving = serving
        self._watchers: set[asyncio.Event] = set()

    def changed(self) -> None:
        """Watchers are told what is true now, if it is not what they heard last."""
        for watcher in self._watchers:
            watcher.set()

    async def Check(self, request: health_pb2.HealthCheckRequest, context: Any) -> Any:
        """NOT_FOUND for a name that is no service's."""
        serves = self._serving.serves(request.service)
        if serves is None:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return _Answer(status=_STATUS[serves])

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Any) -> None:
        """SERVICE_UNKNOWN for a name that is no service's."""
        watcher = asyncio.Event()
        self._watchers.add(watcher)
        told: int | None = None
        try:
            while True:
                watcher.clear()
                status = _STATUS[self._serving.serves(request.service)]
                if status != told:
                    await context.write(_Answer(status=status))
                    told = status
                await watcher.wait()
        finally:
            self._watchers.discard(watcher)
