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


def laggards(known: Mapping[str, int | None], stored: Mapping[str, int]) -> dict[str, int]:
    """Nodes whose sessions are behind, with the last seq in the outbox: (node -> last seq) as policies know
    it, and as the outbox has it.

    A policy that knows none has not loaded yet or is reading; if what it reads is older than `stored`, a
    later look finds that. A node without a row has nothing pending.
    """
    return {
        node_id: stored[node_id]
        for node_id, last_seq in known.items()
        if last_seq is not None and stored.get(node_id, 0) > last_seq
    }


def still_behind(
    known: Mapping[str, int | None], stored: Mapping[str, int], before: Mapping[str, int]
) -> tuple[list[str], dict[str, int]]:
    """Which nodes to read again, and which ones to look at once more, as `before` of the next look.

    A look sees what this process has committed and not yet told its sessions. So a session counts as behind
    only if it does not know what the look before saw.
    """
    behind = laggards(known, before)
    seen = {node_id: seq for node_id, seq in laggards(known, stored).items() if node_id not in behind}
    return list(behind), seen
