"""Where a message is, in one sentence: `services.dispatcher.explanation`."""

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from services.dispatcher.explanation import (
    delivery_state,
    event_kind_name,
    explain_events,
    explain_row,
)
from services.dispatcher.outbox.records import Event, EventKind, ObjectRow, RowState
from services.dispatcher.standing import Standing

HERE = Standing(epoch=1)
SENT = Standing(epoch=1, in_flight=True)


def row(
    state: RowState = RowState.PENDING, reason: str = "", attempts: int = 0, deleted: bool = False
) -> ObjectRow:
    return ObjectRow("edge-1", "u1", state=state, reason=reason, attempts=attempts, deleted=deleted)


@pytest.mark.parametrize(
    ("what", "standing", "expected"),
    [
        (row(RowState.PARKED), None, pb.DELIVERY_STATE_PARKED),
        (row(RowState.PARKED), SENT, pb.DELIVERY_STATE_PARKED),
        (row(), None, pb.DELIVERY_STATE_PENDING),
        (row(), HERE, pb.DELIVERY_STATE_PENDING),
        (row(), SENT, pb.DELIVERY_STATE_IN_FLIGHT),
        (row(RowState.SETTLED, "acknowledged"), None, pb.DELIVERY_STATE_ACKNOWLEDGED),
        (row(RowState.SETTLED, "expired"), None, pb.DELIVERY_STATE_ENDED),
        (row(RowState.SETTLED), None, pb.DELIVERY_STATE_ENDED),
    ],
)
def test_the_state_joins_row_and_session(
    what: ObjectRow, standing: Standing | None, expected: pb.DeliveryState.ValueType
) -> None:
    assert delivery_state(what, standing) == expected


@pytest.mark.parametrize(
    ("what", "standing", "words"),
    [
        (row(RowState.SETTLED, "acknowledged"), HERE, ["acknowledged it", "nothing newer"]),
        (row(RowState.SETTLED, "expired"), HERE, ["without an acknowledgement", "expired"]),
        (row(RowState.SETTLED), HERE, ["unknown"]),
        (
            *(row(RowState.SETTLED, "replaced at its path by u2 version 6", deleted=True), HERE),
            ["replaced at its path by u2 version 6", "one object per path"],
        ),
        (row(RowState.PARKED, "no space"), None, ["Parked: no space", "Redeliver"]),
        (row(), None, ["not connected to this dispatcher"]),
        (row(attempts=3), SENT, ["In flight", "3 intervals"]),
        (row(), Standing(1, blocked_by="u0"), ["earlier object", "(u0)"]),
        (row(), Standing(1, doubtful_links=3), ["ended 3 links in a row", "one at a time"]),
        (row(), HERE, ["waits for its turn"]),
    ],
)
def test_a_row_is_explained_in_a_sentence(
    what: ObjectRow, standing: Standing | None, words: list[str]
) -> None:
    text = explain_row(what, standing)
    assert all(word in text for word in words), text
    assert text.endswith(".")


def test_a_node_that_is_away_is_so_wherever_one_looked() -> None:
    assert "not connected anywhere;" in explain_row(row(), None, where=" anywhere")


def event(kind: EventKind, reason: str = "") -> Event:
    return Event("edge-1", kind, 1, "m1", reason=reason)


@pytest.mark.parametrize(
    ("events", "state", "words"),
    [
        ([event(EventKind.ACCEPTED), event(EventKind.ACKNOWLEDGED)], pb.DELIVERY_STATE_ACKNOWLEDGED, "newer"),
        (
            [event(EventKind.SENT), event(EventKind.ENDED, "superseded")],
            pb.DELIVERY_STATE_ENDED,
            "superseded",
        ),
        ([event(EventKind.REJECTED, "BELOW_FLOOR")], pb.DELIVERY_STATE_ENDED, "turned down: BELOW_FLOOR"),
        (
            [event(EventKind.ENDED, "superseded"), event(EventKind.ACKNOWLEDGED), event(EventKind.SENT)],
            pb.DELIVERY_STATE_ACKNOWLEDGED,
            "acknowledged",
        ),
        (
            [event(EventKind.ACKNOWLEDGED), event(EventKind.ENDED, "replaced at its path by u2 version 6")],
            pb.DELIVERY_STATE_ACKNOWLEDGED,
            "acknowledged",
        ),
        ([event(EventKind.SENT)], pb.DELIVERY_STATE_UNSPECIFIED, "Nothing more"),
        ([], pb.DELIVERY_STATE_UNSPECIFIED, "Nothing more"),
    ],
)
def test_a_former_message_is_explained_by_its_last_event(
    events: list[Event], state: pb.DeliveryState.ValueType, words: str
) -> None:
    found, text = explain_events(events)
    assert found == state
    assert words in text


def test_operators_see_small_letters() -> None:
    assert event_kind_name(EventKind.UNACKNOWLEDGED) == "unacknowledged"
