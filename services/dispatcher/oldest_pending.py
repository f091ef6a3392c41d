"""How long the oldest pending message has waited: of all nodes, and of those whose sessions are here. Pure.

A walk goes through the nodes that have something pending, some of them at a time. What it found counts once
it is through, and goes on growing until the next one is.
"""

from collections.abc import Container, Mapping

ALL, CONNECTED = "all", "connected"


class OldestPending:
    """Instants are wall-clock milliseconds. Inputs: `found` for each step of a walk."""

    def __init__(self) -> None:
        self.after = ""
        """The node after which the next step begins."""
        self._walk: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def found(self, accepted_at_ms: Mapping[str, int], connected: Container[str], after: str | None) -> None:
        """The first pending message of each node of a step; `after` is the last of them, None if the walk is
        through."""
        for node_id, at_ms in accepted_at_ms.items():
            self._met(ALL, at_ms)
            if node_id in connected:
                self._met(CONNECTED, at_ms)
        self.after = after or ""
        if after is None:
            self._known, self._walk = self._walk, {}

    def _met(self, nodes: str, at_ms: int) -> None:
        self._walk[nodes] = min(at_ms, self._walk.get(nodes, at_ms))

    def seconds(self, nodes: str, now_ms: int) -> float:
        """The age of the oldest one of ALL or CONNECTED nodes; 0 if nothing is pending."""
        at_ms = self._known.get(nodes)
        return 0.0 if at_ms is None else max(0.0, (now_ms - at_ms) / 1000)
