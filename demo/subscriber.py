"""Cloud modules of the demo: receive what the nodes send, count it, acknowledge it."""

from collections import Counter

import grpc

from cloudhub.v1.dispatcher_pb2 import SubscribeRequest, SubscribeResponse, Subscription
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub

MODULES = ("edgecontroller", "router")


class Subscriber:
    """`run` must be awaited by the owner; `received` counts by kind of message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub = DispatcherServiceStub(channel)
        self.received: Counter[str] = Counter()

    async def run(self) -> None:
        """Receives until cancelled, or until the dispatcher ends the stream."""
        call = self._stub.Subscribe()
        await call.write(SubscribeRequest(subscription=Subscription(modules=MODULES)))
        while isinstance(answer := await call.read(), SubscribeResponse):
            for delivery in answer.deliveries:
                self.received[delivery.message.operation] += 1
            done = [delivery.delivery_id for delivery in answer.deliveries]
            await call.write(SubscribeRequest(acknowledged=done))
