"""The metrics of the enrolment service."""

from prometheus_client import CollectorRegistry, Counter, ProcessCollector

from services.runtime.grpc_metrics import GrpcMetrics


class EnrolmentMetrics:
    """One set per process; neither node ids nor addresses are labels."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "cloudhub_enrolment_requests",
            "Requests over HTTPS: what was given, or why not",
            ["outcome"],
            registry=self.registry,
        )
        self.requests_waited = Counter(
            "cloudhub_enrolment_requests_waited",
            "Times a request could not begin until another one had ended",
            registry=self.registry,
        )
        self.grpc = GrpcMetrics("enrolment", self.registry)
