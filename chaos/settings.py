"""Settings of a chaos run."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from chaos.hostile.edges import HOSTILE_NODES

NODE_PREFIX = "edge-"
"""Of the fleets' nodes and the guests, and of no hostile party's."""
REPOSITORY = Path(__file__).resolve().parent.parent
STOCK_PACE = 15.0
"""Doubles of stock edges live so many times faster: half a minute of rest takes two seconds."""


class StoreKind(StrEnum):
    """Where the hub of a run keeps what it must not lose."""

    SQLITE = "sqlite"
    POSTGRESQL = "postgresql"
    PATRONI = "patroni"
    """PostgreSQL whose roles Patroni decides."""


class EdgeKind(StrEnum):
    """Who is at the other end of the links."""

    AGENT = "agent"
    STOCK = "stock"


@dataclass(frozen=True, slots=True)
class ChaosSettings:
    """Times in seconds."""

    seconds: float = 60.0
    """How long faults are injected; starting, settling and checking come on top."""
    faults: int = 0
    """If above 0, faults are injected until there were so many, hostile acts among them, however long that
    takes."""
    hostile: bool = True
    """Whether hostile parties play beside the faults."""
    seed: int = 1
    replicas: int = 2
    """Of each service."""
    nodes: int = 40
    guests: int = 4
    """Further nodes that nothing is published to. No more sessions are admitted than the others need, so that
    they contend for what a fault leaves free."""
    publishers: int = 3
    publish_pause_seconds: float = 0.2
    """Of each publisher, between two rounds of a message to every node."""
    subscribers: int = 2
    store: StoreKind = StoreKind.POSTGRESQL
    tls: bool = False
    """Of gRPC; links of edges always have it."""
    edges: EdgeKind = EdgeKind.AGENT
    """Our own agent, or the double of a stock edge, whose nodes send their uploads once."""
    out: Path = REPOSITORY / "chaos" / "out"

    lease_seconds: float = 3.0
    recover_seconds: float = 10.0
    """A hub that needs longer has not recovered: from a fault on, or from the end of one that leaves nobody
    to do the work (the only database, a fleet of edges, the only replica)."""
    settle_seconds: float = 60.0
    """Longest wait at the end for what is pending."""

    @property
    def data(self) -> Path:
        """Databases, certificates and logs of the run."""
        return self.out / "data"

    @property
    def guest_ids(self) -> list[str]:
        """They follow the nodes."""
        return [f"{NODE_PREFIX}{self.nodes + number}" for number in range(1, self.guests + 1)]

    @property
    def hostile_ids(self) -> tuple[str, ...]:
        """Nodes of hostile parties."""
        return HOSTILE_NODES if self.hostile else ()

    @property
    def limit_total(self) -> int:
        """Sessions that are admitted at a time: guests find no room beside all others."""
        return self.nodes + len(self.hostile_ids)

    @property
    def history(self) -> Path:
        """All that was taken down in the last run (chaos.history.History as JSON)."""
        return self.out / "history.json"

    @property
    def hub_flags(self) -> dict[str, list[str]]:
        """Leases and time limits of a few seconds, for a run of a minute."""
        lease = str(self.lease_seconds)
        return {
            "sessions": [
                *("--lease-seconds", lease),
                *("--limit-total", str(self.limit_total), "--limit-retry-seconds", "0.5"),
            ],
            "dispatcher": [
                *("--lease-seconds", lease, "--sessions-seconds", str(self.lease_seconds / 2)),
                *("--ack-seconds", "2", "--keepalive-seconds", str(2 * self.lease_seconds)),
                # Links are cut and processes paused here without an end: nothing is to be given up.
                *("--ack-most-seconds", "5", "--most-attempts", "1000"),
                # What is for nodes that never come goes soon, and so do they.
                *("--unknown-node-seconds", "10"),
            ],
            # All come from one address.
            "enrolment": ["--requests-per-second", "1000", "--requests-burst", "1000"],
            "connector": [
                *("--retry-after-seconds", "0.5", "--verdict-seconds", "5"),
                *("--drain-links-per-second", "1000", "--drain-seconds", "3"),
            ],
        }

    @property
    def fleet_flags(self) -> list[str]:
        """Edges that notice a dead link soon and come back soon."""
        return [
            *("--keepalive", "1", "--silence", str(self.lease_seconds + 1)),
            *("--first-delay", "0.1", "--most-delay", "1", "--report-every", "0.2"),
            *(("--stock-pace", str(STOCK_PACE)) if self.edges is EdgeKind.STOCK else ()),
            # Processes are killed here, not machines: what the kernel has been given is safe.
            *("--sync", "normal"),
        ]
