"""Where upstream messages go (docs/protocol.md)."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.answers import answer
from services.dispatcher.upstream.merging import merge_key
from services.dispatcher.upstream.routing import (
    Acknowledgement,
    CaRequest,
    DurableUpload,
    Keepalive,
    NegativeAcknowledgement,
    Noise,
    Route,
    ToModule,
    answer_route,
    classify,
    is_receipt,
    refusal_text,
)

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.mark.parametrize(
    ("message", "route"),
    [
        (Message(id="1", source="websocket", group="resource", operation="keepalive"), Keepalive()),
        (Message(id="1", operation="response", parent_id="m"), Acknowledgement("m")),
        (Message(operation="response", parent_id="m"), Acknowledgement("m")),
        (
            Message(id="1", operation="response", parent_id="m", source="twin", resource="k8s/ca.crt"),
            Acknowledgement("m"),
        ),
        (
            Message(id="1", operation="error", parent_id="m", content=b'"disk full"'),
            NegativeAcknowledgement("m", "disk full"),
        ),
        (Message(id="1", operation="upload", group="user", source="twin"), DurableUpload("router")),
        (Message(id="1", operation="upload", group="resource"), ToModule("edgecontroller")),
        (Message(id="1", operation="upgrade", source="twin"), ToModule("taskmanager")),
        (Message(id="1", operation="prepull", resource="k8s/ca.crt"), ToModule("taskmanager")),
        (Message(id="1", operation="UpdateNodeActionStatus"), ToModule("taskmanager")),
        (Message(id="1", operation="query", resource="k8s/ca.crt", source="metaserver"), CaRequest()),
        (Message(id="1", operation="query", source="metaserver"), ToModule("dynamiccontroller")),
        (
            Message(id="1", operation="get", source="twin", resource="membership/detail"),
            ToModule("devicecontroller"),
        ),
        (Message(id="1", operation="query", source="metamanager"), ToModule("edgecontroller")),
        (Message(id="1", operation="never-heard-of"), ToModule("edgecontroller")),
    ],
)
def test_each_rule_of_the_protocol_page_applies_in_its_order(message: Message, route: Route) -> None:
    assert classify(message) == route


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Message(content=b"null"), "empty_route"),
        (Message(id="1", timestamp_ms=1, content=b"null"), "empty_route"),
        (Message(operation="update", resource="default/podstatus"), "missing_id"),
        (Message(id="x" * 257, operation="update"), "malformed_id"),
        (Message(id="a\x00b", operation="upload", group="user"), "malformed_id"),
        (Message(id="1", operation="response", content=b'"OK"'), "missing_parent"),
        (Message(id="1", operation="error"), "missing_parent"),
        (Message(id="1", operation="connected", source="cloudhub"), "forged_event"),
        (Message(id="1", operation="disconnected", source="cloudhub"), "forged_event"),
    ],
)
def test_noise_is_told_apart_with_a_reason(message: Message, reason: str) -> None:
    """C29: what nobody can handle gets a reason of its own."""
    assert classify(message) == Noise(reason)


@given(
    st.builds(
        Message,
        id=st.text(max_size=5),
        parent_id=st.text(max_size=3),
        source=st.sampled_from(["", "twin", "metaserver", "cloudhub", "websocket"]) | st.text(),
        group=st.sampled_from(["", "user", "resource"]),
        operation=st.sampled_from(["", "response", "error", "upload", "keepalive", "update"]) | st.text(),
        resource=st.text(),
        content=st.binary(),
        sync=st.booleans(),
    )
)
def test_any_message_has_exactly_one_route(message: Message) -> None:
    """C29: wrong types, binary and nonsense never raise."""
    before = message.SerializeToString(deterministic=True)
    assert classify(message) == classify(message)
    assert message.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'"no space left"', "no space left"),
        (b' "\\u00e9" ', "é"),
        (b'{"code": 5}', '{"code": 5}'),
        (b'"unfinished', '"unfinished'),
        (b"", ""),
        (b"\xff\xfe", "\ufffd\ufffd"),
        (b'"\\ud800"', "?"),
        (b'"disk \\u0000 full"', "disk \ufffd full"),
        (b"\0", "\ufffd"),
        (b'"' + b"x" * 5000 + b'"', "x" * 1024),
        (b"[" * 100_000, "[" * 1024),
    ],
)
def test_a_refusal_is_text_whatever_the_content(content: bytes, text: str) -> None:
    """C21, C29: the edge's error text is decoded, bounded and always valid text."""
    assert refusal_text(content) == text


@pytest.mark.parametrize(
    ("operation", "resource", "sync", "mergeable"),
    [
        ("update", "default/nodestatus/edge-1", False, True),
        ("update", "default/podstatus/p1", False, True),
        ("update", "default/podstatus", False, False),
        ("update", "default/podstatus/", False, False),
        ("update", "default/podstatus/p1", True, False),
        ("insert", "default/podstatus/p1", False, False),
        ("patch", "default/podpatch/p1", False, False),
        ("update", "default/podpatch/p1", False, False),
        ("update", "default/podlist/p1", False, False),
        ("update", "device/d1/twin/edge_updated", False, False),
        ("update", "kube-node-lease/lease/edge-1", False, False),
        ("update", "null/certificatesigningrequest/c", False, False),
        ("update", "", False, False),
    ],
)
def test_only_updates_of_named_resources_may_be_merged(
    operation: str, resource: str, sync: bool, mergeable: bool
) -> None:
    """C30: lists, patches and synchronous requests never are."""
    message = Message(operation=operation, resource=resource, sync=sync)
    assert merge_key(message) == (resource if mergeable else "")


@pytest.mark.parametrize(
    ("group", "expected"),
    [("meta", "resource"), ("dynamiccontroller", "resource"), ("", "resource"), ("user", "user")],
)
def test_an_answer_is_of_a_group_that_edges_take(group: str, expected: str) -> None:
    message = answer(
        Message(id="q", group=group), resource="r", message_id="a", at_ms=7, content="", operation="error"
    )
    assert message.group == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [(b'"OK"', True), (b' "OK"\n', True), (b"null", True), (b"", True), (b'"ok"', False), (b"{}", False)],
)
def test_a_response_that_says_no_more_than_ok_is_an_acknowledgement(content: bytes, expected: bool) -> None:
    assert is_receipt(content) is expected


@pytest.mark.parametrize(
    ("message", "route"),
    [
        (Message(id="1", operation="response", source="edged", parent_id="v"), ToModule("edgecontroller")),
        (Message(id="1", operation="error", source="twin", parent_id="v"), ToModule("devicecontroller")),
        (Message(id="1", operation="error", source="metaserver"), ToModule("dynamiccontroller")),
        (Message(operation="response", source="edged", parent_id="v"), Noise("missing_id")),
    ],
)
def test_an_answer_goes_to_the_module_of_its_kind(message: Message, route: object) -> None:
    assert answer_route(message) == route


def test_an_answer_carries_the_request_it_answers() -> None:
    request = Message(
        id="q", group="resource", resource="node/n/default/secret/s", traceparent="tp", source="metamanager"
    )
    message = answer(
        request, resource="default/secret/s", message_id="a", at_ms=7, content='né"in', operation="error"
    )
    assert (message.id, message.parent_id, message.timestamp_ms) == ("a", "q", 7)
    assert (message.source, message.group, message.operation) == ("cloudhub", "resource", "error")
    assert message.resource == "default/secret/s"
    assert json.loads(message.content) == 'né"in'
    assert message.traceparent == "tp"
