"""One pending message as the delivery policy sees it. Pure."""

from enum import IntEnum


class EntryState(IntEnum):
    """Where an entry stands within the present session."""

    READY = 0  # waits for its turn
    FETCHING = 1  # its turn came, its body is being loaded
    IN_FLIGHT = 2  # handed to the link, not acknowledged
    PARKED = 3
    GONE = 4  # acknowledged, ended, or replaced and no longer in flight


class Cause:
    """Why a message is sent at this point: `cloudhub.reason` of its `deliver` spans."""

    ACCEPTED = "accepted"  # its publish was just stored
    SESSION_OPENED = "session_opened"  # it waited for the node, or its last link took it along
    LINK_MOVED = "link_moved"  # another dispatcher, or a former run of this one, may have sent it
    UNACKNOWLEDGED = "unacknowledged"  # an interval on a live link passed in silence
    REDELIVERED = "redelivered"  # it was parked


class Entry:
    """Mutable; owned by one `NodeDelivery`. Instants are monotonic seconds."""

    __slots__ = (
        "accepted_at_ms",
        "attempts",
        "body",
        "cause",
        "delivered_as",
        "expires_at",
        "first_written_at",
        "is_answer",
        "is_delete",
        "key",
        "last_number",
        "message_id",
        "number",
        "path",
        "priority",
        "resend_at",
        "sends",
        "seq",
        "size_bytes",
        "state",
        "superseded",
        "traceparent",
        "unrecorded",
        "version",
        "written",
        "written_at",
    )

    def __init__(
        self,
        key: str,
        seq: int,
        message_id: str,
        *,
        path: str = "",
        version: int | None = None,
        size_bytes: int = 0,
        priority: int = 0,
        is_delete: bool = False,
        is_answer: bool = False,
        attempts: int = 0,
        parked: bool = False,
        expires_at: float | None = None,
        traceparent: str = "",
        accepted_at_ms: int = 0,
        body: bytes | None = None,
    ) -> None:
        self.key = key
        self.seq = seq
        self.message_id = message_id
        self.path = path
        self.version = version
        self.size_bytes = size_bytes
        self.priority = priority
        self.is_delete = is_delete
        self.is_answer = is_answer
        # Full intervals without an acknowledgement on a live link, over all sessions.
        self.attempts = attempts
        self.expires_at = expires_at
        self.traceparent = traceparent
        self.accepted_at_ms = accepted_at_ms  # wall clock, for figures only
        self.body = body
        self.state = EntryState.PARKED if parked else EntryState.READY
        self.superseded = False
        # Records that say it is over or parked and are not durable yet.
        self.unrecorded = 0
        self.written = False
        # Instants of the last time and of the first one over this link.
        self.written_at = 0.0
        self.first_written_at: float | None = None
        self.sends = 0
        self.number = 0  # of its first sending over this link
        self.last_number = 0
        self.resend_at = 0.0
        self.cause = Cause.ACCEPTED
        # Trace context of the latest `deliver` span; empty if not sampled.
        self.delivered_as = ""

    def __repr__(self) -> str:
        return f"Entry({self.key!r}, seq={self.seq}, {self.state.name})"
