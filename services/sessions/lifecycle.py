"""The life of one session as a table of state and input. Pure: time is an argument.

    OPENING ──activate──► ACTIVE ──evict──► DRAINING ──close──► CLOSED(reason)
    OPENING, ACTIVE ──lose──► ORPHANED ──reclaim──► where it was
    ACTIVE, DRAINING ──delete──► DRAINING
    ACTIVE, ORPHANED ──transfer──► ACTIVE, of another dispatcher and under another epoch
    any live state ──close, supersede──► CLOSED

An input that the table does not list for a state changes nothing. No row of it leads out of
CLOSED, so a session ends exactly once, whoever asks first.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum

from services.sessions.fencing import Epoch


class State(IntEnum):
    """As `cloudhub.v1.SessionState`."""

    OPENING = 1
    ACTIVE = 2
    DRAINING = 3
    ORPHANED = 4
    CLOSED = 5


LIVE = frozenset(State) - {State.CLOSED}


class Reason(IntEnum):
    """Why a session ended; as `cloudhub.v1.CloseReason`."""

    EDGE_CLOSED = 1
    TRANSPORT_ERROR = 2
    PROTOCOL_ERROR = 3
    KEEPALIVE_TIMEOUT = 4
    SUPERSEDED = 5
    EVICTED = 6
    NODE_DELETED = 7
    DRAINED = 8
    DISPATCHER_LOST = 9
    CONNECTOR_LOST = 10
    SHUTDOWN = 11
    OVERLOADED = 12
    # Ends no session: what the former dispatcher of one that moved is told.
    TRANSFERRED = 13


class Input(Enum):
    """What can happen to a session."""

    ACTIVATE = "its dispatcher is ready to deliver"
    EVICT = "somebody asks its dispatcher to end it"
    DELETE = "its node is deleted"
    LOSE = "its dispatcher's lease ran out"
    RECLAIM = "its dispatcher renews the lease after all"
    TRANSFER = "its link moves to another dispatcher"
    SUPERSEDE = "the node opened a newer session"
    CLOSE = "it is over"


class EventKind(IntEnum):
    """Lifecycle events, in the order in which those of one session are told."""

    CONNECTED = 1
    DISCONNECTED = 2


@dataclass(frozen=True, slots=True)
class Session:
    """A node's newest session, live or closed. Instants are wall clock, in ms.

    `reason` is why it ended or, in DRAINING, why it was asked to. `announced` says that its
    `connected` event was written, so that its end owes a `disconnected`. `revoked` says that it was
    evicted since its node was revoked.
    """

    node_id: str
    project_id: str
    epoch: Epoch
    state: State
    reason: Reason | None
    announced: bool
    connector_id: str
    dispatcher_id: str
    link: int
    transport: str
    peer_address: str
    opened_at_ms: int
    closed_at_ms: int | None
    revoked: bool = False

    @property
    def live(self) -> bool:
        """Whether it holds a slot in the limits."""
        return self.state is not State.CLOSED


@dataclass(frozen=True, slots=True)
class Change:
    """What an input makes of a session. The event is written in the transaction that writes the session."""

    session: Session
    event: EventKind | None


TABLE: Mapping[tuple[State, Input], State] = {
    (State.OPENING, Input.ACTIVATE): State.ACTIVE,
    (State.OPENING, Input.EVICT): State.CLOSED,
    (State.OPENING, Input.DELETE): State.CLOSED,
    (State.OPENING, Input.LOSE): State.ORPHANED,
    (State.OPENING, Input.SUPERSEDE): State.CLOSED,
    (State.OPENING, Input.CLOSE): State.CLOSED,
    (State.ACTIVE, Input.EVICT): State.DRAINING,
    (State.ACTIVE, Input.DELETE): State.DRAINING,
    (State.ACTIVE, Input.LOSE): State.ORPHANED,
    (State.ACTIVE, Input.TRANSFER): State.ACTIVE,
    (State.ACTIVE, Input.SUPERSEDE): State.CLOSED,
    (State.ACTIVE, Input.CLOSE): State.CLOSED,
    # Nobody is left to confirm the end that was asked for.
    (State.DRAINING, Input.LOSE): State.CLOSED,
    (State.DRAINING, Input.DELETE): State.DRAINING,
    (State.DRAINING, Input.SUPERSEDE): State.CLOSED,
    (State.DRAINING, Input.CLOSE): State.CLOSED,
    # A dispatcher that activates is there, whatever its lease says.
    (State.ORPHANED, Input.ACTIVATE): State.ACTIVE,
    (State.ORPHANED, Input.RECLAIM): State.ACTIVE,
    # A link that never got its verdict has nothing to transfer: see `advance`.
    (State.ORPHANED, Input.TRANSFER): State.ACTIVE,
    (State.ORPHANED, Input.EVICT): State.CLOSED,
    (State.ORPHANED, Input.DELETE): State.CLOSED,
    (State.ORPHANED, Input.SUPERSEDE): State.CLOSED,
    (State.ORPHANED, Input.CLOSE): State.CLOSED,
}


_RECORDED = frozenset({Input.SUPERSEDE, Input.DELETE})


def advance(session: Session, step: Input, now_ms: int, reason: Reason) -> Change | None:
    """What `step` makes of `session`; None if it changes nothing.

    `reason` is recorded if the step ends the session or asks for its end, unless an end was asked
    for before. Being superseded or deleted is recorded as such in any case.
    """
    target = TABLE.get((session.state, step))
    if target is None or (step is Input.TRANSFER and not session.announced):
        return None
    if target is State.CLOSED:
        recorded = reason if step in _RECORDED else session.reason or reason
        # The wall clock may have stepped back.
        closed_at_ms = max(now_ms, session.opened_at_ms)
        ended = replace(session, state=State.CLOSED, reason=recorded, closed_at_ms=closed_at_ms)
        return Change(ended, EventKind.DISCONNECTED if session.announced else None)
    if target is State.DRAINING:
        if session.state is target and session.reason is reason:
            return None
        return Change(replace(session, state=target, reason=reason), None)
    if step is Input.RECLAIM and not session.announced:
        target = State.OPENING
    if target is State.ACTIVE and not session.announced:
        return Change(replace(session, state=target, announced=True), EventKind.CONNECTED)
    return Change(replace(session, state=target), None)
