"""How much may be pending, per node and in all. Pure."""

from dataclasses import dataclass

from services.dispatcher.outbox.records import NodeRow, ObjectRow, RowState
from services.dispatcher.publication import Publication, Rejection

SETTLED = RowState.SETTLED


@dataclass(frozen=True, slots=True)
class Quotas:
    """Bounds of what may be pending, and what happens to nodes never seen before."""

    node_rows: int = 20_000
    node_bytes: int = 64 * 1024 * 1024
    unknown_node_rows: int = 100
    unknown_node_bytes: int = 4 * 1024 * 1024
    unknown_node_seconds: float = 7 * 86_400.0
    total_rows: int = 2_000_000
    total_bytes: int = 8 * 1024 * 1024 * 1024
    refuse_unknown_nodes: bool = False


@dataclass(slots=True)
class Totals:
    """Pending rows and bytes of all nodes."""

    rows: int = 0
    bytes: int = 0


def quota_fault(
    quotas: Quotas, totals: Totals, node: NodeRow, row: ObjectRow | None, publication: Publication
) -> Rejection | None:
    """Which quota the publication would break; `row` is what it replaces."""
    was_pending = row is not None and row.state != SETTLED
    rows = 0 if was_pending else 1
    grows = publication.size_bytes - (row.size_bytes if row is not None and was_pending else 0)
    most_rows = quotas.node_rows if node.known else quotas.unknown_node_rows
    most_bytes = quotas.node_bytes if node.known else quotas.unknown_node_bytes
    kind = "node" if node.known else "never connected node"
    if rows and node.pending_rows >= most_rows:
        return Rejection("NODE_QUOTA_ROWS", "node_ids", f"{kind} has {node.pending_rows} messages pending")
    if grows > 0 and node.pending_bytes + grows > most_bytes:
        return Rejection("NODE_QUOTA_BYTES", "node_ids", f"{kind} has {node.pending_bytes} bytes pending")
    if rows and totals.rows >= quotas.total_rows:
        return Rejection("TOTAL_QUOTA_ROWS", "node_ids", f"{totals.rows} messages are pending in all")
    if grows > 0 and totals.bytes + grows > quotas.total_bytes:
        return Rejection("TOTAL_QUOTA_BYTES", "node_ids", f"{totals.bytes} bytes are pending in all")
    return None
