"""Says to sessions that this process lives, so that operators see it among the instances of the hub."""

import asyncio

import grpc

from cloudhub.v1 import enrolment_pb2 as pb
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from services.runtime.logs import get_log
from services.runtime.rpc import error_reason

_AGAIN_SECONDS = 5.0
_LEAST_INTERVAL_SECONDS = 0.1
_LEAVING_SECONDS = 1.0
_log = get_log("enrolment.presence")


class Presence:
    """`run` must be awaited by the owner; `leave` is the last that is said. Nobody depends on it: sessions
    that does not answer, or is of a release without this call, is told again later."""

    def __init__(self, channel: grpc.aio.Channel, process: pb.RenewPresenceRequest, timeout: float) -> None:
        self._stub = EnrolmentServiceStub(channel)
        self.process = process
        """Who this is; its address is known once it serves."""
        self._timeout = timeout

    async def run(self) -> None:
        """Until cancelled, as often as sessions wants it."""
        while True:
            seconds = await self.renew()
            await asyncio.sleep(seconds)

    async def renew(self) -> float:
        """Once; the seconds until the next time."""
        return await self._tell(self._timeout)

    async def _tell(self, seconds: float) -> float:
        try:
            answer = await self._stub.RenewPresence(self.process, timeout=seconds)
        except grpc.aio.AioRpcError as error:
            _log.debug("presence.not_told", reason=error_reason(error), detail=error.details())
            return _AGAIN_SECONDS
        return max(answer.interval_seconds, _LEAST_INTERVAL_SECONDS)

    async def leave(self) -> None:
        """Best effort: silence does it too."""
        self.process.leaving = True
        await self._tell(min(self._timeout, _LEAVING_SECONDS))
