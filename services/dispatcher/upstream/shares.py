"""What each node may take of a room that all share. No I/O and no clock.

What one node may take is bounded, and by what is free: three quarters of the room are there for all, and of
them nobody gets more than is left. The last quarter is for nodes that have next to nothing: whoever has
nothing may take one message of it, and up to a small part of what a node may have at most. So few greedy
nodes cannot use the room up, and what they hold keeps no other from having its first message stored.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

# The part of the room that is for nodes with next to nothing; which is a part of what a node may have at
# most, and so little that there is enough for so many nodes.
RESERVED_PART = 4
SMALL_PART = 256
MOST_SMALL_PART = 64


class Amount(NamedTuple):
    """Messages and their size."""

    messages: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class _Used:
    messages: int = 0
    size_bytes: int = 0


class Shares:
    """A room. `elsewhere` is what others than the caller have taken of it."""

    __slots__ = ("_max_per_node", "_nodes", "_reserved", "_small", "_total", "_used", "elsewhere")

    def __init__(self, max_per_node: Amount, total: Amount) -> None:
        self._max_per_node = max_per_node
        self._total = total
        self._reserved = Amount(*(most // RESERVED_PART for most in total))
        self._small = Amount(
            *(
                max(1, min(most // SMALL_PART, reserved // MOST_SMALL_PART))
                for most, reserved in zip(max_per_node, self._reserved, strict=True)
            )
        )
        self._used = _Used()
        self._nodes: dict[str, _Used] = {}
        self.elsewhere = Amount()

    @property
    def used(self) -> Amount:
        """What all nodes have taken, elsewhere aside."""
        return Amount(self._used.messages, self._used.size_bytes)

    @property
    def nodes(self) -> int:
        """How many nodes have taken anything."""
        return len(self._nodes)

    def of(self, node_id: str) -> Amount:
        """What a node has taken."""
        used = self._nodes.get(node_id)
        return Amount() if used is None else Amount(used.messages, used.size_bytes)

    def refusal(self, node_id: str, size_bytes: int) -> str:
        """The bound that one more message of the node would pass: `node_messages`, `node_bytes`,
        `total_messages` or `total_bytes`; empty if it may come."""
        used = self._nodes.get(node_id)
        if used is None:  # takes no more than that one message
            messages, size, is_small = 1, size_bytes, True
        else:
            messages, size = used.messages + 1, used.size_bytes + size_bytes
            is_small = messages <= self._small.messages and size <= self._small.size_bytes
        if messages > self._max_per_node.messages:
            return "node_messages"
        if size > self._max_per_node.size_bytes:
            return "node_bytes"
        free_messages = self._total.messages - self._used.messages - self.elsewhere.messages
        free_bytes = self._total.size_bytes - self._used.size_bytes - self.elsewhere.size_bytes
        if is_small:
            messages, size = 1, size_bytes
        else:
            free_messages -= self._reserved.messages
            free_bytes -= self._reserved.size_bytes
        if messages > free_messages:
            return "total_messages"
        return "total_bytes" if size > free_bytes else ""

    def is_small(self, node_id: str) -> bool:
        """Whether the node has next to nothing."""
        used = self.of(node_id)
        return used.messages <= 1 or (
            used.messages <= self._small.messages and used.size_bytes <= self._small.size_bytes
        )

    def excess(self, node_id: str, size_bytes: int) -> str:
        """The bound that a node passes with a message of this size, which it has taken room for already; as
        `refusal`."""
        used, total = self._used, self._total
        own = self._nodes[node_id]
        if (
            own.messages <= self._max_per_node.messages
            and own.size_bytes <= self._max_per_node.size_bytes
            # Nobody has more than is left, whatever each has.
            and used.messages * 2 <= total.messages - self._reserved.messages - self.elsewhere.messages
            and used.size_bytes * 2
            <= total.size_bytes - self._reserved.size_bytes - self.elsewhere.size_bytes
        ):
            return ""
        self.remove(node_id, size_bytes)
        bound = self.refusal(node_id, size_bytes)
        self.add(node_id, size_bytes)
        return bound

    def left(self, node_id: str, planned: Amount) -> Amount:
        """How much more a node may take at once, while others are to take what is `planned`: one message of
        any size if it has nothing and there is room at all. Its messages are of unknown size: those in the
        amount may pass it by one."""
        own = self.of(node_id)
        left: list[int] = []
        for most, mine, total, reserved, used, elsewhere, coming in zip(
            self._max_per_node,
            own,
            self._total,
            self._reserved,
            self.used,
            self.elsewhere,
            planned,
            strict=True,
        ):
            free = total - used - elsewhere - coming
            # Each that it takes leaves less: with half of it, it has as much as is left.
            more = min(most - mine, (free - reserved - mine) // 2)
            left.append(max(more, 1 if not own.messages and free > 0 else 0))
        return Amount(*left)

    def resize(self, node_id: str, more_bytes: int) -> None:
        """A message of a node has become larger, or smaller if negative."""
        self._nodes[node_id].size_bytes += more_bytes
        self._used.size_bytes += more_bytes

    def add(self, node_id: str, size_bytes: int, messages: int = 1) -> None:
        """A node takes room, whether it may or not."""
        used = self._nodes.get(node_id)
        if used is None:
            used = self._nodes[node_id] = _Used()
        total = self._used
        used.messages += messages
        used.size_bytes += size_bytes
        total.messages += messages
        total.size_bytes += size_bytes

    def remove(self, node_id: str, size_bytes: int, messages: int = 1) -> None:
        """A node gives room back; never more than it has."""
        used = self._nodes.get(node_id)
        if used is None:
            return
        messages, size_bytes = min(messages, used.messages), min(size_bytes, used.size_bytes)
        for one in (used, self._used):
            one.messages -= messages
            one.size_bytes -= size_bytes
        if not used.messages:
            self._used.size_bytes -= used.size_bytes
            del self._nodes[node_id]

    def set(self, node_id: str, amount: Amount) -> None:
        """What a node has taken was counted anew."""
        used = self.of(node_id)
        self.remove(node_id, used.size_bytes, used.messages)
        if amount.messages:
            self.add(node_id, amount.size_bytes, amount.messages)

    def replace(self, amounts: Mapping[str, Amount]) -> None:
        """What all nodes have taken was counted anew."""
        self._nodes.clear()
        self._used = _Used()
        for node_id, amount in amounts.items():
            self.add(node_id, amount.size_bytes, amount.messages)
