"""Where a message is and what it waits for, in one sentence. Pure."""

from cloudhub.v1 import dispatcher_pb2 as pb
from services.dispatcher.entry import Entry, EntryState
from services.dispatcher.outbox.records import Event, EventKind, ObjectRow, RowState

Explained = tuple[pb.DeliveryState.ValueType, str]
"""The state of a message, and one sentence about it."""


def is_acknowledged(row: ObjectRow) -> bool:
    """Whether the node has acknowledged the row's current message, and that still counts (`ResyncNode`)."""
    return row.state == RowState.SETTLED and row.reason == "acknowledged" and row.acknowledged == row.version


def delivery_state(row: ObjectRow, present: EntryState | None) -> pb.DeliveryState.ValueType:
    """The state of a row's current message; `present` is its state in a live session."""
    if row.state == RowState.PARKED:
        return pb.DELIVERY_STATE_PARKED
    if row.state == RowState.PENDING:
        return pb.DELIVERY_STATE_IN_FLIGHT if present == EntryState.IN_FLIGHT else pb.DELIVERY_STATE_PENDING
    return pb.DELIVERY_STATE_ACKNOWLEDGED if row.reason == "acknowledged" else pb.DELIVERY_STATE_ENDED


def explain_row(
    row: ObjectRow,
    present: EntryState | None,
    connected: bool,
    blocked_by: Entry | None,
    doubtful_links: int = 0,
) -> str:
    """About the object's current message. `doubtful_links` says after how many links that the edge ended its
    messages go one at a time."""
    if row.state == RowState.SETTLED:
        if row.reason == "acknowledged":
            return "The node acknowledged it; nothing newer is pending."
        if row.is_replaced:
            return f"It was {row.reason}: an edge has one object per path. A newer version takes it back."
        return f"It ended without an acknowledgement: {row.reason or 'unknown'}."
    if row.state == RowState.PARKED:
        return (
            f"Parked: {row.reason}. It waits for a newer version, an equal publish, Redeliver or its expiry."
        )
    if not connected:
        return "Pending: the node is not connected to this dispatcher; it is sent when the node comes back."
    if present == EntryState.IN_FLIGHT:
        return (
            "In flight: sent over the present link; "
            f"{row.attempts} intervals without an acknowledgement so far."
        )
    if doubtful_links:
        return (
            f"Pending: the edge ended {doubtful_links} links in a row with a message unanswered, "
            "so messages go one at a time until it is known which one it was."
        )
    if blocked_by is not None:
        return (
            f"Pending: an earlier object of the same path ({blocked_by.key}) has to be acknowledged first, "
            "since an edge deletes by path."
        )
    return "Pending: the node is connected; it waits for its turn in the node's window."


def explain_events(events: list[Event]) -> Explained:
    """About a message that is no longer its object's current one, or of NO-ACK kind."""
    if any(event.kind == EventKind.ACKNOWLEDGED for event in events):
        return pb.DELIVERY_STATE_ACKNOWLEDGED, "The node acknowledged it; a newer version followed."
    for event in reversed(events):
        if event.kind == EventKind.ENDED:
            return pb.DELIVERY_STATE_ENDED, f"It ended without an acknowledgement: {event.reason}."
        if event.kind == EventKind.REJECTED:
            return pb.DELIVERY_STATE_ENDED, f"The publish was turned down: {event.reason}."
    return pb.DELIVERY_STATE_UNSPECIFIED, "Nothing more is known of it."


def event_kind_name(kind: EventKind) -> str:
    """The name an operator sees."""
    return kind.name.lower()
