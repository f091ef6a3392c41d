"""Which dispatcher holds a node's session, as far as was heard lately. Pure.

What stands here may be out of date: it decides where a hint goes, never what may be sent.
"""

from collections.abc import Iterable


class Locations:
    """Remembers look-ups for `valid_seconds`, at most `most` of them (the oldest go first)."""

    def __init__(self, valid_seconds: float = 2.0, most: int = 65_536) -> None:
        self._valid_seconds = valid_seconds
        self._most = most
        self._known: dict[str, tuple[float, str]] = {}  # in the order of their ends

    def __len__(self) -> int:
        return len(self._known)

    def learn(self, node_id: str, dispatcher_id: str, now: float) -> None:
        """A look-up answered; an empty id says that the node is connected nowhere."""
        self._known.pop(node_id, None)
        self._known[node_id] = (now + self._valid_seconds, dispatcher_id)
        while len(self._known) > self._most:
            del self._known[next(iter(self._known))]

    def find(self, node_id: str, now: float) -> str | None:
        """The dispatcher's id, empty if the node is connected nowhere; None: it has to be looked up."""
        known = self._known.get(node_id)
        if known is None or known[0] <= now:
            return None
        return known[1]

    def forget(self, node_ids: Iterable[str]) -> None:
        """They are not where they were thought to be."""
        for node_id in node_ids:
            self._known.pop(node_id, None)
