"""Metrics of what dispatchers say to each other. No label grows with nodes or dispatchers."""

from prometheus_client import CollectorRegistry, Counter, Gauge

_PREFIX = "cloudhub_dispatcher_peers_"


class PeerMetrics:
    """One object per process; names are documented in docs/operations/metrics.md."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(_PREFIX + name, text, labels, registry=registry)

        self.known = Gauge(_PREFIX + "known", "Other dispatchers with a lease.", registry=registry)
        self.attached = Gauge(_PREFIX + "attached", "Of them, those whose relay runs.", registry=registry)
        self.lost = counter("lost", "Relays from other dispatchers that broke.")
        self.hints = counter("hints", "Hints of changed nodes by what became of them.", "outcome")
        self.hinted = counter("hinted", "Hints received, by whether the session is here.", "session")
        self.owners = counter(
            "publishes", "Publishes sent to the node's dispatcher, by what became of them.", "outcome"
        )
        self.swept = counter("swept", "Nodes the sweep found behind the outbox.")
        self.sweep_failures = counter("sweep_failures", "Sweeps that the store did not answer.")
        self.looks = counter(
            "looks", "Times others were asked what they know of nodes, by what became of it.", "outcome"
        )
        self.forwarded = counter("forwarded", "NO-ACK messages sent by way of another dispatcher.", "outcome")
