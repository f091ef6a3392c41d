"""What a publish request may be: `services.dispatcher.publication`."""

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import DecodeError
from hypothesis import example, given
from hypothesis import strategies as st

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.message_pb2 import Message
from services.connector.frames import encode_frame
from services.connector.quic.messages import encode_message
from services.dispatcher.publication import (
    Publication,
    PublishLimits,
    Rejection,
    check_request,
    object_names,
    parse_version,
    strip_node_prefix,
)
from services.dispatcher.sizes import MAX_BESIDE_CONTENT_BYTES
from tests.support.dispatcher import NOW_MS, request

LIMITS = PublishLimits(content_most_bytes=1000, answer_seconds=60.0)
Change = Callable[[pb.PublishRequest], object]


def check(what: pb.PublishRequest) -> Publication | Rejection:
    return check_request(what, LIMITS, "made-here", NOW_MS, "tp")


def taken(what: pb.PublishRequest) -> Publication:
    result = check(what)
    assert isinstance(result, Publication), result
    return result


def set_message(**fields: object) -> Change:
    def change(what: pb.PublishRequest) -> None:
        for name, value in fields.items():
            setattr(what.message, name, value)

    return change


def change_all(*changes: Change) -> Change:
    return lambda what: [change(what) for change in changes]


def ttl(seconds: int = 0, nanos: int = 0) -> Change:
    return lambda what: what.time_to_live.CopyFrom(Duration(seconds=seconds, nanos=nanos))


def put(name: str, value: object) -> Change:
    return lambda what: setattr(what, name, value)


def extra(name: str) -> Change:
    return lambda what: what.message.extra.update({name: b"1"})


LONG = "x" * 1025
REJECTIONS: list[tuple[str, Change, str, str]] = [
    ("no version", set_message(resource_version=""), "VERSION_MISSING", "message.resource_version"),
    *(
        (
            f"version {text!r}",
            set_message(resource_version=text),
            "VERSION_MALFORMED",
            "message.resource_version",
        )
        for text in ("-1", "+1", "1.0", "0x1", " 1", "1 ", "v1", "1" * 21, "٣", "²", "1_0", "1e3")
    ),
    (
        "malformed version of a delete",
        set_message(operation="delete", resource_version="x"),
        "VERSION_MALFORMED",
        "message.resource_version",
    ),
    (
        "no uid and no path",
        set_message(resource="", content=b"{}"),
        "OBJECT_UNNAMED",
        "message.resource",
    ),
    ("no content", set_message(content=b""), "CONTENT_MISSING", "message.content"),
    ("no JSON", set_message(content=b"{oops"), "CONTENT_NOT_JSON", "message.content"),
    ("two values", set_message(content=b"1 2"), "CONTENT_NOT_JSON", "message.content"),
    ("no UTF-8", set_message(content=b'"\xff"'), "CONTENT_NOT_JSON", "message.content"),
    ("deep", set_message(content=b"[" * 500), "CONTENT_NOT_JSON", "message.content"),
    ("NaN", set_message(content=b'{"a": NaN}'), "CONTENT_NOT_JSON", "message.content"),
    ("half an emoji", set_message(content=b'"\\ud83d"'), "CONTENT_NOT_JSON", "message.content"),
    ("1e400", set_message(content=b'{"a": 1e400}'), "CONTENT_NUMBER_TOO_LARGE", "message.content"),
    ("400 digits", set_message(content=b"9" * 400), "CONTENT_NUMBER_TOO_LARGE", "message.content"),
    ("large", set_message(content=b" " * 1000 + b"1"), "CONTENT_TOO_LARGE", "message.content"),
    ("content twice", put("content_json", "{}"), "CONTENT_TWICE", "content_json"),
    (
        "long uid",
        set_message(
            content=json.dumps({"metadata": {"uid": "u" * 900}}).encode().replace(b"u" * 900, b"\\u00e9\\n")
        ),
        "UID_MALFORMED",
        "message.content",
    ),
    ("no operation", set_message(operation=""), "OPERATION_MISSING", "message.operation"),
    ("priority", put("priority", 10), "PRIORITY_OUT_OF_RANGE", "priority"),
    ("ack mode", put("ack_mode", 17), "ACK_MODE_UNKNOWN", "ack_mode"),
    ("no lifetime", ttl(0), "TIME_TO_LIVE_MALFORMED", "time_to_live"),
    ("negative lifetime", ttl(-5), "TIME_TO_LIVE_MALFORMED", "time_to_live"),
    ("lifetime below a millisecond", ttl(0, 999_999), "TIME_TO_LIVE_MALFORMED", "time_to_live"),
    ("endless lifetime", ttl(2**62), "TIME_TO_LIVE_MALFORMED", "time_to_live"),
    *(
        (f"long {field}", set_message(**{field: LONG}), "FIELD_TOO_LONG", f"message.{field}")
        for field in ("id", "parent_id", "type", "source", "destination", "group", "operation", "resource")
    ),
    ("control character", set_message(id="a\x00b"), "FIELD_NOT_PRINTABLE", "message.id"),
    ("line break", set_message(resource="a\nb"), "FIELD_NOT_PRINTABLE", "message.resource"),
    (
        "extra",
        lambda what: what.message.extra.update({"header.x": b"{"}),
        "EXTRA_NOT_JSON",
        "message.extra[header.x]",
    ),
    (
        "1e400 as extra",
        lambda what: what.message.extra.update({"x": b"[1e400]"}),
        "EXTRA_NUMBER_TOO_LARGE",
        "message.extra[x]",
    ),
    (
        "half an emoji as extra",
        lambda what: what.message.extra.update({"x": b'"\\ude00"'}),
        "EXTRA_NOT_JSON",
        "message.extra[x]",
    ),
    (
        "many extra fields",
        lambda what: what.message.extra.update({f"header.{number}": b"1" for number in range(65)}),
        "EXTRA_TOO_MANY",
        "message.extra",
    ),
    *(
        (f"extra name {text[:10]!r}", extra(text), "EXTRA_NAME_MALFORMED", f"message.extra[{shown}]")
        for text, shown in (("", ""), ("a\nb", "a\nb"), ("é" * 129, f"{'é' * 80}... (129 characters)"))
    ),
    ("extra of a known name", extra("header.sync"), "EXTRA_NAME_KNOWN", "message.extra[header.sync]"),
    (
        "large extra field",
        lambda what: what.message.extra.update({"x": b" " * 67_000 + b"1"}),
        "MESSAGE_TOO_LARGE",
        "message.extra",
    ),
    *(
        (
            f"{field} of few characters in many bytes",
            set_message(**{field: "漢" * 342}),
            "FIELD_TOO_LONG",
            f"message.{field}",
        )
        for field in ("id", "resource", "operation")
    ),
]


@pytest.mark.parametrize(
    ("change", "reason", "field"), [case[1:] for case in REJECTIONS], ids=[c[0] for c in REJECTIONS]
)
def test_a_malformed_request_is_rejected_with_its_field(change: Change, reason: str, field: str) -> None:
    """C16."""
    what = request("edge-1")
    change(what)
    result = check(what)
    assert isinstance(result, Rejection)
    assert (result.reason, result.field) == (reason, field)
    assert result.detail


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"limit": 1e400}', "the number 1e400 at byte 10 is beyond a float64; send it as a string"),
        (b'{"text": "\\ud83d"}', "\\ud83d at byte 10 is half a surrogate pair"),
        (b'{"load": NaN}', "NaN at byte 9 is no JSON value; send null or a string"),
    ],
)
def test_content_that_no_edge_can_read_is_refused_with_what_and_where(content: bytes, words: str) -> None:
    """C43."""
    refused = check(request("edge-1", content=content))
    assert isinstance(refused, Rejection)
    assert words in refused.detail


@pytest.mark.parametrize("uid", ["u" * 1024, "漢" * 341])
def test_a_uid_is_bounded_in_bytes(uid: str) -> None:
    """C44: a key stands in an index, whose bound is in bytes."""
    limits = PublishLimits()
    content = json.dumps({"metadata": {"uid": uid}}, ensure_ascii=False).encode()
    found = check_request(request(content=content), limits, "made-here", NOW_MS, "")
    assert isinstance(found, Publication)
    assert found.key == uid
    longer = content.replace(uid.encode(), uid.encode() + "漢".encode())
    refused = check_request(request(content=longer), limits, "made-here", NOW_MS, "")
    assert isinstance(refused, Rejection)
    assert refused.reason == "UID_MALFORMED"


@given(
    extra_bytes=st.integers(0, 66_700),
    content_bytes=st.integers(1, 1000),
    texts=st.lists(st.sampled_from(['"', "\\", "漢", "x"]).map(lambda c: c * 300), min_size=4, max_size=4),
    name=st.sampled_from(["header.x", 'quo"te', "route.\\"]),
)
def test_a_message_that_is_taken_fits_into_its_frame(
    extra_bytes: int, content_bytes: int, texts: list[str], name: str
) -> None:
    """C41: whatever makes it large, the encoded message is within the bound, and what becomes of it on either
    kind of link is at most the names' escapes and the frame's own words larger."""
    what = request(content=b"1".rjust(content_bytes), message_id="m")
    if extra_bytes:
        what.message.extra[name] = b"1".rjust(extra_bytes)
    what.message.source, what.message.destination, what.message.group, what.message.type = texts
    limits = replace(LIMITS, takes_unacknowledged=True)
    found = check_request(what, limits, "made-here", NOW_MS, "tp")
    if isinstance(found, Rejection):
        assert found.reason == "MESSAGE_TOO_LARGE"
        assert content_bytes + extra_bytes > 1000 + MAX_BESIDE_CONTENT_BYTES - 6000
        return
    assert found.size_bytes == len(found.body) <= LIMITS.max_message_bytes
    found.message.traceparent = "t" * 55
    for encode in (encode_frame, encode_message):
        assert len(encode(found.message)) <= found.size_bytes + MAX_BESIDE_CONTENT_BYTES


def test_a_rejection_says_what_came_but_not_all_of_a_long_text() -> None:
    """C16."""
    result = check(request(version="9" * 100_000))
    assert isinstance(result, Rejection)
    assert "9999" in result.detail
    assert len(result.detail) < 300


def test_a_request_is_taken_as_it_came() -> None:
    what = request("edge-1", message_id="m1", version="00042")
    what.priority, what.force = 9, True
    what.message.extra["header.x"] = b"[1]"
    found = taken(what)
    assert (found.acknowledged, found.key, found.uid, found.version) == (True, "u1", "u1", 42)
    assert (found.is_delete, found.is_answer, found.own_id) == (False, False, True)
    assert (found.priority, found.force, found.expires_at_ms) == (9, True, 0)
    assert found.size_bytes == len(found.body)
    assert found.message.content == what.message.content
    assert found.message.resource_version == "00042"
    assert found.message.extra == {"header.x": b"[1]"}
    assert (found.message.id, found.message.timestamp_ms, found.message.traceparent) == ("m1", NOW_MS, "tp")
    assert Message.FromString(found.body) == found.message


def test_what_the_publisher_said_itself_is_kept() -> None:
    what = request(message_id="")
    what.message.timestamp_ms = 5
    found = taken(what)
    assert (found.message.id, found.own_id, found.message.timestamp_ms) == ("made-here", False, 5)


def test_content_as_text_is_carried_as_bytes() -> None:
    what = request(content=b"")
    what.content_json = '{"metadata":{"uid":"ü"}}'
    found = taken(what)
    assert found.message.content.decode() == what.content_json
    assert found.key == "ü"


@pytest.mark.parametrize(
    ("content", "key"),
    [
        (b'{"metadata":{"uid":"u1"}}', "u1"),
        (b'{"metadata":{"uid":""}}', "default/configmap/a"),
        (b'{"metadata":{"uid":5}}', "default/configmap/a"),
        (b'{"metadata":[]}', "default/configmap/a"),
        (b'{"uid":"u1"}', "default/configmap/a"),
        (b'"text"', "default/configmap/a"),
        (b"null", "default/configmap/a"),
    ],
)
def test_the_key_is_the_uid_else_the_path(content: bytes, key: str) -> None:
    assert taken(request(content=content)).key == key


def test_an_object_needs_a_uid_or_a_path_but_not_both() -> None:
    assert taken(request(resource="")).key == "u1"
    assert taken(request(content=b"1")).key == "default/configmap/a"


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        ("node/edge-1/default/pod/p", "default/pod/p"),
        ("default/pod/p", "default/pod/p"),
        ("node/edge-1", "node/edge-1"),
        ("node/edge-1/", "node/edge-1/"),
        ("nodes/edge-1/default/pod/p", "nodes/edge-1/default/pod/p"),
        ("", ""),
    ],
)
def test_the_node_prefix_of_a_path_is_cut_off(resource: str, expected: str) -> None:
    assert strip_node_prefix(resource) == expected
    if resource:
        assert taken(request(resource=resource)).message.resource == expected


def test_a_delete_needs_no_version() -> None:
    """C16."""
    found = taken(request(operation="delete", version=""))
    assert (found.is_delete, found.version) == (True, None)


def test_an_unacknowledged_message_needs_neither_version_nor_name() -> None:
    """C26."""
    found = taken(request(version="", resource="", content=b"1", ack_mode=pb.ACK_MODE_NO_ACK))
    assert (found.acknowledged, found.version) == (False, None)


def test_the_publishers_ack_mode_goes_before_the_rules() -> None:
    lease = request(resource="default/lease/x")
    assert not taken(lease).acknowledged
    lease.ack_mode = pb.ACK_MODE_ACK
    assert taken(lease).acknowledged
    assert not taken(request(ack_mode=pb.ACK_MODE_NO_ACK)).acknowledged


@pytest.mark.parametrize("ack_mode", [pb.ACK_MODE_UNSPECIFIED, pb.ACK_MODE_ACK])
@pytest.mark.parametrize(
    ("source", "group", "operation", "filled"),
    [
        ("", "", "insert", ("edgecontroller", "resource")),
        ("", "", "update", ("edgecontroller", "resource")),
        ("", "", "delete", ("edgecontroller", "resource")),
        ("", "resource", "update", ("edgecontroller", "resource")),
        ("mine", "", "insert", ("mine", "resource")),
        ("mine", "resource", "delete", ("mine", "resource")),
        ("devicecontroller", "", "update", ("devicecontroller", "resource")),
        ("dynamiccontroller", "resource", "update", ("dynamiccontroller", "resource")),
        ("policycontroller", "resource", "update", ("policycontroller", "resource")),
    ],
)
def test_what_stock_edges_acknowledge_is_taken_and_completed(
    source: str, group: str, operation: str, filled: tuple[str, str], ack_mode: pb.AckMode.ValueType
) -> None:
    """C16: docs/protocol.md, "What edges acknowledge"."""
    what = request(operation=operation, ack_mode=ack_mode)
    what.message.source, what.message.group = source, group
    found = taken(what)
    assert found.acknowledged
    assert (found.message.source, found.message.group) == filled
    assert Message.FromString(found.body) == found.message


UNACKNOWLEDGED = [
    ({"group": "twin"}, "GROUP_NOT_ACKNOWLEDGED", "message.group"),
    ({"group": "twin", "operation": "insert"}, "GROUP_NOT_ACKNOWLEDGED", "message.group"),
    ({"operation": "patch"}, "OPERATION_NOT_ACKNOWLEDGED", "message.operation"),
    ({"operation": "frobnicate", "group": ""}, "OPERATION_NOT_ACKNOWLEDGED", "message.operation"),
    ({"operation": "response"}, "OPERATION_NOT_ACKNOWLEDGED", "message.operation"),
    ({"operation": "Update"}, "OPERATION_NOT_ACKNOWLEDGED", "message.operation"),
    ({"source": "mine"}, "SOURCE_NOT_ACKNOWLEDGED", "message.source"),
]


@pytest.mark.parametrize(("fields", "reason", "field"), UNACKNOWLEDGED)
def test_what_no_stock_edge_acknowledges_is_refused_with_what_would_be_right(
    fields: dict[str, str], reason: str, field: str
) -> None:
    """C16, C20: it would be sent ten times and parked."""
    what = request()
    set_message(**fields)(what)
    refused = check(what)
    assert isinstance(refused, Rejection)
    assert (refused.reason, refused.field) == (reason, field)
    assert "ACK_MODE_NO_ACK" in refused.detail
    assert len(refused.detail) < 320


@pytest.mark.parametrize("fields", [fields for fields, _, _ in UNACKNOWLEDGED])
def test_without_acknowledgement_or_with_other_edges_it_is_taken(fields: dict[str, str]) -> None:
    """C26."""
    what = request(ack_mode=pb.ACK_MODE_NO_ACK)
    set_message(**fields)(what)
    assert not taken(what).acknowledged
    other_edges = PublishLimits(takes_unacknowledged=True)
    what.ack_mode = pb.ACK_MODE_ACK
    found = check_request(what, other_edges, "made-here", NOW_MS, "")
    assert isinstance(found, Publication)
    assert found.acknowledged


def test_data_for_programs_at_the_edge_stays_as_it_came() -> None:
    """C26: group `user` is for programs there, whatever its source."""
    what = request(operation="upload")
    what.message.source, what.message.group = "", "user"
    found = taken(what)
    assert not found.acknowledged
    assert (found.message.source, found.message.group) == ("", "user")
    what.ack_mode = pb.ACK_MODE_ACK
    refused = check(what)
    assert isinstance(refused, Rejection)
    assert refused.reason == "GROUP_NOT_ACKNOWLEDGED"


@pytest.mark.parametrize("resource", ["default/lease/x", "default/pod/p", "null/node/edge-1"])
@pytest.mark.parametrize("operation", ["insert", "update", "response"])
def test_what_is_left_out_is_treated_as_if_it_were_said(resource: str, operation: str) -> None:
    said = request(resource=resource, operation=operation, parent_id="q1", message_id="m1")
    left_out = request(resource=resource, operation=operation, parent_id="q1", message_id="m1")
    left_out.message.source = left_out.message.group = ""
    assert taken(left_out) == taken(said)


def test_an_answer_is_keyed_by_its_id_and_ends_soon() -> None:
    """C40."""
    answer = request(operation="response", parent_id="q1", version="", message_id="r1")
    found = taken(answer)
    assert (found.key, found.uid, found.is_answer, found.version) == ("answer:r1", "", True, None)
    assert found.expires_at_ms == NOW_MS + 60_000
    ttl(10)(answer)
    assert taken(answer).expires_at_ms == NOW_MS + 10_000
    ttl(100)(answer)
    assert taken(answer).expires_at_ms == NOW_MS + 60_000


def test_a_response_without_a_parent_is_no_answer() -> None:
    assert not taken(request(operation="response", ack_mode=pb.ACK_MODE_NO_ACK)).is_answer


def test_the_lifetime_becomes_an_instant() -> None:
    """C19."""
    what = request()
    ttl(1, 500_000_000)(what)
    assert taken(what).expires_at_ms == NOW_MS + 1500


@given(st.integers(0, 10**20 - 1), st.integers(0, 10**20 - 1))
def test_versions_compare_as_integers(one: int, other: int) -> None:
    """C17."""
    first, second = parse_version(str(one)), parse_version(str(other).zfill(20))
    assert first is not None
    assert second is not None
    assert (first < second) == (one < other)


@given(st.text(max_size=30))
def test_any_text_is_a_version_or_none(text: str) -> None:
    """C16, C17."""
    version = parse_version(text)
    if version is None:
        assert not (text.isascii() and text.isdecimal() and len(text) <= 20)
    else:
        assert str(version).zfill(len(text)) == text


def is_strict_json(content: bytes) -> bool:
    """Exactly one JSON value in UTF-8, by the standard library; half a surrogate pair is no text."""

    def refuse(constant: str) -> object:
        raise ValueError(constant)

    try:
        value = json.loads(content.decode(), parse_constant=refuse, parse_int=float)
        json.dumps(value, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


PUNCTUATION = [b"{", b"}", b"[", b"]", b",", b":", b'"', b" ", b"\n", b"\x00", b"\xff", b"\xef\xbb\xbf"]
ESCAPES = [b"\\", b"\\u00e9", b"\\ud800", b"\\udc00", "é".encode(), b'"metadata"', b'"uid"']
ATOMS = [b"1", b"-", b"0", b".5", b"e9", b"true", b"null", b"NaN", b"Infinity"]
fragments = st.sampled_from(PUNCTUATION + ESCAPES + ATOMS)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.just("metadata"), inner, max_size=3)
    ),
    max_leaves=8,
)
contents = (
    st.binary(max_size=40)
    | st.lists(fragments, max_size=12).map(b"".join)
    | json_values.map(lambda value: json.dumps(value).encode())
    | json_values.map(lambda value: json.dumps(value, ensure_ascii=False).encode())
)


@given(contents)
@example(b'{"metadata":{"uid":"\\ud800"}}')
@example(b'{"a":"\\q"}')
@example(b'{"metadata":5,"a":01}')
@example(b'{"a":"\\ud83d\\ude00"}')
@example(b'{"a":"\\ud83d"}')
def test_any_bytes_are_refused_exactly_when_they_are_no_json(content: bytes) -> None:
    """C16, C29: nothing crashes, and an edge is never sent what is no JSON."""
    try:
        object_names(content)
    except ValueError:
        assert not is_strict_json(content)
    else:
        assert is_strict_json(content)


@given(json_values, st.text())
def test_the_uid_is_found_wherever_it_stands(rest: object, uid: str) -> None:
    names = {"apiVersion": "v1", "spec": rest, "metadata": {"labels": rest, "uid": uid}, "kind": "K"}
    assert object_names(json.dumps(names).encode()) == (uid, "v1", "K")


def test_a_large_object_is_known_by_the_same_names() -> None:
    padding = "x" * 20_000
    whole = {"apiVersion": "v1", "kind": "K", "metadata": {"uid": "u"}, "data": padding}
    assert object_names(json.dumps(whole).encode()) == ("u", "v1", "K")
    assert object_names(json.dumps({**whole, "kind": 5}).encode()) == ("u", "v1", 5)
    assert object_names(json.dumps({**whole, "metadata": 5}).encode()) == ("", "v1", "K")
    assert object_names(json.dumps(padding).encode()) == ("", "", "")


@given(st.binary(max_size=60))
def test_any_request_is_taken_or_refused(encoded: bytes) -> None:
    """C16: whatever the fields hold, the answer is a publication or a rejection with its field."""
    what = request("edge-1")
    try:
        what.MergeFromString(encoded)
    except DecodeError:
        return
    result = check(what)
    assert isinstance(result, Publication) or result.field
