"""Connect and disconnect events as messages, and which copies of them are still out. No I/O."""

import json
from collections import OrderedDict

from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.sessions_pb2 import LifecycleEvent
from services.dispatcher.upstream.routing import HUB_SOURCE

MOST_REMEMBERED = 16_384


def event_message(event: LifecycleEvent) -> Message:
    """The message that tells cloud modules of an event (docs/protocol.md); its id is the event's."""
    content = {"event_type": event.kind, "timestamp": event.at_ms // 1000, "client_id": event.node_id}
    return Message(
        id=event.event_id,
        timestamp_ms=event.at_ms,
        source=HUB_SOURCE,
        group="resource",
        operation=event.kind,
        resource=f"node/{event.node_id}",
        content=json.dumps(content).encode(),
    )


class EventCopies:
    """Counts the copies of each event that subscribers have yet to settle.

    An event that comes again (sessions hand it on until it is acknowledged) is told once; the last
    16 384 settled ones are remembered, so that a lost acknowledgement is repeated, not the event.
    """

    def __init__(self) -> None:
        self._out: dict[str, int] = {}
        self._done: OrderedDict[str, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._out)

    @property
    def remembered(self) -> int:
        """Settled ones whose ids are."""
        return len(self._done)

    def is_done(self, event_id: str) -> bool:
        """True if every copy of it was settled, as far as is remembered."""
        return event_id in self._done

    def opened(self, event_id: str, copies: int) -> bool:
        """Registers the copies of an event; False if it is out already."""
        if event_id in self._out:
            return False
        self._out[event_id] = copies
        return True

    def settled(self, event_id: str) -> bool:
        """A subscriber is done with one copy; True if it was the last."""
        left = self._out.pop(event_id) - 1
        if left:
            self._out[event_id] = left
            return False
        self._done[event_id] = None
        if len(self._done) > MOST_REMEMBERED:
            self._done.popitem(last=False)
        return True
