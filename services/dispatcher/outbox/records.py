"""Rows of the outbox and the operations on them. Pure.

What is made once or more per message is a NamedTuple, or if it changes a Struct without garbage collection
(it refers to nothing that could refer back): several times cheaper than dataclasses.

Versions are integers here; the SQL layer stores them as 20 digits of text so that they compare
exactly on every engine. All instants are wall-clock milliseconds.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import NamedTuple

import msgspec

from services.dispatcher.publication import Publication, Rejection


class RowState(IntEnum):
    """What a row's current message waits for."""

    SETTLED = 0
    PENDING = 1
    PARKED = 2


class EventKind(IntEnum):
    """What happened to a message. Stored; never renumber."""

    ACCEPTED = 1
    SENT = 2
    ACKNOWLEDGED = 3
    REFUSED = 4  # negative acknowledgement
    UNACKNOWLEDGED = 5  # a full interval on a live link without an acknowledgement
    PARKED = 6
    ENDED = 7  # expired, purged, superseded, ...; see the reason
    REJECTED = 8  # a publish that was turned down
    REDELIVERED = 9
    DROPPED = 10  # NO-ACK
    NOTED = 11  # about the node and no message of it; the reason begins with a word and a colon


class NodeRow(msgspec.Struct, gc=False):
    """One node's order, owner and quota use."""

    node_id: str
    last_seq: int = 0
    owner_epoch: int = 0
    pending_rows: int = 0
    pending_bytes: int = 0
    known: bool = False  # it has had a session
    last_ack_ms: int = 0
    revision: int = 0  # of the rows of its objects
    history_rows: int = (
        0  # lines of its history that may be left out at the bound: never fewer than there are
    )
    objects: int = 0  # how many they are; answers are none


class ObjectRow(msgspec.Struct, gc=False):
    """One object on one node: its floor, what the node acknowledged, and its current message."""

    node_id: str
    key: str
    path: str = ""
    uid: str = ""
    floor: int = 0
    acknowledged: int | None = None
    deleted: bool = False  # it has no place at its path any more: deleted, or another object took it
    state: RowState = RowState.SETTLED
    seq: int = 0
    message_id: str = ""
    version: int | None = None
    operation: str = ""
    is_answer: bool = False
    priority: int = 0
    attempts: int = 0
    reason: str = ""  # why it is parked, or how its last message ended
    accepted_at_ms: int = 0
    changed_at_ms: int = 0
    expires_at_ms: int = 0
    size_bytes: int = 0
    traceparent: str = ""
    own_id: bool = True  # its acceptance has a line of history of its own
    type_meta: str = ""  # apiVersion and kind as last published (`deletions.kept_type`)
    body: bytes | None = None  # the encoded message, only in rows just accepted

    @property
    def is_replaced(self) -> bool:
        """Another object took its path, without a delete of this one."""
        return self.deleted and self.operation != "delete"


class Cuts(NamedTuple):
    """How often in a row the edge of a node ended its link with a message unanswered
    (`services.dispatcher.caution`)."""

    seq: int = 0
    """The first unanswered message when the last link was ended; 0 if it is not known any more."""
    through_seq: int = 0
    """The last message that was in flight with it: up to here they are doubtful."""
    links: int = 0
    """How many links in a row were ended so."""
    parked: int = 0
    """Messages parked for it since the node last acknowledged one."""


NO_CUTS = Cuts()


# What copy.copy calls after a search for it that takes three times as long.
_copy: Callable[[ObjectRow], ObjectRow] = attrgetter("__copy__")(ObjectRow)


def snapshot(row: ObjectRow) -> ObjectRow:
    """The row as it is now."""
    return _copy(row)


class Event(NamedTuple):
    """One line of a message's history, or up to three (`unfolded`): with a `sent_at_ms`, an acknowledgement
    tells of the `attempt` as well that it answers; with an `accepted_at_ms`, the end of a message tells of
    its acceptance. With `repeats` it stands for as many more that said the same, the last one at
    `last_at_ms` (`repetitions`)."""

    node_id: str
    kind: EventKind
    at_ms: int
    message_id: str
    key: str = ""
    version: int | None = None
    attempt: int = 0
    epoch: int = 0
    reason: str = ""
    sent_at_ms: int = 0
    accepted_at_ms: int = 0
    repeats: int = 0
    last_at_ms: int = 0


def _put_acceptance(lines: list[Event], told: Event | ObjectRow) -> None:
    """Before everything else that is told of the message, unless it is there."""
    accepted = EventKind.ACCEPTED
    place = len(lines)
    for index, line in enumerate(lines):
        if line.message_id == told.message_id and line.kind is accepted:
            return
        if line.message_id == told.message_id or line.at_ms > told.accepted_at_ms:
            place = min(place, index)
    line = Event(told.node_id, accepted, told.accepted_at_ms, told.message_id, told.key, told.version)
    lines.insert(place, line)


def unfolded(events: Iterable[Event], pending: Iterable[ObjectRow] = ()) -> list[Event]:
    """A line for each thing that happened, in order; `pending` are rows whose acceptance is told by nothing
    else yet."""
    lines: list[Event] = []
    for event in events:
        if event.accepted_at_ms:
            _put_acceptance(lines, event)
        if event.sent_at_ms:
            place = len(lines)
            while place and lines[place - 1].at_ms > event.sent_at_ms:
                place -= 1
            sent = event._replace(kind=EventKind.SENT, at_ms=event.sent_at_ms, sent_at_ms=0, accepted_at_ms=0)
            lines.insert(place, sent)
            event = event._replace(attempt=0)
        lines.append(event._replace(sent_at_ms=0, accepted_at_ms=0))
    for row in pending:
        _put_acceptance(lines, row)
    return lines


class Accept(NamedTuple):
    """Take a publication for a node, if the rules of versions and quotas allow it."""

    node_id: str
    publication: Publication
    at_ms: int


class Attempt(NamedTuple):
    """The bytes of a message went into the link's socket."""

    node_id: str
    epoch: int
    key: str
    message_id: str
    version: int | None
    attempt: int
    at_ms: int


class Settle(NamedTuple):
    """The node acknowledged the message that had `seq`; `version` is what it acknowledged. `sent` is the last
    attempt, if that is not stored by itself."""

    node_id: str
    epoch: int
    key: str
    seq: int
    version: int | None
    message_id: str
    at_ms: int
    traceparent: str = ""
    sent: Attempt | None = None


class CountUnacknowledged(NamedTuple):
    """A full interval on a live link passed without an acknowledgement."""

    node_id: str
    epoch: int
    key: str
    seq: int
    message_id: str
    attempts: int
    at_ms: int


class CountCut(NamedTuple):
    """The edge ended the link while this message was the first unanswered one, for the `links`th time in a
    row."""

    node_id: str
    epoch: int
    key: str
    seq: int
    message_id: str
    links: int
    reason: str
    at_ms: int


class KeepCuts(NamedTuple):
    """Remember this of the node's links."""

    node_id: str
    epoch: int
    cuts: Cuts


class Park(NamedTuple):
    """Give the message up until a newer version, an equal publish, Redeliver or expiry. `cause` is the label
    of the metric, unless the edge `refused` it."""

    node_id: str
    epoch: int
    key: str
    seq: int
    message_id: str
    reason: str
    at_ms: int
    refused: bool = False
    traceparent: str = ""
    cause: str = "unacknowledged"


class End(NamedTuple):
    """The message ends without an acknowledgement: expired, session of its answer over, ..."""

    node_id: str
    epoch: int
    key: str
    seq: int
    message_id: str
    reason: str
    at_ms: int
    traceparent: str = ""


class Claim(NamedTuple):
    """A new owner: raise the node's owner epoch, end its old answers, load what is pending.

    With `same_session` the session only changed its dispatcher, and its answers stay. What is too much for
    a transaction is loaded in portions: the owner claims on, `after_seq` what it has, with the `last_seq` of
    the first portion.
    """

    node_id: str
    epoch: int
    at_ms: int
    same_session: bool = False
    after_seq: int = 0
    last_seq: int = 0


class Reload(NamedTuple):
    """Load what is pending above `after_seq`, a portion of it, behind every operation submitted before."""

    node_id: str
    after_seq: int = 0


class DeleteNode(NamedTuple):
    """Forget the node: what is pending, floors, history, its order. Of a session above `through_epoch`,
    which the node opened since, only the ownership stays."""

    node_id: str
    through_epoch: int


class ForgetNode(NamedTuple):
    """A deleted node's session has ended: drop what it wrote since the deletion, unless the id is in use
    again (messages are pending, or a session above `through_epoch` has it)."""

    node_id: str
    through_epoch: int


OwnedOp = Settle | Attempt | CountUnacknowledged | CountCut | KeepCuts | Park | End
Op = Accept | OwnedOp | Claim | Reload | Event | DeleteNode | ForgetNode


class Accepted(NamedTuple):
    """Durable. `row` is the object's row after it, `superseded_id` the message it replaced; so many messages
    of other objects of its path ended with it."""

    row: ObjectRow
    superseded_id: str = ""
    replaced: int = 0


class Duplicate(NamedTuple):
    """An equal version was pending. `unparked` if it was parked and now waits again."""

    row: ObjectRow
    unparked: bool


@dataclass(frozen=True, slots=True)
class Stale:
    """Below the floor, deleted, what the node acknowledged, or another object has the path."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Done:
    """The operation was applied, or changed nothing because its message had moved on."""


@dataclass(frozen=True, slots=True)
class Fenced:
    """The operation's epoch is not the node's owner epoch; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What is pending for a node in the order of seq (without bodies), and its last seq.

    With a `through_seq` that is all up to there, and there may be more. `pending` counts all. The answer to a
    first claim has what is known of the node's `cuts`.
    """

    node_id: str
    last_seq: int
    rows: list[ObjectRow] = field(default_factory=list)
    fenced: bool = False
    through_seq: int | None = None
    pending: int = 0
    cuts: Cuts = NO_CUTS


class Withheld(NamedTuple):
    """A stored body that was not loaded, and its size; `fault` says why it can never be sent. Without one
    there was no room for it beside others: it is asked for again."""

    size_bytes: int
    fault: str = ""


class Deleted(NamedTuple):
    """Nothing is left of the node; `pending` messages ended with it."""

    pending: int


Result = Accepted | Duplicate | Stale | Rejection | Done | Fenced | Loaded | Deleted
