"""Hints that wait to be told: per node one, with its highest seq. Pure."""


class HintQueue:
    """At most `most` nodes; a hint about a further one is turned down, since a sweep finds it anyway."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._waiting: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, node_id: str, last_seq: int) -> bool:
        """False if there is no room. A seq of 0 (read in any case) stays 0."""
        known = self._waiting.get(node_id)
        if known is None:
            if len(self._waiting) >= self._most:
                return False
            self._waiting[node_id] = last_seq
        else:
            self._waiting[node_id] = max(known, last_seq) if known and last_seq else 0
        return True

    def take(self, most: int) -> list[tuple[str, int]]:
        """Up to `most` hints, first come first."""
        taken = list(self._waiting.items())[:most] if len(self._waiting) > most else [*self._waiting.items()]
        for node_id, _ in taken:
            del self._waiting[node_id]
        return taken
