"""When the request on a control stream is whole, or is none: `services.connector.quic.control_stream`."""

import json

import pytest

from cloudhub.v1.edge_pb2 import EdgeHeader, EdgeMessage, EdgeRouter
from services.connector.quic.control_stream import RequestReader, UnreadableRequest, ack_frame, nack_frame
from services.connector.quic.framing import FrameReader, frame_header


def framed(operation: str = "header", content: bytes = b'{"Node_id": ["edge-1"]}') -> bytes:
    payload = EdgeMessage(
        header=EdgeHeader(id="m1"), router=EdgeRouter(operation=operation), content=content
    ).SerializeToString()
    return frame_header(len(payload)) + payload


def test_a_request_is_read_when_its_last_byte_is_there_and_not_before() -> None:
    reader, sent = RequestReader(), framed()
    assert [reader.receive(sent[at : at + 1]) for at in range(len(sent) - 1)] == [None] * (len(sent) - 1)
    found = reader.receive(sent[-1:])
    assert found is not None
    assert (found.message_id, found.headers) == ("m1", (("Node_id", "edge-1"),))


@pytest.mark.parametrize(
    ("sent", "reason", "status"),
    [
        (frame_header(16 * 1024 + 1), "request_too_large", 431),
        (b"GET / HTTP/1.1\r\n", "bad_request", 400),
        (framed("update"), "bad_request", 400),
        (framed(content=b"[]"), "bad_request", 400),
    ],
)
def test_what_is_no_request_is_told_in_the_terms_of_http(sent: bytes, reason: str, status: int) -> None:
    with pytest.raises(UnreadableRequest) as refused:
        RequestReader().receive(sent)
    assert (refused.value.reason, refused.value.status) == (reason, status)
    assert refused.value.text


@pytest.mark.parametrize(
    ("frame", "operation", "content"),
    [
        (ack_frame("m1"), "ack", None),
        (nack_frame(429, "full", 2.4), "nack", {"status": 429, "text": "full", "retry_after_seconds": 2}),
        (nack_frame(403, "no", 0.0), "nack", {"status": 403, "text": "no"}),
    ],
)
def test_answers_are_whole_frames(frame: bytes, operation: str, content: object) -> None:
    reader = FrameReader(1024)
    reader.receive(frame)
    payload = reader.next_payload()
    assert payload is not None
    assert reader.waiting_bytes == 0
    answer = EdgeMessage.FromString(payload)
    assert answer.router.operation == operation
    assert json.loads(answer.content) == content
