"""Settings of the enrolment service."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from services.runtime.settings import Address, Replicas, ServiceSettings


class EnrolmentSettings(ServiceSettings):
    """Signs certificates of edge nodes that show a join token or a certificate they have; keeps nothing."""

    model_config = SettingsConfigDict(env_prefix="CLOUDHUB_ENROLMENT_")

    listen: Address = Field("0.0.0.0:10002", description="HOST:PORT for HTTPS requests of edges")
    grpc_listen: Address = Field("0.0.0.0:50054", description="HOST:PORT of the gRPC server (health)")
    sessions: Replicas = Field(
        "127.0.0.1:50052",
        description="HOST:PORT of the sessions service, HOST standing for all its replicas; "
        "or IP:PORT of each, separated by commas",
    )
    sessions_seconds: float = Field(5.0, gt=0, le=60, description="time limit of a call to sessions")
    certificate: Path = Field(
        Path("certs/server.crt"), description="certificate of the HTTPS server (PEM, with its chain)"
    )
    private_key: Path = Field(Path("certs/server.key"), description="the certificate's private key (PEM)")
    client_ca: Path = Field(
        Path("certs/ca.crt"), description="CA of the certificates that edges show to renew them (PEM)"
    )
    ca_certificate: Path = Field(
        Path("certs/ca.crt"), description="CA that signs (PEM; of several the first); edges get it as /ca.crt"
    )
    ca_private_key: Path = Field(Path("certs/ca.key"), description="the CA's private key (PEM)")
    certificate_seconds: float = Field(
        90 * 86_400.0, ge=1, le=3650 * 86_400, description="how long certificates of edges are valid"
    )
    warning_seconds: float = Field(
        30 * 86_400.0,
        ge=0,
        description="so long before its own certificate or the CA expires, a warning is logged each day",
    )
    requests_per_second: float = Field(
        2.0,
        gt=0,
        description="requests that an IPv4 address, or a /64 of IPv6, may make per second, on average",
    )
    requests_burst: int = Field(
        50, ge=1, description="requests that an IPv4 address, or a /64 of IPv6, may make at once"
    )
    connections_most: int = Field(
        256,
        ge=1,
        description="connections at work, from their first byte on; four times as many may have sent nothing "
        "or wait, and networks take turns",
    )
    request_seconds: float = Field(
        10.0, gt=0, le=120, description="time for TLS handshake, request and answer together"
    )
