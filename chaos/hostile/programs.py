"""Programs that publish what they should not, or take what they do not acknowledge."""

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import grpc

from chaos.hostile.acts import Act
from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from demo.subscriber import MODULES
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

_CALL_SECONDS = 5.0
_MAX_UNACKNOWLEDGED = 200
_TOO_LARGE_BYTES = 2 * 1024 * 1024
NOBODY = "nobody-"
"""What the ids of nodes begin with that there are not."""


def object_message(name: str, version: int, operation: str = "update", text: str = "x") -> Message:
    """A version of an object as its publisher would have it."""
    content = f'{{"metadata": {{"name": "{name}", "uid": "{name}"}}, "data": {{"text": "{text}"}}}}'
    return Message(
        source="edgecontroller",
        group="resource",
        operation=operation,
        resource=f"default/configmap/{name}",
        resource_version=str(version),
        content=content.encode(),
    )


def _with(message: Message, **fields: Any) -> Message:
    for name, value in fields.items():
        setattr(message, name, value)
    return message


def _with_extra(message: Message, value: bytes) -> Message:
    message.extra["hostile"] = value
    return message


def _refusable(version: int) -> list[Message]:
    """Each is wrong in one way, and harms nobody who reads it."""
    return [
        _with(object_message("refused", version), content=b"{"),
        _with(object_message("refused", version), content=b'{"limit": 1e400}'),
        _with(object_message("refused", version), content=b'"\\ud800"'),
        _with(object_message("refused", version), resource_version="-1"),
        _with(object_message("refused", version), resource_version="1" * 21),
        _with(object_message("refused", version), resource="default/configmap/" + "n" * 4096),
        _with(object_message("refused", version), operation=""),
        _with_extra(object_message("refused", version), b"{"),
        _with_extra(object_message("refused", version), b'"' + b"x" * _TOO_LARGE_BYTES + b'"'),
        object_message("refused", version, text="x" * _TOO_LARGE_BYTES),
    ]


class Programs:
    """Tells whichever of the dispatchers it chooses. Raises `grpc.aio.AioRpcError` where that does not
    answer."""

    def __init__(
        self, dispatchers: Sequence[str], seed: int, security: Security = PLAINTEXT_LOOPBACK
    ) -> None:
        self._dispatchers = dispatchers
        self._security = security
        self._chance = random.Random(seed)

    def channel(self) -> grpc.aio.Channel:
        """To one of the dispatchers."""
        return open_channel(self._chance.choice(self._dispatchers), self._security)

    async def publish(self, message: Message, node_ids: Sequence[str]) -> list[pb.NodeOutcome]:
        """What came of it, by node."""
        async with self.channel() as channel:
            stub: Any = DispatcherServiceStub(channel)
            request = pb.PublishRequest(message=message, node_ids=node_ids)
            answer = await stub.Publish(request, timeout=_CALL_SECONDS)
            return list(answer.outcomes)

    async def parked_reason(self, node_id: str, uid: str) -> str:
        """Why the message about an object is parked; empty if it is not."""
        async with self.channel() as channel:
            stub: Any = DispatcherAdminStub(channel)
            request = pb.ExplainDeliveryRequest(node_id=node_id, object_key=uid)
            answer = await stub.ExplainDelivery(request, timeout=_CALL_SECONDS)
            return str(answer.object.parked_reason)

    async def address_nobody(self, act: Act) -> bool:
        """Publishes to so many nodes that there are not; they may be refused."""
        node_ids = [f"{NOBODY}{act.number}-{place}" for place in range(act.size)]
        await self.publish(object_message("for-nobody", act.number), node_ids)
        return True

    async def publish_wrongly(self, act: Act, node_ids: Sequence[str]) -> list[str]:
        """Publishes what is to be refused, for nodes that there are; a sentence for each one that was not."""
        faults = []
        wrong = _refusable(act.number)
        for place in range(act.size):
            message = wrong[(act.number + place) % len(wrong)]
            try:
                outcomes = await self.publish(message, node_ids)
            except grpc.aio.AioRpcError as error:
                # Too large for a call at all.
                if error.code() is not grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise
                continue
            faults += [
                f"{one.node_id}: {pb.Outcome.Name(one.outcome)} for a message with "
                f"{message.content[:40]!r}, version {message.resource_version[:40]!r}"
                for one in outcomes
                if one.outcome not in (pb.OUTCOME_REJECTED, pb.OUTCOME_UNAVAILABLE)
                or (one.outcome == pb.OUTCOME_REJECTED and not one.reason)
            ]
        return faults

    async def subscribe_silently(self, act: Act) -> bool:
        """Subscribes so many times and acknowledges nothing; whether any got through."""
        through = [False]

        async def one() -> None:
            async with self.channel() as channel:
                stub: Any = DispatcherServiceStub(channel)
                call = stub.Subscribe()
                try:
                    subscription = pb.Subscription(modules=MODULES, max_unacknowledged=_MAX_UNACKNOWLEDGED)
                    await call.write(pb.SubscribeRequest(subscription=subscription))
                    async with asyncio.timeout(act.hold_seconds):
                        while await call.read() is not grpc.aio.EOF:
                            through[0] = True
                except (TimeoutError, grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    pass  # its time is over, or the dispatcher's
                finally:
                    call.cancel()

        await asyncio.gather(*(one() for _ in range(act.size)))
        return through[0]

    async def delete_node(self, node_id: str) -> bool:
        """Whether nothing is left of a node."""
        message = Message(source="edgecontroller", operation="delete", resource=f"node/{node_id}")
        outcomes = await self.publish(message, [node_id])
        return all(one.outcome == pb.OUTCOME_ACCEPTED for one in outcomes)
