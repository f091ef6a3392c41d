"""What the dispatcher holds of one live session."""

from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.policy import NodeDelivery


class NodeSession:
    """One node's session at this dispatcher; made when it opens, forgotten when it ends."""

    __slots__ = (
        "__weakref__",  # deadlines do not keep it
        "active",
        "epoch",
        "last_input_at",
        "link",
        "node_id",
        "paused",
        "policy",
        "probes",
        "project_id",
        "receipted",
        "received",
        "stream",
        "timer_at",
        "traceparent",
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
    ) -> None:
        self.node_id = node_id
        self.project_id = project_id
        self.epoch = epoch
        self.stream = stream
        self.link = link
        self.policy = policy
        self.traceparent = traceparent
        self.last_input_at = now
        self.active = False
        self.paused = False
        self.probes = 0  # sent since the last input
        self.received = 0  # highest upstream frame number handled
        self.receipted = 0
        self.timer_at: float | None = None
