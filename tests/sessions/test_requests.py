"""Requests checked: `services.sessions.requests` and `services.runtime.names`."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1 import sessions_pb2 as pb
from services.runtime.errors import InvalidRequest
from services.runtime.names import check_instance_id, check_node_id, check_project_id
from services.sessions import requests
from services.sessions.lifecycle import LIVE, Reason, State
from services.sessions.limits import LimitsChange
from services.sessions.records import Ending, Filter, Ref, Transfer


def an_open(**changes: object) -> pb.OpenSession:
    values: dict[str, object] = {
        "node_id": "edge-1",
        "project_id": "p1",
        "connector_id": "c1",
        "link": 1,
        "transport": "quic",
        **changes,
    }
    return pb.OpenSession(**values)  # type: ignore[arg-type]


def opens(*entries: pb.OpenSession) -> pb.OpenSessionsRequest:
    return pb.OpenSessionsRequest(dispatcher_id="d1", sessions=entries)


def closes(**entry: object) -> pb.CloseSessionsRequest:
    return pb.CloseSessionsRequest(sessions=[pb.CloseSession(**entry)])  # type: ignore[arg-type]


BIG = 2**63


def moves(**changes: object) -> pb.TransferSessionsRequest:
    values: dict[str, object] = {"node_id": "edge-1", "epoch": 5, "connector_id": "c1", "link": 1}
    return pb.TransferSessionsRequest(sessions=[pb.TransferSession(**(values | changes))])  # type: ignore[arg-type]


FAULTS: list[tuple[str, Callable[[], object]]] = [
    ("dispatcher_id", lambda: requests.dispatcher_id("")),
    ("dispatcher_id", lambda: requests.dispatcher_id("a b")),
    ("sessions[1].node_id", lambda: requests.openings(opens(an_open(), an_open(node_id="Edge")))),
    ("sessions[0].project_id", lambda: requests.openings(opens(an_open(project_id="p/1")))),
    ("sessions[0].connector_id", lambda: requests.openings(opens(an_open(connector_id="")))),
    ("sessions[0].link", lambda: requests.openings(opens(an_open(link=BIG)))),
    ("sessions[0].transport", lambda: requests.openings(opens(an_open(transport="tcp")))),
    ("sessions[0].peer_address", lambda: requests.openings(opens(an_open(peer_address="x" * 254)))),
    ("sessions[0].peer_address", lambda: requests.openings(opens(an_open(peer_address="1.2.3.4\0")))),
    ("sessions", lambda: requests.openings(opens(*[an_open()] * 4097))),
    ("sessions[0].epoch", lambda: requests.refs([pb.SessionRef(node_id="a", epoch=0)])),
    ("sessions[0].node_id", lambda: requests.refs([pb.SessionRef(epoch=1)])),
    ("sessions[0].epoch", lambda: requests.endings(closes(node_id="a", epoch=BIG, reason=1))),
    ("sessions[0].reason", lambda: requests.endings(closes(node_id="a", epoch=1))),
    ("sessions[0].reason", lambda: requests.endings(closes(node_id="a", epoch=1, reason=99))),
    ("counter", lambda: requests.renewal(pb.RenewLeaseRequest(dispatcher_id="d1"))),
    ("name", lambda: requests.renewal(pb.RenewLeaseRequest(dispatcher_id="d1", counter=1, name="x" * 999))),
    ("node_ids[1]", lambda: requests.node_ids(pb.LocateNodesRequest(node_ids=["a", "-"]))),
    ("event_ids[0]", lambda: requests.event_ids(pb.AcknowledgeEventsRequest(event_ids=["x" * 37]))),
    ("event_ids[0]", lambda: requests.event_ids(pb.AcknowledgeEventsRequest(event_ids=["\0"]))),
    ("name", lambda: requests.renewal(pb.RenewLeaseRequest(dispatcher_id="d1", counter=1, name="\0"))),
    ("address", lambda: requests.renewal(pb.RenewLeaseRequest(dispatcher_id="d1", counter=1, address="\n"))),
    ("node_id_prefix", lambda: requests.prefix("edge_")),
    ("states", lambda: requests.session_filter(pb.ListSessionsRequest(states=[0]))),  # type: ignore[list-item]
    ("project_id", lambda: requests.session_filter(pb.ListSessionsRequest(project_id="p 1"))),
    ("sessions[0].node_id", lambda: requests.transfers(moves(node_id="A"))),
    ("sessions[0].epoch", lambda: requests.transfers(moves(epoch=0))),
    ("sessions[0].epoch", lambda: requests.transfers(moves(epoch=BIG))),
    ("sessions[0].connector_id", lambda: requests.transfers(moves(connector_id=""))),
    ("sessions[0].link", lambda: requests.transfers(moves(link=BIG))),
    (
        "sessions",
        lambda: requests.transfers(pb.TransferSessionsRequest(sessions=[pb.TransferSession()] * 4097)),
    ),
    ("total", lambda: requests.limits_change(pb.SetLimitsRequest(total=BIG))),
    ("projects['p 1']", lambda: requests.limits_change(pb.SetLimitsRequest(projects={"p 1": 1}))),
    ("projects['p1']", lambda: requests.limits_change(pb.SetLimitsRequest(projects={"p1": BIG}))),
]


@pytest.mark.parametrize(("field", "parse"), FAULTS)
def test_a_fault_names_its_field_and_what_would_be_right(field: str, parse: Callable[[], object]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse()
    assert caught.value.field == field
    assert "should" in caught.value.detail


def test_a_right_request_becomes_records() -> None:
    entry = requests.openings(opens(an_open(peer_address="[::1]:5", traceparent="00-x")))[0]
    assert (entry.node_id, entry.project_id, entry.connector_id, entry.link) == ("edge-1", "p1", "c1", 1)
    assert (entry.transport, entry.peer_address, entry.traceparent) == ("quic", "[::1]:5", "00-x")
    assert requests.refs([pb.SessionRef(node_id="a", epoch=3)]) == [Ref("a", 3)]
    assert requests.endings(closes(node_id="a", epoch=3, reason=4)) == [
        Ending("a", 3, Reason.KEEPALIVE_TIMEOUT)
    ]
    assert requests.transfers(moves()) == [Transfer("edge-1", 5, "c1", 1)]


def test_an_empty_filter_means_the_live_sessions() -> None:
    assert requests.session_filter(pb.ListSessionsRequest()) == Filter(states=LIVE)
    asked = pb.ListSessionsRequest(project_id="p1", states=[pb.SESSION_STATE_CLOSED])
    assert requests.session_filter(asked) == Filter(project_id="p1", states=frozenset({State.CLOSED}))


def test_a_limit_that_is_absent_is_kept_and_one_that_is_zero_is_set() -> None:
    change = requests.limits_change(pb.SetLimitsRequest(total=0, projects={"p1": 3}))
    assert change == LimitsChange(None, None, 0, {"p1": 3})


@pytest.mark.parametrize("name", ["a", "edge-1", "a.b-c.d1", "0", "x" * 253])
def test_kubernetes_node_names_are_node_ids(name: str) -> None:
    assert check_node_id(name) is None


@pytest.mark.parametrize(
    "name", ["", "A", "edge_1", "-a", "a-", ".a", "a.", "a..b", "a.-b", "ä", "a b", "a\n", "x" * 254]
)
def test_other_texts_are_no_node_ids(name: str) -> None:
    """C16: unknown node id form."""
    complaint = check_node_id(name)
    assert complaint
    assert complaint.startswith("should be a node id")


@given(st.text(max_size=300))
def test_no_text_breaks_the_checks(text: str) -> None:
    for check in (check_node_id, check_project_id, check_instance_id):
        complaint = check(text)
        assert complaint is None or len(complaint) < 1000


def test_project_and_instance_ids() -> None:
    assert check_project_id("e632aba927ea4ac2b575ec1603d56f10") is None
    assert check_project_id("x" * 64)
    assert check_instance_id("hub-0/7f3a:1") is None
    assert check_instance_id("tab\there")
