"""Nodes whose links take each other's place, and nodes that come back after they were deleted. Pure: the time
is an argument."""

from collections import OrderedDict

# Two agents of one node throw each other out every 31 to 44 s (a stock edge's cycle of dials).
MANY_TAKEOVERS = 3
WITHIN_SECONDS = 300.0
# So long after its deletion a node is known to have been there.
RETURN_SECONDS = 3600.0
MAX_NODES = 16_384


class Takeovers:
    """Of more than `max_nodes` that did either, the one that did it longest ago is forgotten."""

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self._max_nodes = max_nodes
        self._at: OrderedDict[str, list[float]] = OrderedDict()
        self._deleted_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return max(len(self._at), len(self._deleted_at))

    def superseded(self, node_id: str, now: float) -> float | None:
        """A live session of the node was superseded. In how many seconds that happened MANY_TAKEOVERS times,
        if it did within WITHIN_SECONDS."""
        times = [at for at in self._at.pop(node_id, ()) if now - at < WITHIN_SECONDS]
        times.append(now)
        self._at[node_id] = times[-MANY_TAKEOVERS:]
        if len(self._at) > self._max_nodes:
            self._at.popitem(last=False)
        return now - times[-MANY_TAKEOVERS] if len(times) >= MANY_TAKEOVERS else None

    def deleted(self, node_id: str, now: float) -> None:
        """A session of the node ended with the node."""
        self._deleted_at.pop(node_id, None)
        self._deleted_at[node_id] = now
        if len(self._deleted_at) > self._max_nodes:
            self._deleted_at.popitem(last=False)

    def opened(self, node_id: str, now: float) -> float | None:
        """The node opens a session: how long ago it was deleted, if that is not long."""
        at = self._deleted_at.pop(node_id, None)
        return now - at if at is not None and now - at < RETURN_SECONDS else None
