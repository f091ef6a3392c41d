"""What the dispatcher holds of one live session."""

from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.entry import Cause
from services.dispatcher.outbox.records import Claim
from services.dispatcher.policy import NodeDelivery


class NodeSession:
    """One node's session at this dispatcher; made when it opens, forgotten when it ends."""

    __slots__ = (
        "__weakref__",  # deadlines do not keep it
        "active",
        "asked_at",
        "cause",
        "claim",
        "epoch",
        "last_input_at",
        "link",
        "node_id",
        "opened_at",
        "paused",
        "policy",
        "project_id",
        "receipted",
        "received",
        "stream",
        "timer_at",
        "traceparent",
        "unanswered",
        "unstored",
    )

    def __init__(
        self,
        node_id: str,
        project_id: str,
        epoch: int,
        stream: ConnectorStream,
        link: int,
        policy: NodeDelivery,
        traceparent: str,
        now: float,
        open_seconds: float = 0.0,
    ) -> None:
        self.node_id = node_id
        self.project_id = project_id
        self.epoch = epoch
        self.stream = stream
        self.link = link
        self.policy = policy
        self.traceparent = traceparent
        self.claim: Claim | None = None  # what it took the node's rows over with
        self.cause: str = Cause.SESSION_OPENED  # why what was pending then is sent
        self.last_input_at = now
        # Of the session, wherever it was then; instants are monotonic seconds.
        self.opened_at = now - open_seconds
        self.asked_at: float | None = None  # since the last input, for a sign of life
        self.unanswered = 0  # reports of silence since then
        self.active = False
        self.paused = False
        self.received = 0  # highest upstream frame number handled
        self.receipted = 0
        # Numbers of upload frames that are not stored yet, in order.
        self.unstored: dict[int, None] = {}
        self.timer_at: float | None = None

    def stored(self, number: int) -> None:
        """The upload that came as this frame is stored, or needs not be."""
        self.unstored.pop(number, None)

    def receipt(self) -> None:
        """Tells the connector which frames it may forget, if there are new ones: all before the first upload
        that is not stored, since that one must reach another dispatcher if this one is lost."""
        through = next(iter(self.unstored)) - 1 if self.unstored else self.received
        if through > self.receipted:
            self.receipted = through
            self.stream.receipt(self.link, self.epoch, through)
