"""Settings of the connector."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field
from pydantic_settings import SettingsConfigDict

from services.connector.connections import ConnectionLimits
from services.connector.discovery import Entry
from services.connector.link import LinkLimits
from services.runtime.acceptor import Proxies
from services.runtime.proxy_header import networks_of
from services.runtime.settings import Address, ServiceSettings, check_address, split_address

QUIC_OFF = "off"
# A URL, perhaps with a password: what is dialled is told in logs.
_NO_HOST = frozenset("/?#@")


def _check_addresses(value: str) -> str:
    for part in value.split(","):
        host, separator, port = part.strip().rpartition(":")
        if (
            not separator
            or not host
            or not port.isdigit()
            or not 0 < int(port) < 65536
            or set(host) & _NO_HOST
        ):
            raise ValueError("should be HOST:PORT,HOST:PORT,... for example 127.0.0.1:50051")
        split_address(part.strip())
    return value


def _check_quic_listen(value: str) -> str:
    return value if value == QUIC_OFF else check_address(value)


def _check_networks(value: str) -> str:
    networks_of(value)
    return value


class ConnectorSettings(ServiceSettings):
    """Carries links of edge nodes: WebSocket or QUIC with mutual TLS towards edges, gRPC to dispatchers."""

    model_config = SettingsConfigDict(env_prefix="CLOUDHUB_CONNECTOR_")

    listen: Address = Field("0.0.0.0:10000", description="HOST:PORT for WebSocket links of edges")
    proxy_networks: Annotated[str, AfterValidator(_check_networks)] = Field(
        "",
        description="networks of load balancers, as in 10.0.0.0/8,2001:db8::/32, that say by PROXY protocol "
        "version 2 where a TCP connection comes from, and have to; empty: nobody may",
    )
    quic_listen: Annotated[str, AfterValidator(_check_quic_listen)] = Field(
        "0.0.0.0:10001", description="HOST:PORT (UDP) for QUIC links of edges; off: there are none"
    )
    quic_idle_seconds: float = Field(
        90.0,
        gt=0,
        le=600,
        description="silence that ends a QUIC connection; more than 4/3 of the dispatchers' keepalive",
    )
    quic_window_bytes: int = Field(
        256 * 1024,
        ge=16 * 1024,
        le=16 * 1024 * 1024,
        description="bytes an edge may send over QUIC ahead of what was read; a larger frame comes in whole",
    )
    grpc_listen: Address = Field("0.0.0.0:50053", description="HOST:PORT of the gRPC server (admin, health)")
    dispatchers: Annotated[str, AfterValidator(_check_addresses)] = Field(
        "127.0.0.1:50051",
        description="HOST:PORT of every dispatcher, separated by commas; a name stands for all its addresses",
    )
    certificate: Path = Field(
        Path("certs/server.crt"), description="server certificate (PEM, with its chain)"
    )
    private_key: Path = Field(Path("certs/server.key"), description="the certificate's private key (PEM)")
    client_ca: Path = Field(Path("certs/ca.crt"), description="CA of the edges' certificates (PEM)")
    frame_most_bytes: int = Field(
        4 * 1024 * 1024, ge=1024, le=16 * 1024 * 1024, description="largest frame an edge may send"
    )
    frames_per_second: float = Field(
        5000.0, gt=0, description="frames an edge may send per second before its reads pause"
    )
    frames_burst: float = Field(10_000.0, ge=1, description="frames an edge may send at once")
    unreceipted_most_frames: int = Field(
        256, ge=1, description="frames of one edge that wait for the dispatcher before its reads pause"
    )
    unreceipted_most_bytes: int = Field(1024 * 1024, ge=1, description="the same in bytes")
    queued_most_frames: int = Field(
        4096, ge=1, description="frames that wait for one edge; more ends the link as overloaded"
    )
    queued_most_bytes: int = Field(8 * 1024 * 1024, ge=1, description="the same in bytes")
    max_queued_bytes: int = Field(
        1024 * 1024 * 1024,
        ge=32 * 1024 * 1024,
        description="bytes that wait for all edges together, a quarter of them for links with next to none; "
        "at it the links with the most end as overloaded",
    )
    max_incoming_bytes: int = Field(
        256 * 1024 * 1024,
        ge=64 * 1024 * 1024,
        description="bytes of all edges' frames that are not whole, a quarter of them for links with next to "
        "none; at it links whose frames have waited longest end as overloaded",
    )
    links_most: int = Field(20_000, ge=1, description="links of this connector; further ones get 503")
    openings_most: int = Field(
        1024,
        ge=1,
        description="connections between their first byte and an answered upgrade; further ones wait, and "
        "networks take turns",
    )
    max_waiting_connections: int = Field(
        4096,
        ge=1,
        description="connections that have sent nothing, wait for their turn or are being closed; at it the "
        "network with the most gives way, silent ones first",
    )
    opening_seconds: float = Field(
        30.0,
        gt=0,
        le=120,
        description="time for TLS handshake and request together; a third of it for each while others wait",
    )
    verdict_seconds: float = Field(10.0, gt=0, le=120, description="time for a dispatcher's verdict")
    close_seconds: float = Field(5.0, gt=0, le=120, description="time for the edge's part of a close")
    retry_after_seconds: float = Field(
        5.0, gt=0, le=3600, description="advice to an edge that is refused for a passing reason"
    )
    drain_links_per_second: float = Field(500.0, gt=0, description="rate at which a drain closes links")
    drain_seconds: float = Field(
        15.0, gt=0, le=600, description="time after which a drain closes what is left at once"
    )

    def dispatcher_entries(self) -> list[Entry]:
        """Addresses and names, in the order given."""
        return [Entry(*split_address(part.strip())) for part in self.dispatchers.split(",")]

    def proxies(self) -> Proxies:
        """Who says by PROXY headers where connections come from."""
        return Proxies(networks_of(self.proxy_networks))

    def link_limits(self) -> LinkLimits:
        """The bounds of one link."""
        return LinkLimits(
            self.queued_most_frames,
            self.queued_most_bytes,
            self.unreceipted_most_frames,
            self.unreceipted_most_bytes,
            self.frames_per_second,
            self.frames_burst,
        )

    def connection_limits(self) -> ConnectionLimits:
        """The bounds of one connection."""
        return ConnectionLimits(
            self.frame_most_bytes, self.opening_seconds, self.close_seconds, min(2.0, self.close_seconds)
        )
