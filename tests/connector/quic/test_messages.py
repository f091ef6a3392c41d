"""The protobuf message of a QUIC link."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1.edge_pb2 import EdgeMessage
from cloudhub.v1.message_pb2 import Message
from services.connector.frames import FrameError, FrameFault, decode_frame, encode_frame
from services.connector.quic.messages import encode_message, parse_message

_TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
_JSON_TEXT = st.sampled_from([b"null", b'"OK"', b'{"a": [1, 2.50]}', b'["\xc3\xa9"]'])


@st.composite
def _messages(draw: st.DrawFn) -> Message:
    texts = ["id", "parent_id", "resource_version", "type", "source", "destination", "group"]
    texts += ["operation", "resource", "traceparent"]
    return Message(
        timestamp_ms=draw(st.integers(-(2**63), 2**63 - 1)),
        sync=draw(st.booleans()),
        content=draw(_JSON_TEXT),
        extra=draw(st.dictionaries(st.sampled_from(["a", "header.b", "route.c", "x.y"]), _JSON_TEXT)),
        **{name: draw(_TEXT) for name in texts},
    )


def _read(payload: bytes) -> Message:
    message = Message()
    parse_message(payload).fill(message)
    return message


@given(_messages())
def test_every_message_survives_the_way_there_and_back(message: Message) -> None:
    assert _read(encode_message(message)) == message


@given(_messages())
def test_a_message_is_the_same_over_both_transports(message: Message) -> None:
    """What the hub does with a message does not depend on how it came."""
    by_websocket = decode_frame(encode_frame(message))
    assert _read(encode_message(message)) == by_websocket


def test_the_layout_is_that_of_kubeedges_library() -> None:
    """Its fields have the numbers they have there; the timestamp is a zigzag integer."""
    encoded = encode_message(
        Message(
            id="i", parent_id="p", timestamp_ms=1, sync=True, type="t",
            source="s", group="g", operation="o", resource="r", content=b"{}",
        )
    )  # fmt: skip
    header = b"\x0a\x01i\x12\x01p\x18\x02\x20\x01\x2a\x01t"
    router = b"\x0a\x01s\x12\x01g\x1a\x01o\x22\x01r"
    assert encoded == b"\x0a\x0d" + header + b"\x12\x0c" + router + b"\x1a\x02{}"


def test_empty_content_is_null() -> None:
    assert _read(b"").content == b"null"
    assert EdgeMessage.FromString(encode_message(Message())).content == b"null"


@pytest.mark.parametrize(
    ("payload", "fault"),
    [
        (b"\xff", FrameFault.PROTOBUF),
        (b'{"header": {}}', FrameFault.PROTOBUF),
        (b"\x0a\x03\x0a\x01\xff", FrameFault.PROTOBUF),
        (EdgeMessage(content=b"{").SerializeToString(), FrameFault.SYNTAX),
        (EdgeMessage(content=b"1 2").SerializeToString(), FrameFault.SYNTAX),
        (EdgeMessage(content=b'"\xff"').SerializeToString(), FrameFault.ENCODING),
        (EdgeMessage(content=b"[" * 20_000).SerializeToString(), FrameFault.DEPTH),
        (EdgeMessage(content=b"[1e400]").SerializeToString(), FrameFault.NUMBER),
        (EdgeMessage(content=b'"\\ud83d"').SerializeToString(), FrameFault.SURROGATE),
        (EdgeMessage(extra={"a": b"1e400"}).SerializeToString(), FrameFault.NUMBER),
        (EdgeMessage(extra={"a": b"{"}).SerializeToString(), FrameFault.SYNTAX),
        (EdgeMessage(extra={"header.msg_id": b"1"}).SerializeToString(), FrameFault.SHAPE),
        (EdgeMessage(extra={"content": b"1"}).SerializeToString(), FrameFault.SHAPE),
    ],
)
def test_what_is_no_message_is_refused_with_its_fault(payload: bytes, fault: FrameFault) -> None:
    """C29."""
    with pytest.raises(FrameError) as raised:
        parse_message(payload)
    assert raised.value.fault is fault
    assert raised.value.detail


@pytest.mark.parametrize("message", [Message(content=b"{"), Message(content=b"1", extra={"a": b"{"})])
def test_a_message_without_json_is_not_written(message: Message) -> None:
    with pytest.raises(FrameError):
        encode_message(message)


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_a_named_fault(payload: bytes) -> None:
    """Invariant 10."""
    detail = ""
    message = None
    try:
        message = _read(payload)
    except FrameError as error:
        detail = error.detail
    assert detail if message is None else _read(encode_message(message)) == message
