"""Settings of a soak run."""

from dataclasses import dataclass
from pathlib import Path

from demo.databases import Engine

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """Times in seconds."""

    seconds: float = 600.0
    days: int = 3
    """So many days pass in that time."""
    nodes: int = 60
    """Of both sites; the larger half goes home at night."""
    replicas: int = 1
    """Of each service."""
    engine: Engine = Engine.SQLITE
    tls: bool = False
    """Of gRPC; links of edges always have it."""
    out: Path = REPOSITORY / "soak" / "out"

    sample_seconds: float = 2.0
    recover_seconds: float = 60.0
    """A hub that needs longer after a wave, a cut or a restart has not recovered."""
    settle_seconds: float = 90.0
    """Longest wait at the end for what is pending."""

    @property
    def data(self) -> Path:
        """Databases, certificates and logs of the run."""
        return self.out / "data"

    @property
    def hub_flags(self) -> dict[str, list[str]]:
        """Leases and time limits of seconds, so that a day of minutes has room for them."""
        return {
            "sessions": ["--lease-seconds", "5"],
            "dispatcher": [
                *("--lease-seconds", "5", "--keepalive-seconds", "10"),
                *("--ack-seconds", "3", "--ack-most-seconds", "10", "--most-attempts", "1000"),
            ],
            "connector": ["--retry-after-seconds", "1", "--drain-seconds", "3"],
        }

    @property
    def fleet_flags(self) -> list[str]:
        """Edges that come back within seconds."""
        return [
            *("--keepalive", "2", "--silence", "8", "--first-delay", "0.2", "--most-delay", "2"),
            *("--report-every", "0.5", "--upload-every", "3", "--status-every", "3", "--sync", "normal"),
        ]
