"""How much may be on record and pending, per node and in all. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass

from services.dispatcher.outbox.records import NodeRow, ObjectRow, RowState
from services.dispatcher.publication import Publication, Rejection

SETTLED = RowState.SETTLED
# What is pending for a node that never connected, and as much that has ended.
UNKNOWN_OBJECTS_PER_ROW = 2
_SETTINGS = {True: "--max-node-objects", False: "--unknown-node-most-rows"}


@dataclass(frozen=True, slots=True)
class Quotas:
    """Bounds of what may be pending and of objects on record, and what happens to nodes never seen before."""

    node_objects: int = 50_000
    node_rows: int = 20_000
    node_bytes: int = 64 * 1024 * 1024
    unknown_node_rows: int = 100
    unknown_node_bytes: int = 4 * 1024 * 1024
    unknown_node_seconds: float = 7 * 86_400.0
    # Of all nodes that never connected, beside what others have.
    unknown_rows: int = 200_000
    unknown_bytes: int = 819 * 1024 * 1024
    unknown_nodes: int = 10_000
    # Of a node's history; a node that never connected has a hundredth.
    history_rows: int = 30_000
    total_rows: int = 2_000_000
    total_bytes: int = 8 * 1024 * 1024 * 1024
    refuse_unknown_nodes: bool = False

    def objects_of(self, node: NodeRow) -> int:
        """How many objects the node may have on record."""
        if node.known:
            return self.node_objects
        return min(self.node_objects, UNKNOWN_OBJECTS_PER_ROW * self.unknown_node_rows)


@dataclass(slots=True)
class Totals:
    """Pending rows and bytes of all nodes, of those of them that never connected, and how many these are."""

    rows: int = 0
    bytes: int = 0
    unknown_rows: int = 0
    unknown_bytes: int = 0
    unknown_nodes: int = 0

    def __add__(self, other: "Totals") -> "Totals":
        return Totals(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    def __sub__(self, other: "Totals") -> "Totals":
        return Totals(*(getattr(self, name) - getattr(other, name) for name in self.__slots__))

    def count(self, node: NodeRow, rows: int, size_bytes: int) -> None:
        """More is pending for a node."""
        self.rows += rows
        self.bytes += size_bytes
        if not node.known:
            self.unknown_rows += rows
            self.unknown_bytes += size_bytes

    def became_known(self, node: NodeRow) -> None:
        """A node that never had has connected; what is pending for it counts as others' from now on."""
        self.unknown_rows -= node.pending_rows
        self.unknown_bytes -= node.pending_bytes
        self.unknown_nodes -= is_on_record(node)


def is_on_record(node: NodeRow) -> bool:
    """Whether it has connected or something was accepted for it: else its id may be a mistake."""
    return node.known or node.last_seq > 0


def most_history_rows(quotas: Quotas, node: NodeRow) -> int:
    """How many lines of history a node has at most, beside the acceptances of what is pending."""
    return quotas.history_rows if node.known else max(3, quotas.history_rows // 100)


def quota_fault(
    quotas: Quotas,
    totals: Totals,
    node: NodeRow,
    row: ObjectRow | None,
    others: Sequence[ObjectRow],
    publication: Publication,
) -> Rejection | None:
    """Which quota the publication would break; `row` is that of its object, if it is on record, and `others`
    end with it."""
    rows, grows = 1, publication.size_bytes
    if row is not None and row.state != SETTLED:
        rows, grows = 0, grows - row.size_bytes
    for other in others:
        if other.state != SETTLED:
            rows, grows = rows - 1, grows - other.size_bytes
    most_rows = quotas.node_rows if node.known else quotas.unknown_node_rows
    most_bytes = quotas.node_bytes if node.known else quotas.unknown_node_bytes
    kind = "node" if node.known else "never connected node"
    if rows > 0 and node.pending_rows >= most_rows:
        return Rejection("NODE_QUOTA_ROWS", "node_ids", f"{kind} has {node.pending_rows} messages pending")
    if grows > 0 and node.pending_bytes + grows > most_bytes:
        return Rejection("NODE_QUOTA_BYTES", "node_ids", f"{kind} has {node.pending_bytes} bytes pending")
    if (
        row is None
        and not publication.is_answer
        and node.objects >= (most_objects := quotas.objects_of(node))
    ):
        return Rejection(
            "NODE_QUOTA_OBJECTS",
            "node_ids",
            f"{kind} has {node.objects} objects on record, deleted ones of the last days included; "
            f"at most {most_objects}: delete what it needs no more, or raise {_SETTINGS[node.known]}",
        )
    if not node.known:
        return _unknown_fault(quotas, totals, node, rows, grows)
    # What nodes that never connected have takes no room of the others.
    all_rows, all_bytes = totals.rows - totals.unknown_rows, totals.bytes - totals.unknown_bytes
    if rows > 0 and all_rows >= quotas.total_rows:
        return Rejection("TOTAL_QUOTA_ROWS", "node_ids", f"{all_rows} messages are pending in all")
    if grows > 0 and all_bytes + grows > quotas.total_bytes:
        return Rejection("TOTAL_QUOTA_BYTES", "node_ids", f"{all_bytes} bytes are pending in all")
    return None


def _unknown_fault(quotas: Quotas, totals: Totals, node: NodeRow, rows: int, grows: int) -> Rejection | None:
    """Of all nodes that never connected."""
    who = "for nodes that never connected"
    if not is_on_record(node) and totals.unknown_nodes >= quotas.unknown_nodes:
        return Rejection(
            "UNKNOWN_QUOTA_NODES",
            "node_ids",
            f"messages wait for {totals.unknown_nodes} nodes that never connected; check the node's id",
        )
    if rows > 0 and totals.unknown_rows >= quotas.unknown_rows:
        return Rejection(
            "UNKNOWN_QUOTA_ROWS", "node_ids", f"{totals.unknown_rows} messages are pending {who}"
        )
    if grows > 0 and totals.unknown_bytes + grows > quotas.unknown_bytes:
        return Rejection("UNKNOWN_QUOTA_BYTES", "node_ids", f"{totals.unknown_bytes} bytes are pending {who}")
    return None
