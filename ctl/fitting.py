"""Which columns of a table a terminal has room for. Pure."""

from collections.abc import Sequence

from rich.cells import cell_len

GAP = 2
# Sentences, which may be broken between words; anything else is whole, so that it can be copied.
SENTENCES = frozenset({"WHY", "WHAT", "REASON", "PARKED BECAUSE"})
_LEAST_SENTENCE = 24
FIRST_TO_GO = (
    *("ID", "SERIAL", "EPOCH", "LINK", "PEER", "BY", "PROJECT", "MADE"),
    *("SENT", "RECEIVED", "OBJECT", "OPERATION", "HEARD OF", "ATTEMPT", "ATTEMPTS"),
    *("DISPATCHER", "ADDRESS", "ACKNOWLEDGED", "ACCEPTED", "ISSUED", "LAST ACK", "OLDEST PENDING"),
    *("VERSION", "WANTED", "IN FLIGHT", "CONNECTOR", "IDLE", "SINCE"),
)
"""Names of columns; those that are not here stay at any width: an object is named by its path."""


def widths(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """How wide each column has to be."""
    found = []
    for at, column in enumerate(columns):
        most = max((cell_len(row[at]) for row in rows), default=0)
        if column in SENTENCES:
            most = min(most, _LEAST_SENTENCE)
        found.append(max(cell_len(column), most))
    return found


def needed(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """How wide a terminal has to be for a table."""
    return sum(widths(columns, rows)) + GAP * (len(columns) - 1)


def fitting(columns: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[int]:
    """The numbers of the columns that are shown: all of them, or without those that go first until the rest
    fits, or without all that may go."""
    wide = widths(columns, rows)
    kept = list(range(len(columns)))
    for name in FIRST_TO_GO:
        if sum(wide[at] for at in kept) + GAP * (len(kept) - 1) <= width:
            break
        kept = [at for at in kept if columns[at] != name]
    return kept
