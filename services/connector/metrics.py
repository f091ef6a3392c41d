"""The connector's Prometheus metrics. A node id is never a label."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from services.runtime.grpc_metrics import GrpcMetrics


class ConnectorMetrics:
    """Everything one connector counts, in a registry of its own."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"cloudhub_connector_{name}", text, labels, registry=registry)

        self.grpc = GrpcMetrics("connector", registry)
        self.links = Gauge("cloudhub_connector_links", "Admitted links", registry=registry)
        self.openings = Gauge(
            "cloudhub_connector_openings",
            "Connections whose request is not answered yet",
            ["transport"],
            registry=registry,
        )
        self.waiting = Gauge(
            "cloudhub_connector_waiting_connections",
            "Connections that have sent nothing, wait for their turn or are being closed",
            ["transport"],
            registry=registry,
        )
        self.connections = Gauge(
            "cloudhub_connector_connections", "Connections of edges", ["transport"], registry=registry
        )
        self.dispatchers = Gauge(
            "cloudhub_connector_dispatchers_attached", "Dispatchers with a live stream", registry=registry
        )
        self.handshake_failures = counter(
            "handshake_failures_total",
            "TLS handshakes that failed, certificate faults included",
            "transport",
            "reason",
        )
        self.refusals = counter(
            "refusals_total", "Requests for a link refused", "transport", "status", "reason"
        )
        self.announced_again = counter(
            "announced_again_total", "Links that another dispatcher was asked to open", "reason"
        )
        self.links_opened = counter("links_opened_total", "Links admitted", "transport")
        self.links_closed = counter("links_closed_total", "Links ended", "transport", "reason")
        self.frames_received = counter("frames_received_total", "Frames read and handed to a dispatcher")
        self.bytes_received = counter("frame_bytes_received_total", "Bytes of those frames")
        self.frames_refused = counter("frames_refused_total", "Frames that closed their link", "reason")
        self.frames_sent = counter("frames_sent_total", "Frames written to links")
        self.bytes_sent = counter("frame_bytes_sent_total", "Bytes of those frames")
        self.resends_withheld = counter(
            "resends_withheld_total", "Resent messages whose former frame the edge's host did not have yet"
        )
        self.dropped = counter(
            "dropped_total", "Elements from a dispatcher that were dropped", "element", "reason"
        )
        self.queued_bytes = Gauge(
            "cloudhub_connector_queued_bytes",
            "Bytes of frames that the sockets of links have not taken",
            registry=registry,
        )
        self.queue_evictions = counter(
            "queue_evictions_total", "Links ended since too many bytes waited for all links together"
        )
        self.incoming_bytes = Gauge(
            "cloudhub_connector_incoming_bytes",
            "Bytes of edges' frames that are not whole, or more than a link may have without receipts",
            registry=registry,
        )
        self.incoming_evictions = counter(
            "incoming_evictions_total", "Links ended since too much of frames was kept for all links together"
        )
        self.read_pauses = counter("read_pauses_total", "Times a link's input was held", "reason")
        self.streams_lost = counter("dispatcher_streams_lost_total", "Streams to dispatchers lost", "reason")
        self.transfers = counter(
            "transfers_total", "Links that asked to move to another dispatcher", "outcome"
        )
        self.accept_waits = counter(
            "accept_waits_total", "Times an opening could not begin until another one had ended"
        )
        self.accept_errors = counter("accept_errors_total", "Failures to accept a connection", "reason")
        self.quic_retries = counter("quic_retries_total", "QUIC peers asked to prove their address")
        self.quic_resets = counter(
            "quic_resets_total", "Packets of unknown QUIC connections answered by a reset"
        )
        self.quic_closes = counter(
            "quic_closes_total", "QUIC openings whose Retry token is no good, answered by a close"
        )
        self.quic_dropped = counter("quic_dropped_total", "Datagrams that no QUIC connection got", "reason")
        self.batch_elements = Histogram(
            "cloudhub_connector_batch_elements",
            "Elements per batch to a dispatcher",
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=registry,
        )
