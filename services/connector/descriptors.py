"""How the descriptors that a connector may have are divided, so that no kind of use takes another's. Pure.

Everything but the connections of edges has bounds of its own (docs/limits.md), which RESERVED covers. Links
over QUIC have no descriptors.
"""

from dataclasses import dataclass

from services.runtime.errors import StartupError

RESERVED = 512
"""For gRPC, metrics, probes, streams to dispatchers, logs and files."""
LEAST = 64
"""With fewer a connector does not start."""
# Of what is left for edges, where it is not enough: one part for openings at work, one for those that wait.
_OPENINGS_SHARE = 8
_WAITING_SHARE = 4


@dataclass(frozen=True, slots=True)
class Shares:
    """Connections of edges over WebSocket, by what they are."""

    links: int
    openings: int
    waiting: int

    @property
    def descriptors(self) -> int:
        """What they need together: openings that become links are followed by others."""
        return self.links + 2 * self.openings + self.waiting


def divide(limit: int, wanted: Shares) -> Shares:
    """What there is of `wanted` within a process's limit of open files. Raises StartupError if that is next
    to nothing."""
    if limit < LEAST:
        raise StartupError(
            f"the limit of open files is {limit}: a connector needs {LEAST} at least, and "
            f"{wanted.descriptors + RESERVED} for what it is set to (ulimit -n, LimitNOFILE= of systemd)"
        )
    left = limit - min(RESERVED, limit // 2)
    if wanted.descriptors <= left:
        return wanted
    openings = min(wanted.openings, max(1, left // _OPENINGS_SHARE))
    waiting = min(wanted.waiting, max(1, left // _WAITING_SHARE))
    return Shares(min(wanted.links, left - 2 * openings - waiting), openings, waiting)


def shortage(limit: int, wanted: Shares, granted: Shares) -> str | None:
    """What an operator should know, in a sentence; None if nothing is short."""
    if granted == wanted:
        return None
    return (
        f"the limit of open files, {limit}, holds {granted.links} links over WebSocket, {granted.openings} "
        f"openings and {granted.waiting} waiting connections: raise it to {wanted.descriptors + RESERVED} "
        "(ulimit -n, LimitNOFILE= of systemd) or lower --links-most, --openings-most and "
        "--max-waiting-connections"
    )
