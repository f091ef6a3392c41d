"""What a chaos run takes down while it happens; the checker judges it afterwards. Pure.

Times are seconds since the start of the run.
"""

from enum import StrEnum
from typing import NamedTuple

import msgspec


class Place(NamedTuple):
    """Where an edge keeps an object: an edge knows objects by their resource path."""

    node_id: str
    resource: str


class Key(NamedTuple):
    """One object of one node."""

    node_id: str
    uid: str


class Outcome(StrEnum):
    """What its publisher knows of a publish in the end."""

    ACCEPTED = "accepted"
    STALE = "stale"
    """The hub had a newer version; nothing was promised."""
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    """No answer, or UNAVAILABLE, however often it was repeated: it may count or not."""


class Publish(msgspec.Struct, frozen=True):
    """One version of one object for one node; the hub may have been asked several times."""

    node_id: str
    resource: str
    uid: str
    version: int
    operation: str
    """`insert`, `update` or `delete`."""
    outcome: Outcome
    sent_at: float
    answered_at: float
    """When the outcome was known, or given up."""

    @property
    def key(self) -> Key:
        """The object."""
        return Key(self.node_id, self.uid)

    @property
    def place(self) -> Place:
        """Where the edge keeps it."""
        return Place(self.node_id, self.resource)

    @property
    def deletes(self) -> bool:
        """Whether it ends its object."""
        return self.operation == "delete"


class Step(msgspec.Struct, frozen=True):
    """One message that an edge applied; an edge's steps are in the order in which it stored them."""

    node_id: str
    resource: str
    uid: str
    version: int
    operation: str

    @property
    def key(self) -> Key:
        """The object."""
        return Key(self.node_id, self.uid)

    @property
    def place(self) -> Place:
        """Where the edge keeps it."""
        return Place(self.node_id, self.resource)


class Held(NamedTuple):
    """One version of one object."""

    uid: str
    version: int


class Waiting(msgspec.Struct, frozen=True):
    """What the hub itself says at the end of an object that its node does not have."""

    node_id: str
    uid: str
    version: int
    """The version in question; all up to it are accounted for."""
    reason: str
    """Pending, parked, expired, purged: in the hub's words."""


class SessionSeen(msgspec.Struct, frozen=True):
    """A live session in somebody's answer to ListSessions."""

    node_id: str
    epoch: int
    connector_id: str
    link: int
    dispatcher_id: str


class RegistrySample(msgspec.Struct, frozen=True):
    """One answer to ListSessions, whole: one transaction of one replica."""

    observer: str
    at: float
    sessions: list[SessionSeen]


class LinkSeen(msgspec.Struct, frozen=True):
    """An admitted link in a connector's answer to ListLinks."""

    node_id: str
    epoch: int
    link: int


class LinksSample(msgspec.Struct, frozen=True):
    """One answer to ListLinks; `connector` names the process, not the replica."""

    connector: str
    at: float
    links: list[LinkSeen]


class SessionWrite(msgspec.Struct, frozen=True):
    """Something that a session had written into its node's history: an attempt, an acknowledgement, ..."""

    node_id: str
    epoch: int
    kind: str
    """What it wrote, in the words of the history."""
    message_id: str


class TokenListed(msgspec.Struct, frozen=True):
    """A join token in the hub's list at the end."""

    token_id: str
    uses: int
    uses_left: int


class CertificateListed(msgspec.Struct, frozen=True):
    """A certificate in the hub's list at the end; `token_id` is empty for a renewal."""

    node_id: str
    serial: str
    token_id: str


class CertificateHeld(msgspec.Struct, frozen=True):
    """A certificate that an edge was given; `token_id` is that of the token that it showed, if it did."""

    node_id: str
    serial: str
    token_id: str


class Count(msgspec.Struct, frozen=True):
    """Something counted when all is quiet, and how much of it there may be."""

    name: str
    value: int
    most: int


class FaultDone(msgspec.Struct, frozen=True):
    """One fault that was injected; `recovered_at` is None when the hub had not recovered in time."""

    kind: str
    target: str
    at: float
    """From when the recovery counts: the fault, or its end where nobody else could do the target's work."""
    recovered_at: float | None
    reconnects: int = 0
    """Links that were opened anew until then."""


class ActDone(msgspec.Struct, frozen=True):
    """One act of a hostile party. It got `through` if a part of the hub was there that it could have harmed;
    `wrong` has a sentence for each answer that the hub should not have given."""

    kind: str
    at: float
    seconds: float
    through: bool
    wrong: list[str] = []


class History(msgspec.Struct):
    """All of a run."""

    seed: int
    limit_total: int
    """Most sessions at a time; 0: unlimited."""
    publishes: list[Publish] = []
    steps: list[Step] = []
    held: dict[str, dict[str, Held]] = {}
    """What each node has on its disk at the end: node, resource, object."""
    waiting: list[Waiting] = []
    registry: list[RegistrySample] = []
    changes: list[SessionSeen] = []
    """Live sessions as WatchSessions told their changes, whoever was asked."""
    links: list[LinksSample] = []
    writes: list[SessionWrite] = []
    """Of each node in the order of its history: the first, and each that has another epoch than the last."""
    final_sessions: list[SessionSeen] = []
    final_links: list[LinkSeen] = []
    uploads_confirmed: dict[str, list[int]] = {}
    uploads_handed: dict[str, list[int]] = {}
    """Numbers in the order in which subscribers got them, repetitions included."""
    tokens: list[TokenListed] = []
    certificates_listed: list[CertificateListed] = []
    certificates_held: list[CertificateHeld] = []
    connected: list[str] = []
    """Nodes that had a link with a certificate which they had got by enrolment, at the end."""
    counts: list[Count] = []
    faults: list[FaultDone] = []
    acts: list[ActDone] = []
    """What hostile parties did beside the faults."""
    unclean: list[str] = []
    """Processes that did not end by themselves within their grace, or that died unasked."""
