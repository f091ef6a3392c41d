"""Metrics of the upstream half. No label grows with the number of nodes or modules."""

from prometheus_client import CollectorRegistry, Counter, Gauge

_PREFIX = "cloudhub_dispatcher_upstream_"


class UpstreamMetrics:
    """One object per process; names are documented in docs/operations/metrics.md."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(_PREFIX + name, text, registry=registry)

        self.received = counter("received", "Messages from edges by the kind of their route.", "route")
        self.noise = counter("noise", "Messages from edges that nobody can handle.", "reason")
        self.merged = counter("merged", "Status reports merged into one that still waited.")
        self.dropped = counter("dropped", "Messages dropped, by the bound they met.", "reason")
        self.answered = counter("answered", "Requests of edges answered by the hub itself.", "answer")
        self.unanswered = counter(
            "unanswered", "Requests of edges that the hub should answer and cannot.", "reason"
        )
        self.events = counter("events", "Lifecycle events told to modules.", "kind")
        self.events_done = counter("events_done", "Lifecycle events whose copies are all settled.")
        self.handed = counter("handed", "Messages handed to subscribers.")
        self.redelivered = counter("redelivered", "Messages handed to a subscriber once more.")
        self.settled = counter("settled", "Messages that subscribers acknowledged.")
        self.relayed_away = counter("relayed_away", "Messages handed to other dispatchers' subscribers.")
        self.relayed_here = counter("relayed_here", "Messages of other dispatchers for subscribers here.")
        self.unknown_acknowledgements = counter(
            "unknown_acknowledgements", "Delivery ids acknowledged by a subscriber that did not hold them."
        )
        self.uploads_stored = counter("uploads_stored", "Uploads written to the store.")
        self.uploads_repeated = counter("uploads_repeated", "Uploads that were stored or settled before.")
        self.uploads_settled = counter("uploads_settled", "Uploads settled and deleted from the store.")
        self.uploads_inherited = counter(
            "uploads_inherited", "Uploads taken over from an earlier process or another dispatcher."
        )
        self.uploads_unreadable = counter("uploads_unreadable", "Stored uploads that are no message.")
        self.store_failures = counter("store_failures", "Transactions on uploads that failed.")
        self.link_pauses = counter("link_pauses", "Times a link's reads were paused for its uploads.")
        self.link_closes = counter("link_closes", "Links closed because their uploads found no room.")
        self.waiting = gauge("waiting", "Messages in memory that no subscriber holds.")
        self.unsettled_bytes = gauge("unsettled_bytes", "Size of the messages in memory, uploads aside.")
        self.subscribers = gauge("subscribers", "Subscribers at this dispatcher.")
        self.modules = gauge("modules", "Modules that subscribers here name, beside the hub's own.")
        self.subscriptions_refused = counter(
            "subscriptions_refused", "Subscriptions that their caller's share had no room for.", "reason"
        )
        self.subscribers_ended = counter(
            "subscribers_ended", "Subscribers whose stream the hub ended, by the reason.", "reason"
        )
        self.oldest_unacknowledged = gauge(
            "oldest_unacknowledged_seconds", "How long a subscriber here has held the oldest delivery."
        )
        self.uploads_rows = gauge("uploads_rows", "Uploads in the store.")
        self.uploads_bytes = gauge("uploads_bytes", "Size of the uploads in the store.")
        self.uploads_oldest = gauge("uploads_oldest_seconds", "How long the oldest of them has been there.")
        self.uploads_nodes_full = gauge(
            "uploads_nodes_full", "Nodes whose uploads wait for room in their share of the store."
        )
