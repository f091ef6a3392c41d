"""A subscriber that takes down the uploads it gets, and whose streams break now and then."""

import asyncio
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from cloudhub.v1.dispatcher_pb2 import (
    SubscribeRequest,
    SubscribeResponse,
    Subscription,
    UpstreamDelivery,
)
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from demo.subscriber import MODULES as DEMO_MODULES
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

MODULES = (*DEMO_MODULES, "devicecontroller", "dynamiccontroller")
"""All that edges of either kind say things to: the twins of stock edges ask the `devicecontroller`."""
BREAKS = 0.01
"""Chance that a stream is dropped before what it brought is acknowledged."""
SILENCE_SECONDS = 5.0


class Subscriber:
    """`run` must be awaited by the owner. What it was handed is shared by all subscribers, in the order in
    which they got it: the numbers of uploads by node, and (node id, `connected` or `disconnected`). `taps`
    are called with each delivery."""

    def __init__(
        self,
        name: str,
        dispatchers: Sequence[str],
        handed: dict[str, list[int]],
        lifecycle: list[tuple[str, str]] | None = None,
        security: Security = PLAINTEXT_LOOPBACK,
        taps: Sequence[Callable[[UpstreamDelivery], None]] = (),
    ) -> None:
        self._security = security
        self._dispatchers = dispatchers
        self._handed = handed
        self._chance = random.Random(name)
        self._taps = taps
        self.received = 0
        self._lifecycle = [] if lifecycle is None else lifecycle

    async def run(self) -> None:
        """Receives until cancelled, from one dispatcher after the other."""
        while True:
            async with open_channel(self._chance.choice(self._dispatchers), self._security) as channel:
                stub: Any = DispatcherServiceStub(channel)
                call = stub.Subscribe()
                try:
                    await call.write(SubscribeRequest(subscription=Subscription(modules=MODULES)))
                    await self._receive(call)
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError, TimeoutError):
                    await asyncio.sleep(0.1)
                finally:
                    call.cancel()

    async def _receive(self, call: Any) -> None:
        while self._chance.random() >= BREAKS:
            # A dispatcher that is paused says nothing: another one may.
            async with asyncio.timeout(SILENCE_SECONDS):
                answer = await call.read()
            if not isinstance(answer, SubscribeResponse):
                return
            for delivery in answer.deliveries:
                self.received += 1
                for tap in self._taps:
                    tap(delivery)
                message = delivery.message
                if message.group == "user" and message.operation == "upload":
                    self._handed.setdefault(delivery.node_id, []).append(
                        json.loads(message.content)["number"]
                    )
                elif message.source == "cloudhub":
                    self._lifecycle.append((delivery.node_id, message.operation))
            done = [delivery.delivery_id for delivery in answer.deliveries]
            await call.write(SubscribeRequest(acknowledged=done))
