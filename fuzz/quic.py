"""What a QUIC peer may put on its streams: frames, messages and requests, plausible, odd and broken."""

from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cloudhub.v1.message_pb2 import Message
from fuzz.frames import frame_texts, recorded_frames
from fuzz.mutations import mutated
from fuzz.target import Check
from services.connector.frames import FrameError, decode_frame
from services.connector.quic.framing import MESSAGE_PREFIX, FrameReader, FramingError, frame_header
from services.connector.quic.messages import encode_message, parse_message
from services.connector.quic.request import RequestFault, answer_nack, read_request

_MOST_BYTES = 64 * 1024


def _payload(frame: bytes) -> bytes:
    """The protobuf message of a JSON frame; the frame itself where it is none."""
    try:
        return encode_message(decode_frame(frame))
    except FrameError:
        return frame


def _stream(payloads: list[bytes]) -> bytes:
    return MESSAGE_PREFIX + b"".join(frame_header(len(payload)) + payload for payload in payloads)


_STREAMS: SearchStrategy[bytes] = st.lists(frame_texts().map(_payload), max_size=3).map(_stream)


def streams() -> SearchStrategy[bytes]:
    """What comes on a stream of messages."""
    return st.one_of(_STREAMS, mutated(_STREAMS), st.binary(max_size=64))


def recorded_streams() -> list[bytes]:
    """A recorded conversation, message by message, as it would be over QUIC."""
    return [_stream([_payload(frame)]) for frame in recorded_frames()]


def check_stream(data: bytes) -> None:
    """Every payload is a message that says the same after the way back, or a fault with a reason; however the
    stream is cut, the same comes out."""
    whole, cut = _read(data, len(data) or 1), _read(data, 7)
    assert whole == cut, f"{data!r} is {whole}, and in pieces {cut}"


def _read(data: bytes, step: int) -> list[bytes | str]:
    reader, found = FrameReader(_MOST_BYTES, MESSAGE_PREFIX), list[bytes | str]()
    try:
        for at in range(0, len(data), step):
            reader.receive(data[at : at + step])
            while (payload := reader.next_payload()) is not None:
                found.append(_message(payload))
        reader.ended()
    except FramingError as error:
        found.append(error.fault.value)
    return found


def _message(payload: bytes) -> bytes | str:
    try:
        request = read_request(payload)
    except RequestFault as error:
        answer_nack(400, str(error), 0.0)
    else:
        assert all(isinstance(text, str) for pair in request.headers for text in pair)
    message = Message()
    try:
        parse_message(payload).fill(message)
    except FrameError as error:
        assert error.detail, f"{payload!r} is refused without a reason"
        return error.fault.value
    again = Message()
    parse_message(encode_message(message)).fill(again)
    assert again == message, f"{payload!r} is {message}, and after the way back {again}"
    return message.SerializeToString(deterministic=True)


@contextmanager
def streams_checked() -> Iterator[Check[bytes]]:
    """The readers need nothing."""
    yield check_stream
