"""What people see: ages, states, limits, and tables that a pipe gets whole."""

from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cloudhub.v1.dispatcher_pb2 import (
    DELIVERY_STATE_ACKNOWLEDGED,
    DELIVERY_STATE_PARKED,
    DeliveryEvent,
    ExplainDeliveryResponse,
    NodeDelivery,
    ObjectDelivery,
    ObjectOnNode,
)
from cloudhub.v1.link_pb2 import CLOSE_REASON_KEEPALIVE_TIMEOUT
from cloudhub.v1.sessions_pb2 import (
    SESSION_STATE_ACTIVE,
    SESSION_STATE_CLOSED,
    GetLimitsResponse,
    Limits,
    Session,
)
from ctl.output import table_text
from ctl.tables import (
    age,
    event_rows,
    explanation_lines,
    has_version,
    holder_rows,
    limit_rows,
    newest_version,
    node_rows,
    note_lines,
    note_rows,
    session_rows,
)

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)


def ago(**how_long: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(NOW - timedelta(**how_long))
    return stamp


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-3.0, "0 s"),
        (0.04, "0 s"),
        (0.4, "0.4 s"),
        (119.0, "119 s"),
        (120.0, "2 min"),
        (7_199.0, "119 min"),
        (7_200.0, "2 h"),
        (172_800.0, "2 d"),
    ],
)
def test_an_age_is_told_in_the_largest_unit_that_fits_twice(seconds: float, told: str) -> None:
    assert age(seconds) == told


def test_a_node_without_a_session_is_away() -> None:
    nodes = [
        NodeDelivery(node_id="edge-1", pending=2, in_flight=1, last_ack=ago(seconds=5)),
        NodeDelivery(node_id="edge-2", pending=1, parked=1, oldest_pending=ago(hours=3)),
    ]

    assert node_rows(nodes, {"edge-1": "active"}, NOW) == [
        ("edge-1", "active", "2", "1", "0", "", "5 s ago"),
        ("edge-2", "away", "1", "0", "1", "3 h ago", ""),
    ]


def test_what_is_noted_of_nodes_fits_a_terminal() -> None:
    """C47: nothing is left out; on a pipe each has a line."""
    why = "superseded 5 times in 60 s: two agents have the certificate of one node"
    nodes = [
        NodeDelivery(node_id="edge-1", last_note=f"flapping: {why}"),
        NodeDelivery(node_id="edge-2"),
        NodeDelivery(node_id="edge-3", last_note="version_too_large: 2^63"),
    ]

    assert note_lines(nodes, None) == [f"edge-1: flapping: {why}", "edge-3: version too large: 2^63"]
    lines = note_lines(nodes, 80)
    assert max(map(len, lines)) <= 80
    assert " ".join(line.strip() for line in lines[:-1]) == f"edge-1: flapping: {why}"
    assert lines[-1] == "edge-3: version too large: 2^63"


def test_a_note_is_told_with_how_often_and_when_last() -> None:
    often = DeliveryEvent(reason="flapping: x", times=3, at=ago(hours=3), last_at=ago(seconds=5))
    once = DeliveryEvent(reason="returned: y", at=ago(hours=3))

    assert note_rows([often, once], NOW) == [("5 s ago", "3", "flapping: x"), ("3 h ago", "1", "returned: y")]


def test_a_closed_session_says_why_and_since_when_it_is_closed() -> None:
    closed = Session(
        node_id="edge-1",
        state=SESSION_STATE_CLOSED,
        close_reason=CLOSE_REASON_KEEPALIVE_TIMEOUT,
        connector_id="c1",
        opened_at=ago(hours=9),
        closed_at=ago(minutes=5),
    )
    live = Session(node_id="edge-2", state=SESSION_STATE_ACTIVE, connector_id="c2", opened_at=ago(hours=9))

    rows = session_rows([closed, live], {"c1": "connector-1"}, NOW)

    assert rows[0][:4] == ("edge-1", "closed (keepalive timeout)", "5 min ago", "connector-1")
    assert rows[1][:4] == ("edge-2", "active", "9 h ago", "c2")


def test_limits_name_each_exception_and_who_counts() -> None:
    answer = GetLimitsResponse(
        limits=Limits(per_connector=10, projects={"pilot": 5}),
        nodes=3,
        nodes_by_connector={"c1": 3},
        nodes_by_project={"other": 3},
    )

    assert limit_rows(answer, {"c1": "connector-1"}) == [
        ("all nodes", "unlimited", "3"),
        ("each connector", "10", ""),
        ("  connector-1", "", "3"),
        ("each project", "unlimited", ""),
        ("  other", "", "3"),
        ("  pilot", "5", "0"),
    ]


def test_an_explanation_begins_with_its_sentence_and_leaves_out_what_is_not_known() -> None:
    answer = ExplainDeliveryResponse(
        node_id="edge-1",
        message_id="m1",
        explanation="It is on its way.",
        object=ObjectDelivery(object_key="k", resource="k", operation="delete", floor="4"),
    )

    lines = explanation_lines(answer, NOW)

    assert lines[0] == "It is on its way."
    assert [line.split() for line in lines[1:]] == [
        ["node", "edge-1"],
        ["message", "m1"],
        ["object", "k"],
        ["resource", "k"],
        ["operation", "delete"],
        ["version", "none"],
        ["floor", "4"],
        ["acknowledged", "none"],
        ["accepted"],
    ]


def test_who_has_the_newest_version_of_an_object_is_told() -> None:
    """A node that was resynced has nothing, whatever it acknowledged once."""
    nodes = [
        ObjectOnNode(
            node_id="edge-1",
            object=ObjectDelivery(
                object_key="u",
                floor="9",
                version="9",
                acknowledged_version="9",
                acknowledged_at=ago(minutes=3),
                state=DELIVERY_STATE_ACKNOWLEDGED,
            ),
        ),
        ObjectOnNode(
            node_id="edge-2",
            object=ObjectDelivery(
                object_key="u", floor="10", version="10", state=DELIVERY_STATE_PARKED, deleted=True
            ),
        ),
        ObjectOnNode(node_id="edge-3"),
    ]

    newest = newest_version(nodes)

    assert newest == 10  # as numbers, not as text
    assert [has_version(one, newest) for one in nodes] == [False, False, False]
    assert [has_version(one, 9) for one in nodes] == [True, False, False]
    assert holder_rows(nodes, NOW) == [
        ("edge-1", "9", "3 min ago", "9", "acknowledged", "u"),
        ("edge-2", "nothing", "", "10", "parked (deleted)", "u"),
        ("edge-3", "nothing", "", "", "never published", ""),
    ]
    assert newest_version(nodes[2:]) is None


def test_a_pipe_gets_whole_lines_without_colours() -> None:
    rows = [("edge-1", "x" * 300, "parked")]

    plain = table_text(("NODE", "WHY", "STATE"), rows, width=10_000, tty=False)
    coloured = table_text(("NODE", "WHY", "STATE"), rows, width=80, tty=True)

    assert plain.splitlines()[1].split() == ["edge-1", "x" * 300, "parked"]
    assert "\x1b" not in plain
    assert "\x1b" in coloured
    assert coloured.count("\n") > 4


def test_what_happened_again_and_again_is_told_with_how_often() -> None:
    """C46: the row stands for all of them."""
    once, often = (
        DeliveryEvent(at=ago(hours=2), kind="sent", attempt=1, epoch=7),
        DeliveryEvent(at=ago(hours=1), kind="sent", attempt=1, epoch=8, times=3200, last_at=ago(minutes=1)),
    )
    assert [row[1] for row in event_rows([once, often])] == [
        "sent",
        "sent \N{MULTIPLICATION SIGN}3200 until 2026-11-24T11:59:00.000Z",
    ]
