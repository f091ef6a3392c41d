"""The frames on a QUIC stream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.connector.quic.framing import (
    HEADER_BYTES,
    MESSAGE_PREFIX,
    FrameReader,
    FramingError,
    FramingFault,
    frame_header,
)

_MOST = 1000


def _taken(reader: FrameReader) -> list[bytes]:
    taken = []
    while (payload := reader.next_payload()) is not None:
        taken.append(payload)
    return taken


def _framed(payload: bytes) -> bytes:
    return frame_header(len(payload)) + payload


def test_a_header_is_that_of_kubeedges_library() -> None:
    """Version 1.1.1, type message, no flags, the length: all big-endian."""
    assert frame_header(0x01020304) == bytes.fromhex("01010100 01 00 01020304")


@given(st.lists(st.binary(max_size=60), max_size=8), st.lists(st.integers(1, 40)), st.booleans())
def test_payloads_come_out_however_the_stream_is_cut(
    payloads: list[bytes], cuts: list[int], prefixed: bool
) -> None:
    prefix = MESSAGE_PREFIX if prefixed else b""
    stream = prefix + b"".join(map(_framed, payloads))
    reader = FrameReader(_MOST, prefix)
    taken: list[bytes] = []
    at = 0
    for cut in [*cuts, len(stream)]:
        reader.receive(stream[at : at + cut])
        at += cut
        taken += _taken(reader)
    assert taken == payloads
    assert (reader.consumed_bytes, reader.waiting_bytes, reader.needed_bytes) == (len(stream), 0, 0)
    reader.ended()


@given(st.binary(max_size=60), st.binary(max_size=60))
def test_any_bytes_are_payloads_or_a_named_fault(first: bytes, second: bytes) -> None:
    """Invariant 10."""
    reader = FrameReader(20)
    try:
        for part in (first, second):
            reader.receive(part)
            assert all(len(payload) <= 20 for payload in _taken(reader))
        reader.ended()
    except FramingError as error:
        named = error.fault.value in str(error)
    else:
        named = True
    assert named


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (b"mxg", FramingFault.PREFIX),
        (b"x", FramingFault.PREFIX),
        (b"raw" + _framed(b""), FramingFault.PREFIX),
        (b"msg" + bytes.fromhex("01010101 01 00 00000000"), FramingFault.VERSION),
        (b"msg" + bytes.fromhex("00000000 01 00 00000000"), FramingFault.VERSION),
        (b"msg" + bytes.fromhex("01010100 02 00 00000000"), FramingFault.TYPE),
        (b"msg" + bytes.fromhex("01010100 00 00 00000000"), FramingFault.TYPE),
        (b"msg" + bytes.fromhex("01010100 01 80 00000000"), FramingFault.FLAGS),
        (b"msg" + frame_header(_MOST + 1), FramingFault.TOO_BIG),
        (b"msg" + frame_header(0xFFFFFFFF), FramingFault.TOO_BIG),
    ],
)
def test_a_malformed_stream_is_named_at_the_first_byte_that_shows_it(
    stream: bytes, fault: FramingFault
) -> None:
    """C29, C33: a frame over the limit by its header alone."""
    reader = FrameReader(_MOST, MESSAGE_PREFIX)
    reader.receive(stream)
    with pytest.raises(FramingError) as raised:
        _taken(reader)
    assert raised.value.fault is fault


def test_the_largest_frame_is_taken() -> None:
    reader = FrameReader(_MOST)
    reader.receive(_framed(bytes(_MOST)))
    assert _taken(reader) == [bytes(_MOST)]


@pytest.mark.parametrize("cut", [1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1])
def test_a_stream_that_ends_within_a_frame_is_cut(cut: int) -> None:
    reader = FrameReader(_MOST)
    reader.receive(_framed(b"ab")[:cut])
    assert _taken(reader) == []
    with pytest.raises(FramingError) as raised:
        reader.ended()
    assert raised.value.fault is FramingFault.CUT


def test_what_a_frame_needs_is_known_from_its_header() -> None:
    """Flow control lets a whole frame in, however large, and no more."""
    reader = FrameReader(_MOST)
    reader.receive(_framed(b"a") + frame_header(500) + b"b")
    assert _taken(reader) == [b"a"]
    assert (reader.consumed_bytes, reader.needed_bytes) == (HEADER_BYTES + 1, HEADER_BYTES + 500)
