"""What the hub itself says to an edge's requests. No I/O; ids and times are arguments."""

import json

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.routing import HUB_SOURCE


def answer(
    request: Message, *, resource: str, message_id: str, at_ms: int, content: str, operation: str
) -> Message:
    """A message to the edge that answers `request`; `content` becomes a JSON string.

    `resource` is the request's as the edge wrote it, without the prefix that subscribers see. Edges throw
    away what is of another group than these two, also where their request was of one (`meta`).
    """
    return Message(
        id=message_id,
        parent_id=request.id,
        timestamp_ms=at_ms,
        source=HUB_SOURCE,
        group="user" if request.group == "user" else "resource",
        operation=operation,
        resource=resource,
        content=json.dumps(content, ensure_ascii=False).encode(),
        traceparent=request.traceparent,
    )
