"""What goes over one stream of publishes to another dispatcher, until the stream ends. No I/O."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from cloudhub.v1.dispatcher_pb2 import NodeOutcome
from cloudhub.v1.peer_pb2 import ForwardedMessage, ForwardRequest
from services.dispatcher.deletions import MAX_TYPE_CHARS
from services.dispatcher.outbox.records import Accept

MOST_BYTES_PER_REQUEST = 4 * 1024 * 1024
MAX_MESSAGES_PER_REQUEST = 1024
# What a message has beside its body: the node's id, the uid (at most 1 KiB), the type, numbers.
_BESIDE_BYTES = 1408 + MAX_TYPE_CHARS

T = TypeVar("T")


def forwarded(op: Accept) -> ForwardedMessage:
    """A publish for the dispatcher that has its node."""
    publication = op.publication
    message = ForwardedMessage(
        node_id=op.node_id,
        message=publication.body,
        uid=publication.uid,
        size_bytes=publication.size_bytes,
        own_id=publication.own_id,
    )
    if publication.priority or publication.force or publication.expires_at_ms:
        message.priority = publication.priority
        message.force = publication.force
        message.expires_at_ms = publication.expires_at_ms
    if publication.type_meta:
        message.type_meta = publication.type_meta
    return message


class Forwards(Generic[T]):
    """Items go in order and are answered in order. `returned` gets those that a stream which ended leaves
    unanswered: what became of them is unknown."""

    def __init__(self, dispatcher_id: str, returned: Callable[[Sequence[T]], None]) -> None:
        self.dispatcher_id = dispatcher_id
        self.wake = asyncio.Event()
        self.is_open = True
        self._returned = returned
        self._unanswered: deque[T] = deque()
        # Bodies are copied when they are written: one message may wait here for thousands of nodes.
        self._unsent: deque[Accept] = deque()

    def __len__(self) -> int:
        return len(self._unanswered)

    def add(self, items: Sequence[tuple[T, Accept]]) -> None:
        """They go with the next request."""
        if not self.is_open:
            self._returned([item for item, _ in items])
            return
        for item, op in items:
            self._unsent.append(op)
            self._unanswered.append(item)
        self.wake.set()

    def next_request(self) -> ForwardRequest | None:
        """What is written next; None if nothing waits."""
        if not self._unsent:
            return None
        request, size_bytes = ForwardRequest(), 0
        while self._unsent and len(request.messages) < MAX_MESSAGES_PER_REQUEST:
            size_bytes += self._unsent[0].publication.size_bytes + _BESIDE_BYTES
            if request.messages and size_bytes > MOST_BYTES_PER_REQUEST:
                break
            request.messages.append(forwarded(self._unsent.popleft()))
        return request

    def answered(self, outcomes: Sequence[NodeOutcome]) -> list[tuple[T, NodeOutcome]]:
        """The items that these are about. Raises IndexError for answers to nothing."""
        return [(self._unanswered.popleft(), outcome) for outcome in outcomes]

    def close(self) -> None:
        """The stream has ended."""
        self.is_open = False
        self._unsent.clear()
        items, self._unanswered = list(self._unanswered), deque()
        if items:
            self._returned(items)
