"""The JSON frame codec."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1 import message_pb2
from cloudhub.v1.edge_pb2 import EdgeMessage
from services.connector.frames import FrameError, FrameFault, decode_frame, encode_frame
from services.connector.quic.messages import parse_message

_TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=4),
    max_leaves=12,
)
_KNOWN = {"msg_id", "parent_msg_id", "timestamp", "resourceversion", "sync", "type", "traceparent"}
_KNOWN |= {"source", "destination", "group", "operation", "resource", "header", "route", "content"}
_UNKNOWN = st.dictionaries(
    _TEXT.filter(lambda name: name not in _KNOWN and not name.startswith(("header.", "route."))),
    _JSON,
    max_size=3,
)


def _encoded(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


@st.composite
def _frames(draw: st.DrawFn) -> dict[str, Any]:
    header = {
        "msg_id": draw(_TEXT),
        "timestamp": draw(st.integers(-(2**63) + 1, 2**63 - 1)),
        **draw(
            st.fixed_dictionaries(
                {},
                optional={
                    "parent_msg_id": _TEXT,
                    "resourceversion": _TEXT,
                    "sync": st.booleans(),
                    "type": _TEXT,
                    "traceparent": _TEXT,
                },
            )
        ),
    }
    route = draw(
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("source", "destination", "group", "operation", "resource"), _TEXT),
        )
    )
    return {
        "header": header | draw(_UNKNOWN),
        "route": route | draw(_UNKNOWN),
        "content": draw(_JSON),
        **draw(_UNKNOWN),
    }


def _without_empty(frame: dict[str, Any]) -> dict[str, Any]:
    """What must survive: an absent known field and an empty one mean the same on the link."""
    kept = dict(frame)
    for part in ("header", "route"):
        inner = kept.get(part) or {}
        kept[part] = {
            name: value for name, value in inner.items() if name not in _KNOWN or value not in ("", False, 0)
        }
    return kept


@pytest.mark.no_cover
@given(_frames())
def test_every_frame_survives_decoding_and_encoding(frame: dict[str, Any]) -> None:
    message = decode_frame(_encoded(frame) + b"\n")
    again = encode_frame(message)
    assert _without_empty(json.loads(again)) == _without_empty(frame)
    assert decode_frame(again) == message


@given(_JSON, st.sampled_from(["", " ", "\n\t"]))
def test_content_is_carried_byte_for_byte(content: Any, space: str) -> None:
    text = json.dumps(content, indent=1).encode()
    frame = b'{"content":' + space.encode() + text + b"}"
    message = decode_frame(frame)
    assert message.content == text
    assert encode_frame(message).endswith(b'"content":' + text + b"}")


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_frame_error(data: bytes) -> None:
    """C29: nothing an edge sends raises anything else."""
    try:
        message = decode_frame(data)
    except FrameError:
        return
    json.loads(encode_frame(message))


@given(_JSON)
def test_any_json_is_a_message_or_a_shape_error(value: Any) -> None:
    """C29: wrong types are told apart from what is not JSON."""
    fault: FrameFault | None = None
    try:
        decode_frame(_encoded(value))
    except FrameError as error:
        fault = error.fault
    assert fault in (None, FrameFault.SHAPE)


@given(
    st.builds(
        message_pb2.Message,
        id=_TEXT,
        parent_id=_TEXT,
        timestamp_ms=st.integers(-(2**63) + 1, 2**63 - 1),
        resource_version=_TEXT,
        sync=st.booleans(),
        type=_TEXT,
        source=_TEXT,
        destination=_TEXT,
        group=_TEXT,
        operation=_TEXT,
        resource=_TEXT,
        content=st.binary(max_size=30) | _JSON.map(_encoded),
        traceparent=_TEXT,
        extra=st.dictionaries(_TEXT, st.binary(max_size=8) | _JSON.map(_encoded), max_size=3),
    )
)
def test_what_is_encoded_is_always_json(message: message_pb2.Message) -> None:
    try:
        frame = encode_frame(message)
    except FrameError:
        return
    parsed = json.loads(frame)
    assert parsed["header"]["msg_id"] == message.id
    assert parsed["route"]["resource"] == message.resource


@pytest.mark.parametrize(
    "noise",
    [
        b"{}",
        b'{"header":{"msg_id":"","timestamp":0},"route":{},"content":null}\n',
        b'{"header":null,"route":null}',
        b'{"header":{"msg_id":null,"sync":null}}',
        b' { "content" : null } ',
    ],
)
def test_noise_reads_as_an_empty_message(noise: bytes) -> None:
    """C29: what an edge sends on shutdown is tolerated."""
    assert decode_frame(noise) == message_pb2.Message(content=b"null")


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"", FrameFault.SYNTAX),
        (b"{", FrameFault.SYNTAX),
        (b"not json", FrameFault.SYNTAX),
        (b"{}{}", FrameFault.SYNTAX),
        (b'{"content":01}', FrameFault.SYNTAX),
        (b'{"content":"\x01"}', FrameFault.SYNTAX),
        (b'{"content":"\xff"}', FrameFault.ENCODING),
        (b'{"content":"\xed\xa0\x80"}', FrameFault.ENCODING),
        (b'{"header":{"msg_id":"\xc0\x80"}}', FrameFault.ENCODING),
        (b"[]", FrameFault.SHAPE),
        (b"null", FrameFault.SHAPE),
        (b'"text"', FrameFault.SHAPE),
        (b'{"header":[]}', FrameFault.SHAPE),
        (b'{"route":"x","new":1}', FrameFault.SHAPE),
        (b'{"header":{"msg_id":7}}', FrameFault.SHAPE),
        (b'{"header":{"timestamp":1.5}}', FrameFault.SHAPE),
        (b'{"header":{"timestamp":9223372036854775808}}', FrameFault.SHAPE),
        (b'{"header":{"timestamp":1e400}}', FrameFault.SHAPE),
        (b'{"header":{"sync":"yes"}}', FrameFault.SHAPE),
        (b'{"header":{"traceparent":{}}}', FrameFault.SHAPE),
        (b'{"header.x":1}', FrameFault.SHAPE),
        (b'{"content":' + b"[" * 100_000, FrameFault.DEPTH),
        (b'{"x":' + b'{"a":' * 100_000, FrameFault.DEPTH),
    ],
)
def test_a_bad_frame_is_refused_with_its_fault(data: bytes, fault: FrameFault) -> None:
    """C29."""
    with pytest.raises(FrameError) as refused:
        decode_frame(data)
    assert refused.value.fault is fault
    assert refused.value.detail


@pytest.mark.parametrize(
    "data",
    [
        b'{"header":{"timestamp":' + b"9" * 1_000_000 + b"}}",
        b'{"content":' + b"9" * 1_000_000 + b"}",
        b'{"content":"' + b"\\u00e9" * 160_000 + b'"}',
        b'{"new":' + b"[1," * 330_000,
        b'{"header":{' + b'"a":1,' * 170_000 + b'"b":2}}',
    ],
)
def test_a_megabyte_of_malice_takes_no_more_than_linear_time(data: bytes) -> None:
    """C29: a quadratic reader would take minutes."""
    started = time.perf_counter()
    try:
        decode_frame(data)
    except FrameError:
        pass
    assert time.perf_counter() - started < 1.0


def test_unknown_fields_travel_as_json_text() -> None:
    message = decode_frame(b'{"header":{"msg_id":"m","n":[1, 2]},"route":{"r":{}},"t":1e5,"content":1}')
    assert dict(message.extra) == {"header.n": b"[1, 2]", "route.r": b"{}", "t": b"1e5"}
    frame = json.loads(encode_frame(message))
    assert (frame["header"]["n"], frame["route"]["r"], frame["t"]) == ([1, 2], {}, 1e5)


def test_an_extra_field_cannot_take_the_place_of_a_known_one() -> None:
    extra = {"header.msg_id": b'"evil"', "route.source": b'"evil"', "content": b"2"}
    frame = encode_frame(message_pb2.Message(id="good", source="s", content=b"1", extra=extra))
    assert b"evil" not in frame
    assert json.loads(frame)["content"] == 1


@pytest.mark.parametrize("place", ["header", "route", ""])
def test_a_message_has_at_most_so_many_unknown_fields(place: str) -> None:
    """C41: a frame of short names would be larger in a batch than on the link."""

    def frame(number: int) -> bytes:
        unknown = {f"x{index}": 1 for index in range(number)}
        return json.dumps({place: unknown} if place else unknown).encode()

    assert len(decode_frame(frame(64)).extra) == 64
    with pytest.raises(FrameError) as refused:
        decode_frame(frame(65))
    assert (refused.value.fault, refused.value.detail) == (
        FrameFault.SHAPE,
        "65 unknown fields; at most 64",
    )
    message = EdgeMessage(extra={f"x{index}": b"1" for index in range(65)})
    with pytest.raises(FrameError, match="65 unknown fields"):
        parse_message(message.SerializeToString())


def test_a_trace_context_is_there_if_the_message_has_one() -> None:
    message = message_pb2.Message(traceparent="00-old")
    assert json.loads(encode_frame(message))["header"]["traceparent"] == "00-old"
    assert b"traceparent" not in encode_frame(message_pb2.Message())


@pytest.mark.parametrize("content", [b"{", b"1 2", b"", b"\xff", b'"\xff"', b"[" * 100_000, b"NaN"])
def test_content_that_is_no_json_is_never_written(content: bytes) -> None:
    """An edge drops its link over a frame that is not JSON."""
    message = message_pb2.Message(extra={"x": content or b"-"}, content=content)
    with pytest.raises(FrameError):
        encode_frame(message)


@pytest.mark.parametrize(
    ("frame", "fault", "words"),
    [
        (b'{"content": {"a": 1e400}}', FrameFault.NUMBER, "content: the number 1e400 at byte 6 is beyond"),
        (
            b'{"content": 1, "more": [-1e999]}',
            FrameFault.NUMBER,
            "extra['more']: the number -1e999 at byte 1",
        ),
        (b'{"header": {"x": %s}}' % (b"9" * 400), FrameFault.NUMBER, "extra['header.x']: the number 999"),
        (b'{"content": "\\ud83d"}', FrameFault.SURROGATE, "\\ud83d at byte 13 is half a surrogate pair"),
        (b'{"header": {"msg_id": "\\ude00"}}', FrameFault.SURROGATE, "\\ude00 at byte 23 is half a"),
        (b'{"content": NaN}', FrameFault.SYNTAX, "NaN at byte 12 is no JSON value"),
        (b'{"content": %s}' % (b"[" * 600 + b"]" * 600), FrameFault.DEPTH, "nested deeper than 500"),
    ],
)
def test_content_that_other_decoders_refuse_is_refused_with_what_and_where(
    frame: bytes, fault: FrameFault, words: str
) -> None:
    """C43: an edge cannot hand to subscribers what they cannot read."""
    with pytest.raises(FrameError) as caught:
        decode_frame(frame)
    assert caught.value.fault is fault
    assert words in caught.value.detail
