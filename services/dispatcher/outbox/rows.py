"""Between rows of the tables and records."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from services.dispatcher.outbox.records import Event, EventKind, NodeRow, ObjectRow, RowState
from services.runtime.errors import RowDamaged


@lru_cache(4096)  # a version is written several times within a moment
def version_text(version: int | None) -> str | None:
    """20 digits, so that text order is the integers' order."""
    return None if version is None else f"{version:020d}"


def version_number(text: str | None) -> int | None:
    """The integer of `version_text`. Raises ValueError for anything else a database may hold."""
    return None if text is None else int(text)


def object_row(row: Sequence[Any], body: bytes | None = None) -> ObjectRow:
    """From the columns of `delivery` in the order of `sql.DELIVERY_COLUMNS`. Raises RowDamaged."""
    try:
        return _object_row(row, body)
    except (ValueError, TypeError) as error:
        raise RowDamaged(str(row[0]), f"object {row[1]!r}: {error}") from error


def _object_row(row: Sequence[Any], body: bytes | None) -> ObjectRow:
    return ObjectRow(
        row[0],
        row[1],
        row[2],
        row[3],
        int(row[4]),
        version_number(row[5]),
        bool(row[6]),
        RowState(row[7]),
        row[8],
        row[9],
        version_number(row[10]),
        row[11],
        bool(row[12]),
        row[13],
        row[14],
        row[15],
        row[16],
        row[17],
        row[18],
        row[19],
        row[20],
        bool(row[21]),
        row[22],
        body,
    )


def object_values(row: ObjectRow) -> tuple[Any, ...]:
    """Every column of `delivery` but `message`, in order."""
    return (
        row.node_id,
        row.key,
        row.path,
        row.uid,
        version_text(row.floor),
        version_text(row.acknowledged),
        row.deleted,
        int(row.state),
        row.seq,
        row.message_id,
        version_text(row.version),
        row.operation,
        row.is_answer,
        row.priority,
        row.attempts,
        row.reason,
        row.accepted_at_ms,
        row.changed_at_ms,
        row.expires_at_ms,
        row.size_bytes,
        row.traceparent,
        row.own_id,
        row.type_meta,
    )


def cleared_values(row: ObjectRow) -> tuple[Any, ...]:
    """What changes when a message is over, in the order of `transaction._CLEARED`."""
    return (
        version_text(row.acknowledged),
        row.deleted,
        int(row.state),
        row.attempts,
        row.reason,
        row.changed_at_ms,
        row.expires_at_ms,
    )


def node_row(row: Sequence[Any], revision: int = 0) -> NodeRow:
    """From the columns of `node` in order; `revision` is read where it counts. Raises RowDamaged."""
    try:
        return NodeRow(
            row[0],
            int(row[1]),
            int(row[2]),
            int(row[3]),
            int(row[4]),
            bool(row[5]),
            int(row[6]),
            revision,
            int(row[8]),
            int(row[9]),
        )
    except (ValueError, TypeError) as error:
        raise RowDamaged(str(row[0]), str(error)) from error


def node_values(row: NodeRow) -> tuple[Any, ...]:
    """Every column of `node`, in order."""
    return (
        row.node_id,
        row.last_seq,
        row.owner_epoch,
        row.pending_rows,
        row.pending_bytes,
        row.known,
        row.last_ack_ms,
        row.revision,
        row.history_rows,
        row.objects,
    )


def event_of(row: Sequence[Any]) -> Event:
    """From (node_id, kind, at_ms, message_id, object_key, version, attempt, epoch, reason, sent_at_ms,
    accepted_at_ms, repeats, last_at_ms).

    Raises RowDamaged.
    """
    try:
        kind, version = EventKind(row[1]), version_number(row[5])
    except (ValueError, TypeError) as error:
        raise RowDamaged(str(row[0]), f"its history: {error}") from error
    return Event(row[0], kind, row[2], row[3], row[4], version, *row[6:13])


def event_values(event: Event, event_id: int) -> tuple[Any, ...]:
    """Every column of `delivery_event`, in order."""
    return (
        event.node_id,
        event_id,
        int(event.kind),
        event.at_ms,
        event.message_id,
        event.key,
        version_text(event.version),
        event.attempt,
        event.epoch,
        event.reason,
        event.sent_at_ms,
        event.accepted_at_ms,
        event.repeats,
        event.last_at_ms,
    )
