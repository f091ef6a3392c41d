"""How long the oldest pending message has waited: of all nodes since it was accepted, and of those whose
sessions are here since it could go. Pure.

A walk goes through the nodes that have something pending, some of them at a time. What it found counts once
it is through, and goes on growing until the next one is.
"""

from collections.abc import Mapping

ALL, CONNECTED = "all", "connected"


class OldestPending:
    """Instants are wall-clock milliseconds. Inputs: `found` for each step of a walk."""

    def __init__(self) -> None:
        self.after = ""
        """The node after which the next step begins."""
        self._walk: dict[str, int] = {}
        self._known: dict[str, int] = {}

    def found(
        self, accepted_at_ms: Mapping[str, int], opened_at_ms: Mapping[str, int], after: str | None
    ) -> None:
        """The first pending message of each node of a step, and when the sessions of the connected ones were
        opened; `after` is the last of the nodes, None if the walk is through.

        What waited while a node was away waits for a connected one only since it is back.
        """
        for node_id, at_ms in accepted_at_ms.items():
            self._met(ALL, at_ms)
            opened = opened_at_ms.get(node_id)
            if opened is not None:
                self._met(CONNECTED, max(at_ms, opened))
        self.after = after or ""
        if after is None:
            self._known, self._walk = self._walk, {}

    def _met(self, nodes: str, at_ms: int) -> None:
        self._walk[nodes] = min(at_ms, self._walk.get(nodes, at_ms))

    def seconds(self, nodes: str, now_ms: int) -> float:
        """How long the one that waits longest has, of ALL or of CONNECTED nodes; 0 if nothing is pending."""
        at_ms = self._known.get(nodes)
        return 0.0 if at_ms is None else max(0.0, (now_ms - at_ms) / 1000)
