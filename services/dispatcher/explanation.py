"""Where a message is and what it waits for, in one sentence. Pure."""

from cloudhub.v1 import dispatcher_pb2 as pb
from services.dispatcher.outbox.records import Event, EventKind, ObjectRow, RowState
from services.dispatcher.standing import Standing

Explained = tuple[pb.DeliveryState.ValueType, str]
"""The state of a message, and one sentence about it."""


def is_acknowledged(row: ObjectRow) -> bool:
    """Whether the node has acknowledged the row's current message, and that still counts (`ResyncNode`)."""
    return row.state == RowState.SETTLED and row.reason == "acknowledged" and row.acknowledged == row.version


def delivery_state(row: ObjectRow, standing: Standing | None) -> pb.DeliveryState.ValueType:
    """The state of a row's current message."""
    if row.state == RowState.PARKED:
        return pb.DELIVERY_STATE_PARKED
    if row.state == RowState.PENDING:
        in_flight = standing is not None and standing.in_flight
        return pb.DELIVERY_STATE_IN_FLIGHT if in_flight else pb.DELIVERY_STATE_PENDING
    return pb.DELIVERY_STATE_ACKNOWLEDGED if row.reason == "acknowledged" else pb.DELIVERY_STATE_ENDED


def explain_row(row: ObjectRow, standing: Standing | None, *, where: str = " to this dispatcher") -> str:
    """About the object's current message. `where` its node is not connected, if it has no standing."""
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
    if standing is None:
        return f"Pending: the node is not connected{where}; it is sent when the node comes back."
    if standing.in_flight:
        return (
            "In flight: sent over the present link; "
            f"{row.attempts} intervals without an acknowledgement so far."
        )
    if standing.doubtful_links:
        return (
            f"Pending: the edge ended {standing.doubtful_links} links in a row with a message unanswered, "
            "so messages go one at a time until it is known which one it was."
        )
    if standing.blocked_by:
        return (
            f"Pending: an earlier object of the same path ({standing.blocked_by}) has to be acknowledged "
            "first, since an edge deletes by path."
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
