"""What the delivery policy wants done.

Ordering contract, kept by `delivery.Delivery` alone:

1. The policy hears of a message only after its row is durable (`accepted` and `loaded` follow a
   commit), so every `Send` is of a durable message.
2. The actions of one call are carried out in their order; a node's `Send`s reach its link in order.
3. A `Record` need not be durable before anything else happens: until it is, a restart repeats the
   message's delivery, which is allowed with one exception: a message of another object under the same path
   waits until the record of the earlier one's end is durable (`recorded`, `proceed`), since an edge deletes
   by path and a delete sent once more would destroy the later object. A record is written under the
   session's epoch; one whose epoch is fenced is forgotten.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.entry import Entry
from services.dispatcher.outbox.records import KeepCuts, OwnedOp


class Send(NamedTuple):
    """Give the entry's message to the link's acknowledged lane as `number`."""

    entry: Entry
    number: int
    attempt: int
    repeats: int = 0
    """The number that it had when it was last given to the lane, where no answer came; else 0."""


class SendDirect(NamedTuple):
    """Give the message to the link's direct lane as `number`."""

    message: Message
    number: int


class Record(NamedTuple):
    """Write this to the outbox; `entry` is what it is about."""

    op: OwnedOp
    entry: Entry


class Keep(NamedTuple):
    """Write this to the outbox; it is about the node, not about a message."""

    op: KeepCuts


@dataclass(frozen=True, slots=True)
class Fetch:
    """Load the bodies of these (key, seq), `size_bytes` in all, and hand them to `bodies`."""

    wanted: tuple[tuple[str, int], ...]
    size_bytes: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class LoadOn:
    """Claim the next portion, of what was pending at `last_seq`, and call `loaded` again."""

    after_seq: int
    last_seq: int


@dataclass(frozen=True, slots=True)
class Reread:
    """The outbox has something this node does not know: reload a portion above `after_seq` and call
    `reloaded`."""

    after_seq: int = 0


@dataclass(frozen=True, slots=True)
class Ignore:
    """An input that changes nothing; counted by its reason."""

    reason: str


Action = Send | SendDirect | Record | Keep | Fetch | LoadOn | Reread | Ignore
