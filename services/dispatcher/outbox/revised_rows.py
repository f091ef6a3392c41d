"""Rows that the outbox knows without asking the database, where other processes write to it too. Pure.

Every transaction that changes a node's rows raises the revision in the node's own row, which it has locked.
So what was written in one transaction still stands if the next one, with the lock, finds the node's row as it
was left. The whole row is compared: dispatchers of a release without revisions, which are there while a
rollout goes on, change its order, its owner or its quota use.
"""

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field

from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.records import NodeRow, ObjectRow, snapshot

# About 800 bytes each.
MOST_OBJECTS = 32_768


@dataclass(slots=True)
class _Known:
    """A node's objects as of a state of its own row, as far as they are known."""

    node: NodeRow  # never changed
    objects: dict[str, ObjectRow]  # without their bodies; never changed


@dataclass(slots=True)
class Transaction:
    """What one transaction knows and writes; `confirm` when it is durable. Implements `known_rows.Known`."""

    rows: "RevisedRows"
    _objects: dict[str, dict[str, ObjectRow]] = field(default_factory=dict)
    _found: dict[str, NodeRow] = field(default_factory=dict)
    _written: dict[str, NodeRow] = field(default_factory=dict)
    _ledger: Ledger | None = None

    def node(self, node_id: str) -> NodeRow | None:
        """Never known: the row must be read, since it has to be locked."""
        return None

    def locked(self, nodes: Iterable[NodeRow]) -> None:
        """These rows were read and stay as they are until the transaction ends."""
        for node in nodes:
            self._found[node.node_id] = copy(node)
            self._objects[node.node_id] = self.rows.objects_of(node)

    def object(self, where: tuple[str, str]) -> ObjectRow | None:
        """A copy of the row, without its body."""
        row = self._objects[where[0]].get(where[1]) if where[0] in self._objects else None
        return None if row is None else snapshot(row)

    def keep(self, ledger: Ledger) -> None:
        """What it has written."""
        self._ledger = ledger
        self._written = {node_id: copy(ledger.nodes[node_id]) for node_id in ledger.revised_nodes}

    def confirm(self) -> None:
        """It is durable."""
        if self._ledger is not None:
            self.rows.keep(self._ledger, self._found, self._written)


class RevisedRows:
    """Bounded; the node that was written longest ago is forgotten first."""

    def __init__(self, most_objects: int = MOST_OBJECTS) -> None:
        self._most_objects = most_objects
        self._nodes: dict[str, _Known] = {}
        self._count = 0

    def begin(self) -> Transaction:
        """A transaction starts."""
        return Transaction(self)

    def objects_of(self, node: NodeRow) -> dict[str, ObjectRow]:
        """What is known of the node's objects if its row is this one."""
        known = self._nodes.get(node.node_id)
        if known is None:
            return {}
        if known.node != node:
            self._forget(node.node_id)
            return {}
        return known.objects

    def keep(self, ledger: Ledger, found: Mapping[str, NodeRow], written: Mapping[str, NodeRow]) -> None:
        """What a transaction wrote that is durable; rows of nodes as it found them, and as it left them."""
        for node_id in ledger.wiped_nodes:
            self._forget(node_id)
        for node_id, node in written.items():
            if node_id in ledger.wiped_nodes:
                continue
            known = self._nodes.get(node_id)
            if known is None or known.node != found.get(node_id):
                # Somebody else wrote in between, or what came later was confirmed first.
                self._forget(node_id)
                known = _Known(node, {})
            known.node = node
            # What was written last is forgotten last.
            self._nodes.pop(node_id, None)
            self._nodes[node_id] = known
        for where in ledger.removed_objects:
            self._put(where, None)
        for where in ledger.changed_objects:
            self._put(where, ledger.objects[where[0]][where[1]])
        while self._count > self._most_objects:
            self._forget(next(iter(self._nodes)))

    def _put(self, where: tuple[str, str], row: ObjectRow | None) -> None:
        known = self._nodes.get(where[0])
        if known is None:
            return
        self._count -= known.objects.pop(where[1], None) is not None
        if row is not None:
            if row.body is not None:
                row = snapshot(row)
                row.body = None
            known.objects[where[1]] = row
            self._count += 1

    def _forget(self, node_id: str) -> None:
        known = self._nodes.pop(node_id, None)
        if known is not None:
            self._count -= len(known.objects)
