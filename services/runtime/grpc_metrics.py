"""What every service measures of its gRPC and its certificates, under the service's own prefix."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge

from services.runtime.access import REFUSALS
from services.runtime.security import Security


class GrpcMetrics:
    """One object per process; `service` is `sessions`, `dispatcher`, `connector` or `enrolment`."""

    def __init__(self, service: str, registry: CollectorRegistry) -> None:
        self.refused = Counter(
            f"cloudhub_{service}_grpc_refused",
            "gRPC calls refused for what their caller's certificate says, or has under way",
            ["reason"],
            registry=registry,
        )
        # From the start, so that the first one is a change.
        for reason in REFUSALS:
            self.refused.labels(reason)
        self.failed_handshakes = Counter(
            f"cloudhub_{service}_grpc_handshake_failures",
            "TLS handshakes of gRPC clients that came to nothing",
            ["reason"],
            registry=registry,
        )
        self.cut = Counter(
            f"cloudhub_{service}_port_connections_cut",
            "Connections to the metrics and the probe port that were cut",
            ["port", "reason"],
            registry=registry,
        )
        self._expiry = Gauge(
            f"cloudhub_{service}_certificate_expiry_timestamp_seconds",
            "When the certificate in use expires",
            ["certificate"],
            registry=registry,
        )

    def watch(self, security: Security) -> None:
        """Shows the expiry of what this process shows in gRPC, if it shows anything."""
        if security.authenticates:
            self.watch_expiry("grpc", security.expires_at)

    def watch_expiry(self, certificate: str, expires_at: Callable[[], float]) -> None:
        """Shows the expiry of a certificate, in seconds since the epoch, whenever it is asked for."""
        self._expiry.labels(certificate).set_function(expires_at)
