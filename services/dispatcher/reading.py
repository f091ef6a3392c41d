"""One reading of a node's pending rows, a portion after the other. Pure."""

from dataclasses import dataclass, field


@dataclass(slots=True)
class Reading:
    """What is known so far.

    Portions come in the order of seq, each from a transaction of its own, and a key's seq only grows: a
    message that is pending all the while is met at least once, a newer one of its key behind it. What others
    change after the first portion raises the node's order above `last_seq`, so it is told or found by a
    sweep, and read once more.
    """

    last_seq: int | None = None
    """The node's, as of the first portion; None before that."""
    through_seq: int = 0
    """All up to here has come."""
    seen: set[str] = field(default_factory=set)
    """Keys of the rows that came."""
    ended: set[int] = field(default_factory=set)
    """Seqs that ended here meanwhile: a portion may still show them."""
    stalled: bool = False
    """The outbox did not answer; it goes on when time comes."""
