"""Settings of the demo: flags or DEMO_* variables, read in `__main__`."""

from dataclasses import dataclass
from pathlib import Path

from demo.databases import Engine

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Times in seconds."""

    seconds: float = 0.0
    """How long to publish; 0: until Ctrl-C."""
    nodes: int = 20
    update_every: float = 2.0
    cut_every: float = 7.0
    """0: never."""
    settle: float = 20.0
    """Longest wait at the end for what is pending."""
    data: Path = REPOSITORY / ".run"
    replicas: int = 1
    """Of each service; several need PostgreSQL, which the demo starts itself."""
    tls: bool = False
    """Of gRPC; links of edges always have it."""
    manifests: Path = REPOSITORY / "examples" / "manifests"

    @property
    def engine(self) -> Engine:
        """SQLite serves one replica of each service."""
        return Engine.POSTGRESQL if self.replicas > 1 else Engine.SQLITE

    @property
    def certificates(self) -> Path:
        """Kept for the next start, like all data."""
        return self.data / "certificates"

    @property
    def edges_database(self) -> Path:
        """The disk of all edge nodes but the one that joins."""
        return self.data / "edges.db"

    @property
    def joined_database(self) -> Path:
        """The disk of the node that joins by token."""
        return self.data / "joined-edge.db"

    @property
    def joined_certificates(self) -> Path:
        """Its folder; it goes with the CA that vouches for what is in it."""
        return self.certificates / "joined-edge"
