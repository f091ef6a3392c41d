"""What to measure and how long."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from demo.databases import Engine


class LinkTransport(StrEnum):
    """What carries the links."""

    WEBSOCKET = "websocket"
    QUIC = "quic"


class Part(StrEnum):
    """A part of the benchmark."""

    THROUGHPUT = "throughput"
    LATENCY = "latency"
    CONNECTS = "connects"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Times in seconds."""

    seconds: float
    nodes: tuple[int, ...]
    parts: frozenset[Part]
    out: Path
    rate: float
    """Messages per second for the latency; 0: a fifth of the throughput measured."""
    profile: bool
    """Run the services under cProfile; the figures are worth less then."""
    engine: Engine = Engine.SQLITE
    replicas: int = 1
    """Of each service."""
    tls: bool = False
    """Of gRPC; links of edges always have it."""
    transport: LinkTransport = LinkTransport.WEBSOCKET
    """What carries the links."""

    warm_up_seconds: float = 2.0
    idle_seconds: float = 3.0
    """Links rest this long before their memory is read."""
    connect_seconds: float = 120.0
    settle_seconds: float = 60.0

    @property
    def data(self) -> Path:
        """Databases, certificates and logs of the runs."""
        return self.out / "data"

    @property
    def latest(self) -> Path:
        """The figures of the last run that ended well."""
        return self.out / "latest.json"
