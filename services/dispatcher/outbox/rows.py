"""Between rows of the tables and records."""

from collections.abc import Mapping, Sequence
from typing import Any

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox.records import Event, EventKind, NodeRow, ObjectRow, RowState

VERSION_DIGITS = 20


def version_text(version: int | None) -> str | None:
    """20 digits, so that text order is the integers' order."""
    return None if version is None else f"{version:020d}"


def version_number(text: str | None) -> int | None:
    """The integer of `version_text`. Raises ValueError for anything else a database may hold."""
    return None if text is None else int(text)


def object_row(row: Sequence[Any], message: Message | None = None) -> ObjectRow:
    """From the columns of `delivery` in the order of `sql.DELIVERY_COLUMNS`."""
    return ObjectRow(
        row[0],
        row[1],
        row[2],
        row[3],
        int(row[4]),
        version_number(row[5]),
        row[6],
        RowState(row[7]),
        row[8],
        row[9],
        version_number(row[10]),
        row[11],
        row[12],
        row[13],
        row[14],
        row[15],
        row[16],
        row[17],
        row[18],
        row[19],
        row[20],
        message,
    )


def object_values(row: ObjectRow) -> dict[str, Any]:
    """Every column but `message`."""
    return {
        "node_id": row.node_id,
        "object_key": row.key,
        "path": row.path,
        "uid": row.uid,
        "floor": version_text(row.floor),
        "acknowledged": version_text(row.acknowledged),
        "deleted": row.deleted,
        "state": int(row.state),
        "seq": row.seq,
        "message_id": row.message_id,
        "version": version_text(row.version),
        "operation": row.operation,
        "is_answer": row.is_answer,
        "priority": row.priority,
        "attempts": row.attempts,
        "reason": row.reason,
        "accepted_at_ms": row.accepted_at_ms,
        "changed_at_ms": row.changed_at_ms,
        "expires_at_ms": row.expires_at_ms,
        "size_bytes": row.size_bytes,
        "traceparent": row.traceparent,
    }


def node_row(row: Sequence[Any]) -> NodeRow:
    """From the columns of `node` in order."""
    return NodeRow(row[0], row[1], row[2], row[3], row[4], row[5], row[6])


def node_values(row: NodeRow) -> Mapping[str, Any]:
    """Every column of `node`."""
    return {
        "node_id": row.node_id,
        "last_seq": row.last_seq,
        "owner_epoch": row.owner_epoch,
        "pending_rows": row.pending_rows,
        "pending_bytes": row.pending_bytes,
        "known": row.known,
        "last_ack_ms": row.last_ack_ms,
    }


def event_of(row: Sequence[Any]) -> Event:
    """From (node_id, kind, at_ms, message_id, object_key, version, attempt, epoch, reason)."""
    return Event(
        row[0], EventKind(row[1]), row[2], row[3], row[4], version_number(row[5]), row[6], row[7], row[8]
    )


def event_values(event: Event, event_id: int) -> dict[str, Any]:
    """Every column of `delivery_event`."""
    return {
        "node_id": event.node_id,
        "event_id": event_id,
        "kind": int(event.kind),
        "at_ms": event.at_ms,
        "message_id": event.message_id,
        "object_key": event.key,
        "version": version_text(event.version),
        "attempt": event.attempt,
        "epoch": event.epoch,
        "reason": event.reason,
    }
