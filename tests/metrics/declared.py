"""What each service declares that it measures."""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from services.connector.metrics import ConnectorMetrics
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.enrolment.metrics import EnrolmentMetrics
from services.runtime.metrics import declare_release
from services.sessions.metrics import Metrics as SessionsMetrics


@dataclass(frozen=True, slots=True)
class DeclaredMetric:
    """A metric under the name that it is scraped by."""

    name: str
    kind: str
    labels: tuple[str, ...]


def _found(registry: CollectorRegistry) -> Iterator[DeclaredMetric]:
    # The library tells the labels of a metric that has no samples yet only inside.
    for collector in registry._collector_to_names:
        if isinstance(collector, MetricWrapperBase):
            name = collector._name + ("_total" if collector._type == "counter" else "")
            yield DeclaredMetric(name, str(collector._type), tuple(collector._labelnames))


def declared_metrics(service: str) -> dict[str, DeclaredMetric]:
    """The hub's own metrics of "sessions", "dispatcher", "connector" or "enrolment", by name, with
    those that every service has."""
    if service == "sessions":
        registry = SessionsMetrics().registry
    elif service == "connector":
        registry = ConnectorMetrics().registry
    elif service == "enrolment":
        registry = EnrolmentMetrics().registry
    else:
        registry = CollectorRegistry()
        DispatcherMetrics(registry)
        UpstreamMetrics(registry)
        PeerMetrics(registry)
    declare_release(registry)
    return {metric.name: metric for metric in _found(registry)}
