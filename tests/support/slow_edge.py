"""An edge behind a slow link: it takes so many bytes a second and acknowledges what it has whole."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.support.edge_peer import EdgePeers, frame_bytes

_TICK_SECONDS = 0.1
# Bytes that wait in this process at most; the receive buffer of the socket is small as well, so the hub
# meets a full window like that of a slow wire.
_LIMIT_BYTES = 4096


class SlowEdge:
    """Made by `slow_edge`."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self.acknowledged = 0
        self._writer = writer
        self._buffer = bytearray()

    async def run(self, reader: asyncio.StreamReader, bytes_per_second: int) -> None:
        """Reads and acknowledges until the link ends."""
        while data := await reader.read(int(bytes_per_second * _TICK_SECONDS)):
            self._buffer += data
            while (message := self._message()) is not None:
                self._acknowledge(message)
            await asyncio.sleep(_TICK_SECONDS)

    def _message(self) -> dict[str, dict[str, str]] | None:
        """The next whole frame: text in one piece, not masked, as the hub sends."""
        if len(self._buffer) < 4:
            return None
        size, head = self._buffer[1], 2
        assert size < 127, "a message of this test is shorter"
        if size == 126:
            size, head = int.from_bytes(self._buffer[2:4], "big"), 4
        if len(self._buffer) < head + size:
            return None
        message: dict[str, dict[str, str]] = json.loads(self._buffer[head : head + size])
        del self._buffer[: head + size]
        return message

    def _acknowledge(self, message: dict[str, dict[str, str]]) -> None:
        header, route = message["header"], message["route"]
        answer = {
            "header": {
                "msg_id": f"ack-{header['msg_id']}",
                "parent_msg_id": header["msg_id"],
                "timestamp": 1,
            },
            "route": {**route, "operation": "response"},
            "content": "OK",
        }
        self._writer.write(frame_bytes(json.dumps(answer)))
        self.acknowledged += 1


@asynccontextmanager
async def slow_edge(peers: EdgePeers, node_id: str, bytes_per_second: int) -> AsyncIterator[SlowEdge]:
    """An admitted link of the node, cut when the block is left."""
    reader, writer = await peers.upgraded(node_id, limit=_LIMIT_BYTES)
    try:
        edge = SlowEdge(writer)
        reading = asyncio.create_task(edge.run(reader, bytes_per_second))
        try:
            yield edge
        finally:
            if not reading.done():
                reading.cancel()
            await asyncio.wait([reading])
            if not reading.cancelled():
                reading.result()
                raise AssertionError(f"the hub ended the link of {node_id}")
    finally:
        writer.transport.abort()
