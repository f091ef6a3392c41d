"""What goes into a registry's transactions and what comes out of them. Pure values."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, TypeVar

from services.sessions.fencing import Epoch
from services.sessions.lifecycle import LIVE, EventKind, Reason, Session, State
from services.sessions.limits import Limits, Place

T = TypeVar("T")

# Rows that nobody has taken yet are due at once.
NOT_HANDED = -1_000_000


@dataclass(frozen=True, slots=True)
class Event:
    """A `connected` or `disconnected` event; one per session and kind, with an id of its own.

    All unacknowledged events of a node belong to one dispatcher, so that they are told in order.
    `handed` is the number of that dispatcher's renewals when it last got the event.
    """

    node_id: str
    epoch: Epoch
    kind: EventKind
    event_id: str
    at_ms: int
    reason: Reason | None
    dispatcher_id: str
    handed: int


@dataclass(frozen=True, slots=True)
class Directive:
    """A dispatcher is to end this session, or with TRANSFERRED to let it go; stays until it confirms."""

    node_id: str
    epoch: Epoch
    dispatcher_id: str
    reason: Reason
    at_ms: int
    revoked: bool = False
    """Its node was revoked since the session opened."""


@dataclass(frozen=True, slots=True)
class Opening:
    """A link that asks for a session."""

    node_id: str
    project_id: str
    connector_id: str
    link: int
    transport: str
    peer_address: str
    traceparent: str = ""
    certificate_serial: str = ""


@dataclass(frozen=True, slots=True)
class Ref:
    """One session of a node, as a caller names it."""

    node_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Ending:
    """A session to close, and why."""

    node_id: str
    epoch: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class Transfer:
    """A link that asks for its session to move. Connector and link say which session; `epoch` is one
    that it has had."""

    node_id: str
    epoch: int
    connector_id: str
    link: int


@dataclass(frozen=True, slots=True)
class OpenResult:
    """Opened under `epoch`; or NO_EPOCH, and `full` is the place without room and its limit, or `forbidden`
    says why the node may not connect."""

    epoch: Epoch
    full: Place | None = None
    limit: int = 0
    superseded: Session | None = None
    superseded_event: Event | None = None
    earlier_events: tuple[Event, ...] = ()
    forbidden: str = ""


@dataclass(frozen=True, slots=True)
class ActivateResult:
    active: bool
    event: Event | None = None


@dataclass(frozen=True, slots=True)
class TransferResult:
    """The caller's under `epoch`; or NO_EPOCH, and `reason` says why the link has no session."""

    epoch: Epoch
    reason: Reason | None = None
    earlier_events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class CloseResult:
    """`reason` is the one on record; None if there is no such session of the caller's."""

    closed: bool
    event: Event | None = None
    reason: Reason | None = None


@dataclass(frozen=True, slots=True)
class Deletion:
    """What was on record of a deleted node: whether anything, and the epoch of its newest session."""

    known: bool
    epoch: Epoch


class Eviction(Enum):
    """What came of asking for an eviction."""

    ASKED = "its dispatcher was asked, or was before"
    CLOSED = "closed at once"
    NO_SESSION = "the node has no live session"
    OTHER_EPOCH = "the live session has another epoch"
    UNKNOWN_NODE = "the node never had a session"


@dataclass(frozen=True, slots=True)
class EvictResult:
    eviction: Eviction
    session: Session | None


@dataclass(frozen=True, slots=True)
class Committed(Generic[T]):
    """What a transaction decided, entry by entry, and what it changed: every session state that came
    to be, in order, under which change number, the dispatchers that have new directives, and how many events
    were given up at the bound of a node. Told to watchers after the commit."""

    results: list[T]
    changes: list[Session] = field(default_factory=list)
    directed: frozenset[str] = frozenset()
    number: int = 0
    dropped_events: int = 0


@dataclass(frozen=True, slots=True)
class Changed:
    """A session as the transaction `number` left it. Numbers grow in the order of the commits."""

    number: int
    session: Session


@dataclass(frozen=True, slots=True)
class ConnectorLoad:
    """A connector as one dispatcher sees it: how many of its links that dispatcher holds."""

    connector_id: str
    name: str
    links: int
    address: str = ""
    version: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Renewal:
    """A dispatcher says that it lives; `counter` grows with every time."""

    dispatcher_id: str
    name: str
    address: str
    counter: int
    sessions: int
    connectors: tuple[ConnectorLoad, ...] = ()
    version: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Lease:
    """A dispatcher's lease on record; `renewals` counts them, `lost` says that its sessions are orphans.

    The rest is what it last said of itself; name and address are empty before its first renewal.
    """

    dispatcher_id: str
    renewals: int
    lost: bool
    name: str = ""
    address: str = ""
    sessions: int = 0
    connectors: tuple[ConnectorLoad, ...] = ()
    version: str = ""
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Replica:
    """A process of this service on record, or one of enrolment; `beats` grows while it lives."""

    replica_id: str
    name: str
    address: str
    beats: int = 0
    service: str = "sessions"
    version: str = ""


@dataclass(frozen=True, slots=True)
class Filter:
    """Which sessions to list; empty fields match all."""

    node_id_prefix: str = ""
    project_id: str = ""
    connector_id: str = ""
    dispatcher_id: str = ""
    states: frozenset[State] = LIVE


@dataclass(frozen=True, slots=True)
class Usage:
    """Limits and how many nodes hold a slot where: in all, and at a page of places."""

    limits: Limits
    counts: dict[Place, int]


@dataclass(frozen=True, slots=True)
class Trimmed:
    """Rows given up because of age or number."""

    events: int = 0
    directives: int = 0
