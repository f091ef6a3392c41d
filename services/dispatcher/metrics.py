"""The dispatcher's metrics. No label grows with the number of nodes."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.runtime.grpc_metrics import GrpcMetrics

_COMMIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_DELIVERY_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600, 86400)
_SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)


class DispatcherMetrics:
    """One object per process; names are documented in docs/operations/metrics.md."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"cloudhub_dispatcher_{name}", text, labels, registry=registry)

        self.grpc = GrpcMetrics("dispatcher", registry)
        self.published = counter("published", "Outcomes of publishes, one per node.", "outcome", "reason")
        self.sent = counter(
            "sent",
            "Messages written to links (direct lane: handed).",
            "lane",
            "attempt",
        )
        self.acknowledged = counter("acknowledged", "Messages settled by an edge's acknowledgement.")
        self.refused = counter("refused", "Negative acknowledgements of edges.")
        self.parked = counter("parked", "Messages parked.", "reason")
        for reason in ("refused", "unacknowledged", "cut_links", "unsendable"):
            # Prometheus sees no increase in a counter that begins with 1: no alert for the first message.
            self.parked.labels(reason)
        self.link_cuts = counter("link_cuts", "Links that their edge ended, or fell silent on.", "how")
        self.ended = counter("ended", "Messages ended without an acknowledgement.", "reason")
        self.ignored = counter("ignored", "Inputs from edges that changed nothing.", "reason")
        self.dropped = counter("dropped", "NO-ACK messages dropped.", "reason")
        self.node_notices = counter(
            "node_notices", "What operators should know of nodes, told in their history.", "notice"
        )
        self.fenced = counter("fenced", "Records not written because their epoch is gone.")
        self.bad_rows = counter("bad_rows", "Records that the database refused.")
        self.store_failures = counter("store_failures", "Transactions that failed as a whole.")
        self.store_available = Gauge(
            "cloudhub_dispatcher_store_available", "1 while the database takes writes.", registry=registry
        )
        self.sessions_opened = counter("links", "Announced links by verdict.", "verdict")
        self.transfers = counter("transfers", "Links that asked to move here, by verdict.", "verdict")
        self.sessions_closed = counter("sessions_closed", "Sessions ended here.", "reason")
        self.disagreements = counter(
            "session_disagreements",
            "Sessions that the registry and this dispatcher did not both have.",
            "what",
        )
        self.rereads = counter("rereads", "Times a node's pending rows were read again.")
        self.room_waits = counter(
            "room_waits", "Times a node waited since too much was on its way to its connector."
        )
        self.connector_questions = counter(
            "connector_questions", "Questions of operators to connectors, by what became of them.", "outcome"
        )
        self.stalled_links = counter(
            "stalled_links", "Sessions ended since their links wrote nothing while other nodes waited."
        )
        self.unwritten = Gauge(
            "cloudhub_dispatcher_unwritten_bytes",
            "Sent to connectors and not yet written to the sockets of links.",
            registry=registry,
        )
        self.connectors = Gauge("cloudhub_dispatcher_connectors", "Connectors attached.", registry=registry)
        self.sessions = Gauge("cloudhub_dispatcher_sessions", "Sessions held.", registry=registry)
        self.pending_rows = Gauge(
            "cloudhub_dispatcher_pending_messages", "Accepted and not settled, all nodes.", registry=registry
        )
        self.pending_bytes = Gauge(
            "cloudhub_dispatcher_pending_bytes", "Size of the pending messages.", registry=registry
        )
        self.oldest_pending = Gauge(
            "cloudhub_dispatcher_oldest_pending_seconds",
            "How long the oldest pending message has waited, parked ones aside.",
            ["nodes"],
            registry=registry,
        )
        self.unknown_nodes = Gauge(
            "cloudhub_dispatcher_unknown_nodes",
            "Nodes that never connected and that something is kept of.",
            registry=registry,
        )
        self.unknown_bytes = Gauge(
            "cloudhub_dispatcher_unknown_pending_bytes",
            "Size of the pending messages of nodes that never connected.",
            registry=registry,
        )
        self.history_left_out = counter(
            "history_left_out", "Lines that are in no history of a node, or not any more.", "reason"
        )
        self.clock_steps = counter("clock_steps", "Steps forward of the wall clock that were not believed.")
        self.deliverable = Gauge(
            "cloudhub_dispatcher_deliverable_messages",
            "Pending for nodes whose sessions are here, parked ones aside.",
            registry=registry,
        )
        self.commit_seconds = Histogram(
            "cloudhub_dispatcher_commit_seconds",
            "Time of a group commit.",
            buckets=_COMMIT_BUCKETS,
            registry=registry,
        )
        self.commit_operations = Histogram(
            "cloudhub_dispatcher_commit_operations",
            "Operations in a group commit.",
            buckets=_SIZE_BUCKETS,
            registry=registry,
        )
        self.delivery_seconds = Histogram(
            "cloudhub_dispatcher_delivery_seconds",
            "From acceptance to acknowledgement.",
            buckets=_DELIVERY_BUCKETS,
            registry=registry,
        )
