"""What an edge does with each message."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge import protocol
from edge.protocol import Header, Kind, MalformedFrame, Message, Route

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def message(
    operation: str,
    *,
    group: str = "resource",
    resource: str = "default/configmap/cm1",
    parent: str = "",
    content: Any = None,
) -> Message:
    return Message(
        Header("m-1", parent, 7, "12"),
        Route("edgecontroller", group, operation, resource),
        msgspec.Raw(json.dumps(content).encode()),
    )


@pytest.mark.parametrize("operation", ["insert", "update"])
def test_an_object_is_stored_and_then_acknowledged(operation: str) -> None:
    step = protocol.decide(message(operation, content={"metadata": {"uid": "u"}}), ())
    assert (step.kind, step.uid, step.acknowledge) == (Kind.STORE, "u", True)


@pytest.mark.parametrize(
    ("resource", "uid", "only_uid"),
    [
        ("default/configmap/cm1", "u", False),
        ("default/pod/p1", "u", True),
        ("default/pod/p1", "", False),
        ("default/podstatus/p1", "u", False),
        ("pod", "u", False),
    ],
)
def test_a_delete_goes_by_path_and_only_a_pods_by_uid_too(resource: str, uid: str, only_uid: bool) -> None:
    """C15: a late delete of an older pod leaves the new one alone."""
    content = {"metadata": {"uid": uid}} if uid else {}
    step = protocol.decide(message("delete", resource=resource, content=content), ())
    assert (step.kind, step.only_uid, step.acknowledge) == (Kind.DELETE, only_uid, True)


@pytest.mark.parametrize("operation", ["", "nosuchop", "patch", "connected", "disconnected", "createvolume"])
def test_an_unknown_operation_is_swallowed(operation: str) -> None:
    step = protocol.decide(message(operation), ())
    assert (step.kind, step.acknowledge, step.reason) == (Kind.SWALLOW, False, "unknown_operation")


def test_a_keepalive_is_swallowed() -> None:
    assert protocol.decide(message("keepalive"), ()).reason == "keepalive"


@pytest.mark.parametrize("operation", ["insert", "update", "delete", "upload"])
def test_user_data_is_not_acknowledged(operation: str) -> None:
    step = protocol.decide(message(operation, group="user"), ())
    assert (step.kind, step.reason) == (Kind.SWALLOW, "user_data")


@pytest.mark.parametrize("operation", ["response", "error"])
def test_an_answer_nobody_waits_for_is_swallowed(operation: str) -> None:
    step = protocol.decide(message(operation, parent="r-1"), {"r-2"})
    assert (step.kind, step.reason) == (Kind.SWALLOW, "unasked_answer")


@pytest.mark.parametrize(
    ("operation", "content", "acknowledged"),
    [("response", {"a": 1}, True), ("response", "OK", False), ("error", "no", False), ("error", {}, False)],
)
def test_an_answer_is_acknowledged_only_while_its_request_waits_and_only_with_content(
    operation: str, content: Any, acknowledged: bool
) -> None:
    """C40: an answer to a request is acknowledged while the request waits."""
    step = protocol.decide(message(operation, parent="r-1", content=content), {"r-1"})
    assert (step.kind, step.acknowledge) == (Kind.ANSWER, acknowledged)


@given(JSON_VALUES)
def test_the_content_survives_byte_for_byte(content: Any) -> None:
    text = json.dumps(content, indent=1)
    frame = '{"header":{"msg_id":"m"},"route":{"operation":"update"},"content":' + text + "}\n"
    decoded = protocol.decode(frame.encode())
    assert bytes(decoded.content) == text.encode()


@given(JSON_VALUES)
def test_any_content_has_a_uid_or_none(content: Any) -> None:
    found = protocol.uid_of(msgspec.Raw(json.dumps(content).encode()))
    metadata = content.get("metadata") if isinstance(content, dict) else None
    uid = metadata.get("uid") if isinstance(metadata, dict) else None
    assert found == (uid if isinstance(uid, str) else "")


@given(st.binary(max_size=60))
def test_any_bytes_are_a_message_or_malformed(frame: bytes) -> None:
    try:
        protocol.decode(frame)
    except MalformedFrame:
        return
    assert isinstance(json.loads(frame), dict)


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (b'{"not json', "truncated"),
        (b"[]", "Expected `object`"),
        (b"{}", "missing required field `header`"),
        (b'{"header":{"msg_id":7},"route":{}}', r"\$.header.msg_id"),
        (b'{"header":{},"route":{"source":"\xff"}}', "utf-8"),
    ],
)
def test_a_malformed_frame_says_what_is_wrong(frame: bytes, says: str) -> None:
    with pytest.raises(MalformedFrame, match=says):
        protocol.decode(frame)


def test_unknown_fields_and_noise_are_no_fault() -> None:
    noise = b'{"header":{"msg_id":"","timestamp":0,"new":{}},"route":{"x":[]},"content":null,"more":1}\n'
    assert protocol.decide(protocol.decode(noise), ()).kind is Kind.SWALLOW


@given(st.text(), st.text(), st.text())
def test_an_acknowledgement_names_its_message(msg_id: str, source: str, resource: str) -> None:
    received = Message(Header(msg_id, "", 1), Route(source, "resource", "update", resource))
    frame = json.loads(protocol.acknowledgement(received, "a-1", 9))
    assert frame["header"].get("parent_msg_id", "") == msg_id
    assert (frame["header"]["msg_id"], frame["header"]["timestamp"]) == ("a-1", 9)
    assert frame["route"]["operation"] == "response"
    assert frame["route"].get("source", "") == source
    assert frame["route"].get("resource", "") == resource
    assert frame["content"] == "OK"


def test_a_keepalive_looks_as_documented() -> None:
    assert json.loads(protocol.keepalive("k-1", 5)) == {
        "header": {"msg_id": "k-1", "timestamp": 5},
        "route": {"source": "websocket", "group": "resource", "operation": "keepalive", "resource": "node"},
        "content": "ping",
    }


@pytest.mark.parametrize(
    ("traceparent", "sampled"),
    [
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", True),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00", False),
        ("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", True),
        ("", False),
        ("rubbish1", False),
    ],
)
def test_sampled_is_read_from_the_flags(traceparent: str, sampled: bool) -> None:
    assert protocol.is_sampled(traceparent) is sampled
