"""Bytes that wait for all edges of a connector together. Pure."""

from dataclasses import dataclass

FREE_BYTES = 64 * 1024
"""What a link may have waiting whatever others have, as long as there is any room at all."""


@dataclass(slots=True)
class QueuedTotal:
    """A quarter of `max_bytes` is for links that have next to nothing waiting."""

    max_bytes: int
    bytes: int = 0

    def admits(self, own_bytes: int, size_bytes: int) -> bool:
        """Whether a link that has `own_bytes` waiting may have so many more; one that has nothing always
        finds room for what fits into FREE_BYTES."""
        total = self.bytes + size_bytes
        if own_bytes + size_bytes <= FREE_BYTES:
            return not own_bytes or total <= self.max_bytes
        return total <= self.max_bytes - self.max_bytes // 4
