"""What a stock edge was recorded to say, sent again byte for byte over a real link."""

import asyncio
import json
from typing import Any

from websockets.frames import Frame, Opcode

from cloudhub.v1 import message_pb2
from services.connector.app import ConnectorApp
from services.connector.frames import decode_frame
from tests.connector.conftest import fixture_path
from tests.support.edge_peer import EdgePeers, request_bytes
from tests.support.link_dispatcher import LinkDispatcher


def _entries(link: int) -> list[dict[str, Any]]:
    lines = fixture_path("edge_link_transcript.jsonl").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["link"] == link]


def _frames(link: int, direction: str) -> list[str]:
    return [entry["frame"] for entry in _entries(link) if entry["dir"] == direction]


async def _read_text(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readexactly(2)
    assert head[0] == 0x81
    size = head[1]
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2), "big")
    return await reader.readexactly(size)


def _fields(message: message_pb2.Message) -> tuple[Any, ...]:
    return tuple(
        getattr(message, field.name) for field in message.DESCRIPTOR.fields if field.name not in ("extra",)
    )


async def test_the_recorded_links_work_with_the_recorded_bytes(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    for number in (1, 2):
        (connect,) = (json.loads(frame) for frame in _frames(number, "connect"))
        reader, writer = await peers.raw("edge-1")
        request = request_bytes("edge-1", connect["headers"])
        assert connect["path"].encode() in request
        writer.write(request)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        ups = _frames(number, "up")
        before = len(dispatcher.upstream)
        for text in ups:
            writer.write(Frame(Opcode.TEXT, text.encode()).serialize(mask=True))
        after = before + len(ups)
        await dispatcher.until(lambda n=after: len(dispatcher.upstream) >= n)  # type: ignore[misc]
        received = dispatcher.upstream[before:]
        assert [frame.size_bytes for frame in received] == [len(text) for text in ups]
        for frame, text in zip(received, ups, strict=True):
            expected = json.loads(text)
            header, route, message = expected["header"], expected["route"], frame.message
            assert message.id == header["msg_id"]
            assert message.parent_id == header.get("parent_msg_id", "")
            assert message.timestamp_ms == header["timestamp"]
            for name in ("source", "group", "operation", "resource"):
                assert getattr(message, name) == route.get(name, "")
            assert json.loads(message.content) == expected["content"]
            assert message.content in text.encode()
            assert not message.extra
        downs = [text for text in _frames(number, "down") if text != '{"not json']
        messages = [decode_frame(text.encode()) for text in downs]
        if messages:
            dispatcher.send_messages(number, *messages)
        for text, message in zip(downs, messages, strict=True):
            arrived = await _read_text(reader)
            assert json.loads(arrived) == json.loads(text)
            assert message.content in text.encode()
            assert message.content in arrived
            assert _fields(decode_frame(arrived)) == _fields(message)
        writer.close()
        await dispatcher.until(lambda n=number: len(dispatcher.ended) == n)  # type: ignore[misc]
    assert len(dispatcher.upstream) == len(_frames(1, "up")) + len(_frames(2, "up")) > 15
