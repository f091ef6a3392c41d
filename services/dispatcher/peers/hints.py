"""Hints that wait to be told: per node one, with its highest seq and what was accepted for it. Pure."""

from dataclasses import dataclass, field

from services.dispatcher.outbox.records import ObjectRow

MOST_WAITING_BYTES = 16 * 1024 * 1024
# What a hint has beside its rows, and a row beside its message and its key.
_HINT_BYTES = 320
_ROW_BYTES = 128


def row_bytes(row: ObjectRow) -> int:
    """What a row takes up in a request."""
    return max(row.size_bytes, len(row.body or b"")) + len(row.key) * 4 + _ROW_BYTES


@dataclass(slots=True)
class Hint:
    """`rows` are those accepted here, in the order of seq; not all of them, where there was no room."""

    last_seq: int
    rows: list[ObjectRow] = field(default_factory=list)


class HintQueue:
    """At most `most` nodes; a hint about a further one is turned down, since a sweep finds it anyway.

    Rows above `most_bytes` are left out: the owner reads them.
    """

    def __init__(self, most: int, most_bytes: int = MOST_WAITING_BYTES) -> None:
        self._most = most
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting: dict[str, Hint] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, node_id: str, hint: Hint) -> bool:
        """False if there is no room. A seq of 0 (read in any case) stays 0."""
        known = self._waiting.get(node_id)
        if known is None:
            if len(self._waiting) >= self._most:
                return False
            known = self._waiting[node_id] = Hint(hint.last_seq)
        else:
            known.last_seq = max(known.last_seq, hint.last_seq) if known.last_seq and hint.last_seq else 0
        for row in hint.rows:
            size = row_bytes(row)
            if self._bytes + size <= self._most_bytes:
                self._bytes += size
                known.rows.append(row)
        return True

    def take(self, most: int, most_bytes: int) -> list[tuple[str, Hint]]:
        """Up to `most` hints, first come first, of at most `most_bytes` together. What of the first one is
        more than that is left out: the owner reads it."""
        taken: list[tuple[str, Hint]] = []
        size = 0
        for node_id, hint in self._waiting.items():
            rows_bytes = sum(map(row_bytes, hint.rows))
            if len(taken) >= most or (taken and size + rows_bytes + _HINT_BYTES > most_bytes):
                break
            taken.append((node_id, hint))
            self._bytes -= rows_bytes
            size += rows_bytes + _HINT_BYTES
        for node_id, _ in taken:
            del self._waiting[node_id]
        if size > most_bytes:
            _leave_out(taken[0][1], most_bytes)
        return taken


def _leave_out(hint: Hint, most_bytes: int) -> None:
    """The rows behind the first ones that have room."""
    size = _HINT_BYTES
    for place, row in enumerate(hint.rows):
        size += row_bytes(row)
        if size > most_bytes:
            del hint.rows[place:]
            return
