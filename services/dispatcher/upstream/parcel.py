"""One message on its way to the subscribers of one module."""

from dataclasses import dataclass
from enum import Enum

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.routing import ROUTER

MAX_GROWTH_BYTES = 64 * 1024
"""By how much a message may be larger for its subscriber than its frame was."""
# Of a response around its one delivery's message: numbers, the module's name, lengths, a trace context.
_AROUND_BYTES = 256


def delivered_bytes(node_id: str, message: Message) -> int:
    """How large the response to a subscriber is at most that has nothing but this message of the node."""
    return message.ByteSize() + 2 * len(node_id) + _AROUND_BYTES


class Kind(Enum):
    """What happens to a parcel that finds no room, and when it is settled."""

    MESSAGE = "message"  # bounded: may be dropped or refused
    EVENT = "event"  # a node's oldest are dropped when many wait; its row at sessions goes with it
    UPLOAD = "upload"  # never dropped; its row here goes when it is settled
    RELAYED = (
        "relayed"  # never dropped, bounded by a relay's credit; another dispatcher keeps it until settled
    )


@dataclass(slots=True, eq=False)
class Parcel:
    """A message for a module.

    `message` has the resource as subscribers see it, `resource` is as the node knows it. `merge_key`
    is empty unless it is a report that may be merged. With `wants_answer` it is a request, answered `error`
    if nobody takes it. `place` is an upload's place in the store, and of a relayed one its delivery id at the
    other dispatcher; `relay` is the number of the relay that brought it. `number` is given by the queue. When
    a subscriber gets it `handed_at` is set, in seconds of a monotonic clock, and `handed_at_ms` by the wall
    clock.
    """

    module: str
    node_id: str
    epoch: int
    message: Message
    size_bytes: int
    kind: Kind = Kind.MESSAGE
    resource: str = ""
    merge_key: str = ""
    wants_answer: bool = False
    place: int = 0
    relay: int = 0
    number: int = 0
    redelivered: bool = False
    handed_at: float = 0.0
    handed_at_ms: int = 0


def upload_parcel(node_id: str, epoch: int, place: int, size_bytes: int, message: Message) -> Parcel:
    """A stored upload as subscribers see it; `message` is the parcel's from here on."""
    resource = message.resource
    message.resource = f"node/{node_id}/{resource}"
    return Parcel(ROUTER, node_id, epoch, message, size_bytes, Kind.UPLOAD, resource, place=place)
