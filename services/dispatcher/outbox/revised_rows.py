"""Rows that the outbox knows without asking the database, where other processes write to it too. Pure.

Every transaction that changes a node's rows raises the revision in the node's own row, which it has locked.
So what was written in one transaction still stands if the next one, with the lock, finds the same revision.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.records import NodeRow, ObjectRow, snapshot

# About 800 bytes each.
MOST_OBJECTS = 32_768


@dataclass(slots=True)
class _Known:
    """A node's objects as of a revision, as far as they are known."""

    revision: int
    objects: dict[str, ObjectRow]  # without their bodies; never changed


@dataclass(slots=True)
class Transaction:
    """What one transaction knows and writes; `confirm` when it is durable. Implements `known_rows.Known`."""

    rows: "RevisedRows"
    _objects: dict[str, dict[str, ObjectRow]] = field(default_factory=dict)
    _ledger: Ledger | None = None

    def node(self, node_id: str) -> NodeRow | None:
        """Never known: the row must be read, since it has to be locked."""
        return None

    def locked(self, nodes: Iterable[NodeRow]) -> None:
        """These rows were read and stay as they are until the transaction ends."""
        for node in nodes:
            self._objects[node.node_id] = self.rows.objects_of(node)

    def object(self, where: tuple[str, str]) -> ObjectRow | None:
        """A copy of the row, without its body."""
        row = self._objects[where[0]].get(where[1]) if where[0] in self._objects else None
        return None if row is None else snapshot(row)

    def keep(self, ledger: Ledger) -> None:
        """What it has written."""
        self._ledger = ledger

    def confirm(self) -> None:
        """It is durable."""
        if self._ledger is not None:
            self.rows.keep(self._ledger)


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
        if known.revision != node.revision:
            self._forget(node.node_id)
            return {}
        return known.objects

    def keep(self, ledger: Ledger) -> None:
        """What a transaction wrote that is durable."""
        for node_id in ledger.wiped_nodes:
            self._forget(node_id)
        for node_id in ledger.revised_nodes:
            if node_id in ledger.wiped_nodes:
                continue
            revision = ledger.nodes[node_id].revision
            known = self._nodes.pop(node_id, None)
            if known is not None and known.revision != revision - 1:
                self._count -= len(known.objects)
                if known.revision >= revision:
                    continue  # a later transaction was confirmed first; what is known would be of both
                known = None
            self._nodes[node_id] = known or _Known(0, {})
            self._nodes[node_id].revision = revision
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
