"""A gRPC channel whose certificate is renewed under it: calls that run end where they began, new ones take
the connection with the newer certificate.

gRPC's own channels keep the credentials that they were made with.
"""

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.runtime.logs import get_log

_log = get_log("tls")
# For the calls that still run on a connection with the former certificate: until they end by themselves.
_UNTIL_THEY_END_SECONDS = 365 * 86_400.0
_UNREADY_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
_NOT_TAKEN = (
    grpc.StatusCode.UNAUTHENTICATED,
    # It has no role, or an edge's.
    grpc.StatusCode.PERMISSION_DENIED,
    # Nothing was said about it.
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)

MakeChannel = Callable[[], grpc.aio.Channel]


class _Method:
    """One method of a stub: calls it on whatever channel is the present one."""

    def __init__(self, owner: "RenewedChannel", make: Callable[[grpc.aio.Channel], Any]) -> None:
        self._owner = owner
        self._make = make
        self._channel: grpc.aio.Channel | None = None
        self._method: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        present = self._owner.present
        if self._channel is not present:
            self._channel, self._method = present, self._make(present)
        return self._method(*arguments, **options)


class RenewedChannel(grpc.aio.Channel):  # type: ignore[misc,unused-ignore]
    """A channel to one target. `renew` may be called whenever there are newer credentials.

    The new channel replaces the present one when a call over it was not refused, so that calls neither wait
    for that nor fail by credentials which the other side does not take (yet).
    """

    def __init__(self, target: str, make: MakeChannel, follow: Callable[[Callable[[], None]], Any]) -> None:
        self.present = make()
        self._target = target
        self._make = make
        self._unfollow = follow(self.renew)
        self._renewing: asyncio.Task[None] | None = None
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}

    def renew(self) -> None:
        """Connects with newer credentials; an attempt that still lasts is given up for this one."""
        former = self._renewing
        self._renewing = asyncio.create_task(self._renew(former), name=f"renew channel {self._target}")

    async def _renew(self, former: asyncio.Task[None] | None) -> None:
        await _ended(former)
        channel = self._make()
        try:
            try:
                async with asyncio.timeout(_UNREADY_SECONDS):
                    await _taken(channel)
            except TimeoutError:
                _log.warning(
                    "channel.not_renewed",
                    target=self._target,
                    detail="no connection with the newer certificate yet; calls go on with the former one",
                )
                await _taken(channel)
        except BaseException:
            await channel.close()
            raise
        old, self.present = self.present, channel
        closing = asyncio.create_task(
            old.close(_UNTIL_THEY_END_SECONDS), name=f"former channel {self._target}"
        )
        self._retired[closing] = old
        closing.add_done_callback(self._retired.pop)
        _log.info("channel.renewed", target=self._target)

    async def close(self, grace: float | None = None) -> None:
        """Cancels calls that still run after `grace` seconds, those on former connections at once."""
        self._unfollow()
        await _ended(self._renewing)
        for closing, channel in tuple(self._retired.items()):
            await _ended(closing)
            await channel.close()
        await self.present.close(grace)

    async def __aenter__(self) -> "RenewedChannel":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Of the present connection."""
        return self.present.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Of the present connection."""
        await self.present.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Of the present connection."""
        await self.present.channel_ready()

    def unary_unary(self, *method: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.unary_unary(*method, **options))

    def unary_stream(self, *method: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.unary_stream(*method, **options))

    def stream_unary(self, *method: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.stream_unary(*method, **options))

    def stream_stream(self, *method: Any, **options: Any) -> Any:
        """See grpc.aio.Channel."""
        return _Method(self, lambda channel: channel.stream_stream(*method, **options))


async def _taken(channel: grpc.aio.Channel) -> None:
    """Returns when the other side has answered anything but that it does not take the certificate: a
    connection alone says nothing of that."""
    health: Any = health_pb2_grpc.HealthStub(channel)
    while True:
        await channel.channel_ready()
        try:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=_UNREADY_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() not in _NOT_TAKEN:
                return
        else:
            return
        await asyncio.sleep(_AGAIN_SECONDS)


async def _ended(task: asyncio.Task[None] | None) -> None:
    """Cancels a task of this channel and waits for its end."""
    if task is not None:
        task.cancel()
        await asyncio.wait([task])
