"""Which sessions the outbox is ahead of. Pure.

Everything that others do to a node's pending messages raises the node's last seq: a publish, an
un-parking, a purge. So a session whose policy knows a lower one has missed something, whatever
became of the hint.
"""

from collections.abc import Iterator, Mapping, Sequence


def pages(node_ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    """The nodes in parts of at most `size`."""
    for start in range(0, len(node_ids), size):
        yield node_ids[start : start + size]


def laggards(known: Mapping[str, int | None], stored: Mapping[str, int]) -> list[str]:
    """Nodes to read again: (node -> last seq) as policies know it, and as the outbox has it.

    A policy that knows none has not loaded yet: what it loads is newer than `stored`. A node without
    a row has nothing pending.
    """
    return [
        node_id
        for node_id, last_seq in known.items()
        if last_seq is not None and stored.get(node_id, 0) > last_seq
    ]
