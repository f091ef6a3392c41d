"""What the agent puts on the streams of a QUIC link; the hub's own reader is the measure."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1.edge_pb2 import EdgeMessage, EdgeRouter
from cloudhub.v1.message_pb2 import Message as HubMessage
from edge import protocol
from edge.protocol import MalformedFrame
from edge.quic_framing import MESSAGES_BEGIN, Unframer, framed, frames_of, json_of, read_answer, request
from services.connector.quic.framing import MESSAGE_PREFIX, FrameReader
from services.connector.quic.messages import encode_message, parse_message
from services.connector.quic.request import answer_ack, answer_nack, read_request

_TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
_JSON: st.SearchStrategy[Any] = st.sampled_from([None, "OK", {"a": [1, "\u00e9"]}, 1.5, []])


@st.composite
def _messages(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "header": {
            "msg_id": draw(_TEXT),
            "parent_msg_id": draw(_TEXT),
            "timestamp": draw(st.integers(-(2**60), 2**60)),
            "resourceversion": draw(_TEXT),
            "sync": draw(st.booleans()),
            "traceparent": draw(_TEXT),
        },
        "route": {name: draw(_TEXT) for name in ("source", "group", "operation", "resource")},
        "content": draw(_JSON),
    }


@given(st.lists(_messages(), max_size=4))
def test_the_hub_reads_what_the_agent_writes(messages: list[dict[str, Any]]) -> None:
    reader = FrameReader(1 << 20, MESSAGE_PREFIX)
    reader.receive(MESSAGES_BEGIN + frames_of(json.dumps(message).encode() for message in messages))
    for message in messages:
        payload = reader.next_payload()
        assert payload is not None
        read = HubMessage()
        parse_message(payload).fill(read)
        header, route = message["header"], message["route"]
        assert (read.id, read.parent_id, read.timestamp_ms, read.resource_version, read.sync) == tuple(
            header[name] for name in ("msg_id", "parent_msg_id", "timestamp", "resourceversion", "sync")
        )
        assert (read.source, read.group, read.operation, read.resource) == tuple(route.values())
        assert json.loads(read.content) == message["content"]
    assert reader.next_payload() is None


@given(st.lists(_messages(), max_size=4), st.integers(1, 30))
def test_the_agent_reads_what_the_hub_writes(messages: list[dict[str, Any]], step: int) -> None:
    stream = MESSAGE_PREFIX
    for message in messages:
        header, route = message["header"], message["route"]
        sent = HubMessage(
            id=header["msg_id"],
            parent_id=header["parent_msg_id"],
            timestamp_ms=header["timestamp"],
            resource_version=header["resourceversion"],
            sync=header["sync"],
            traceparent=header["traceparent"],
            content=json.dumps(message["content"]).encode(),
            **route,
        )
        stream += framed(encode_message(sent))
    unframer = Unframer(1 << 20, MESSAGES_BEGIN)
    read: list[bytes] = []
    for at in range(0, len(stream), step):
        unframer.feed(stream[at : at + step])
        while (payload := unframer.next()) is not None:
            read.append(json_of(payload))
    assert [protocol.decode(one) for one in read] == [
        protocol.decode(json.dumps(one).encode()) for one in messages
    ]


def test_the_hub_reads_the_request_and_the_agent_its_answers() -> None:
    reader = FrameReader(1 << 14)
    reader.receive(request({"Node_id": "edge-1", "Project_id": "p"}))
    payload = reader.next_payload()
    assert payload is not None
    assert read_request(payload).headers == (("Node_id", "edge-1"), ("Project_id", "p"))
    assert read_answer(answer_ack("id")) is None
    assert read_answer(answer_nack(429, "full", 4.6)) == (429, "full", 5.0)
    assert read_answer(answer_nack(403, "no", 0.0)) == (403, "no", 0.0)


@pytest.mark.parametrize(
    "stream",
    [
        b"xxx",
        MESSAGES_BEGIN + bytes(10),
        MESSAGES_BEGIN + framed(b"")[:4] + b"\x02\x00" + bytes(4),
        MESSAGES_BEGIN + framed(b"")[:6] + b"\xff\xff\xff\xff",
        MESSAGES_BEGIN + framed(b"\xff\xff"),
        MESSAGES_BEGIN + framed(bytes(1001))[:20],
    ],
)
def test_what_no_hub_sends_is_told(stream: bytes) -> None:
    unframer = Unframer(1000, MESSAGES_BEGIN)
    unframer.feed(stream)
    with pytest.raises(MalformedFrame):
        payload = unframer.next()
        assert payload is not None
        json_of(payload)


@pytest.mark.parametrize(
    "payload",
    [b"\xff", b"", EdgeMessage(router=EdgeRouter(operation="nack"), content=b"[]").SerializeToString()],
)
def test_an_answer_that_is_none_is_told(payload: bytes) -> None:
    with pytest.raises(MalformedFrame):
        read_answer(payload)
