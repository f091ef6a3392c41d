"""By which way a node's operations go to the store. Pure.

Each way keeps the order of what goes by it, two of them do not keep it between them: what wants another way
than what is under way waits until that has come back.
"""

from collections import deque
from dataclasses import dataclass, field
from typing import Generic, TypeVar

W = TypeVar("W")
T = TypeVar("T")


@dataclass(slots=True)
class _Node(Generic[W, T]):
    way: W
    under_way: int = 1
    held: deque[tuple[W, T]] = field(default_factory=deque)


class Ways(Generic[W, T]):
    """Only nodes of which something is under way are kept. Ways are compared by identity."""

    def __init__(self) -> None:
        self._nodes: dict[str, _Node[W, T]] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    def enter(self, node_id: str, way: W, item: T) -> bool:
        """True: the item goes this way now. False: `left` will tell when."""
        node = self._nodes.get(node_id)
        if node is None:
            self._nodes[node_id] = _Node(way)
        elif node.held or node.way is not way:
            node.held.append((way, item))
            return False
        else:
            node.under_way += 1
        return True

    def left(self, node_id: str) -> list[tuple[W, T]]:
        """One of the node's items came back: those that waited for it and go now, in order, all one way."""
        node = self._nodes[node_id]
        node.under_way -= 1
        released: list[tuple[W, T]] = []
        if node.under_way:
            return released
        if not node.held:
            del self._nodes[node_id]
            return released
        node.way = node.held[0][0]
        while node.held and node.held[0][0] is node.way:
            released.append(node.held.popleft())
        node.under_way = len(released)
        return released

    def turn(self, node_id: str, way: W) -> None:
        """All of the node's items that are under way go another way from here on."""
        self._nodes[node_id].way = way
