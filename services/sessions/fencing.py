"""Epochs: the fencing tokens of a node's sessions."""

from typing import NewType

Epoch = NewType("Epoch", int)

NO_EPOCH = Epoch(0)


def next_epoch(last: Epoch, now_ms: int) -> Epoch:
    """The epoch of a session that opens or changes its dispatcher: above `last` and, so that it
    grows even after the node was deleted, not below the present time in ms."""
    return Epoch(max(last + 1, now_ms))


def grants(present: Epoch, shown: int) -> bool:
    """Whether a caller that shows this epoch speaks for the present session: only equality grants."""
    return present == shown
