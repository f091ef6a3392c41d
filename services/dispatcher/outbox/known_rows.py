"""Rows that the outbox knows without asking the database, where no other process writes to it. Pure.

A message is accepted and soon after settled: the second transaction needs the row that the first one wrote.
What is known is what the last transactions wrote; it holds only if their commits are known to have gone
through, so each one is announced (`begin`) and confirmed, and whatever is unconfirmed makes all of it void.
"""

from collections.abc import Iterable
from typing import Protocol

from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.records import NodeRow, ObjectRow, snapshot

MOST_NODES = 16_384
# About 800 bytes each.
MOST_OBJECTS = 32_768


class Known(Protocol):
    """What a transaction knows without asking, and tells of what it wrote."""

    def node(self, node_id: str) -> NodeRow | None:
        """The node's row; the caller may change it, and then must `keep` it."""
        ...

    def locked(self, nodes: Iterable[NodeRow]) -> None:
        """Rows of nodes that were read, and locked where other processes write."""
        ...

    def object(self, where: tuple[str, str]) -> ObjectRow | None:
        """A copy of the row, without its body. Its node is known or was `locked`."""
        ...

    def keep(self, ledger: Ledger) -> None:
        """What the transaction has written."""
        ...


class KnownRows:
    """Bounded; what was written longest ago is forgotten first.

    `begin`, `take` and `keep` belong to the one thread that runs the transactions.
    """

    def __init__(self, most_nodes: int = MOST_NODES, most_objects: int = MOST_OBJECTS) -> None:
        self._most_nodes = most_nodes
        self._most_objects = most_objects
        self._nodes: dict[str, NodeRow] = {}
        self._objects: dict[tuple[str, str], ObjectRow] = {}  # without their bodies
        self._begun = 0
        self._confirmed = 0

    def begin(self) -> int:
        """A transaction starts; its number, for `confirm`."""
        if self._confirmed != self._begun:
            self.forget()
        self._begun += 1
        return self._begun

    def confirm(self, number: int) -> None:
        """The transaction is durable."""
        self._confirmed = max(self._confirmed, number)

    def forget(self) -> None:
        """Nothing is known: the rows are changed by something that does not tell what it changes."""
        self._nodes.clear()
        self._objects.clear()

    def node(self, node_id: str) -> NodeRow | None:
        """The node's row; the caller may change it, and then must `keep` it."""
        return self._nodes.get(node_id)

    def locked(self, nodes: Iterable[NodeRow]) -> None:
        """Nobody else writes, so their rows say nothing new."""

    def object(self, where: tuple[str, str]) -> ObjectRow | None:
        """A copy of the row, without its body."""
        row = self._objects.get(where)
        return None if row is None else snapshot(row)

    def keep(self, ledger: Ledger) -> None:
        """What a transaction has written."""
        if ledger.wiped_nodes:
            self.forget()  # rare, and what is known of the node's objects is not kept by node
        for node_id in ledger.changed_nodes:
            self._nodes.pop(node_id, None)
            self._nodes[node_id] = ledger.nodes[node_id]
        objects = self._objects
        for where in ledger.removed_objects:
            objects.pop(where, None)
        for where in ledger.changed_objects:
            objects.pop(where, None)
            objects[where] = kept = snapshot(ledger.objects[where[0]][where[1]])
            kept.body = None
        while len(self._nodes) > self._most_nodes:
            del self._nodes[next(iter(self._nodes))]
        while len(objects) > self._most_objects:
            del objects[next(iter(objects))]
