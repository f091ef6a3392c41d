"""A cloud program and a stock edge, as tests of traces need them."""

import json
import os
from itertools import count
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from websockets.asyncio.client import ClientConnection

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub

_numbers = count(1)


def new_context(*, sampled: bool = True) -> str:
    """A `traceparent` as a publisher's own tracing would make it."""
    return f"00-{os.urandom(16).hex()}-{os.urandom(8).hex()}-{'01' if sampled else '00'}"


def trace_of(traceparent: str) -> str:
    """The trace that a context belongs to."""
    return traceparent.split("-")[1]


class CloudProgram:
    """Publishes and asks."""

    def __init__(self, dispatcher: grpc.aio.Channel, sessions: grpc.aio.Channel) -> None:
        # The stubs' published types are those of blocking channels.
        self.dispatcher: Any = DispatcherServiceStub(dispatcher)
        self.admin: Any = DispatcherAdminStub(dispatcher)
        self.sessions: Any = SessionsAdminStub(sessions)

    async def publish(
        self,
        *node_ids: str,
        context: str = "",
        name: str = "",
        operation: str = "update",
        version: str = "1",
        content: bytes | None = None,
        ack_mode: pb.AckMode.ValueType = pb.ACK_MODE_UNSPECIFIED,
        time_to_live_seconds: float = 0.0,
    ) -> pb.PublishResponse:
        """Publishes an object; one of its own unless it is named."""
        name = name or f"cm{next(_numbers)}"
        request = pb.PublishRequest(
            message=Message(
                source="edgecontroller",
                group="resource",
                operation=operation,
                resource=f"default/configmap/{name}",
                resource_version=version,
                content=content or json.dumps({"metadata": {"uid": f"uid-{name}"}}).encode(),
            ),
            node_ids=node_ids,
            ack_mode=ack_mode,
        )
        if time_to_live_seconds:
            milliseconds = Duration()
            milliseconds.FromMilliseconds(int(time_to_live_seconds * 1000))
            request.time_to_live.CopyFrom(milliseconds)
        response: pb.PublishResponse = await self.dispatcher.Publish(
            request,
            metadata=(("traceparent", context),) if context else (),
            wait_for_ready=True,
            timeout=20,
        )
        return response

    async def explain(self, node_id: str, message_id: str) -> pb.ExplainDeliveryResponse:
        """What the hub says of a message."""
        response: pb.ExplainDeliveryResponse = await self.admin.ExplainDelivery(
            pb.ExplainDeliveryRequest(node_id=node_id, message_id=message_id), timeout=20
        )
        return response


async def receive(peer: ClientConnection) -> dict[str, Any]:
    """The next message that a stock edge gets."""
    message: dict[str, Any] = json.loads(await peer.recv())
    return message


async def answer(
    peer: ClientConnection,
    message: dict[str, Any],
    operation: str = "response",
    content: str = "OK",
    *,
    traceparent: str = "",
) -> None:
    """An acknowledgement, or a negative one; a stock edge's has no trace context."""
    header, route = message["header"], message["route"]
    await send(
        peer, operation, route["resource"], content, parent_id=header["msg_id"], traceparent=traceparent
    )


async def send(
    peer: ClientConnection,
    operation: str,
    resource: str,
    content: Any,
    *,
    group: str = "resource",
    source: str = "edged",
    parent_id: str = "",
    traceparent: str = "",
    sync: bool = False,
) -> str:
    """A message of an edge; gives back its id."""
    header: dict[str, Any] = {"msg_id": f"edge-{next(_numbers)}", "timestamp": 1795468263601}
    header |= {"parent_msg_id": parent_id} if parent_id else {}
    header |= {"traceparent": traceparent} if traceparent else {}
    header |= {"sync": True} if sync else {}
    route = {"source": source, "group": group, "operation": operation, "resource": resource}
    await peer.send(json.dumps({"header": header, "route": route, "content": content}))
    return str(header["msg_id"])
