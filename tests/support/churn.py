"""Edge nodes that only come and go, in every way in which a link can begin and end, over real TLS."""

import abc
import asyncio
import enum
import itertools
import socket
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

from tests.support.edge_peer import EdgePeers, frame_bytes, keepalive, request_bytes

HOST = "127.0.0.1"
ANSWER_SECONDS = 60.0
# Closing with this linger resets the connection instead of ending it.
_RESET = struct.pack("ii", 1, 0)
_CLOSE_FRAME = b"\x88\x82\x00\x00\x00\x00\x03\xe8"  # 1000, masked with zeros
_CLOSE_OPCODE = 0x88


class Way(enum.Enum):
    """How one connection goes; the first five are admitted."""

    CLOSED = "closed by a close frame"
    ENDED = "ended without a close frame"
    RESET = "reset"
    TAKEN_OVER = "taken over by the node's next link"
    CUT_IN_FRAME = "cut within a frame"
    REFUSED = "refused, since the node is another one than the certificate's"
    CUT_IN_UPGRADE = "cut while the upgrade is decided"
    NO_REQUEST = "cut after the TLS handshake"
    HALF_REQUEST = "cut within the request"
    HALF_HANDSHAKE = "cut within the TLS handshake"
    NO_HANDSHAKE = "cut before the TLS handshake"


ADMITTED = frozenset({Way.CLOSED, Way.ENDED, Way.RESET, Way.TAKEN_OVER, Way.CUT_IN_FRAME})
# Of 20 connections, so many go each way.
MIX: dict[enum.Enum, int] = {
    Way.CLOSED: 5,
    Way.ENDED: 3,
    Way.RESET: 3,
    Way.TAKEN_OVER: 1,
    Way.CUT_IN_FRAME: 1,
    Way.REFUSED: 2,
    Way.CUT_IN_UPGRADE: 1,
    Way.NO_REQUEST: 1,
    Way.HALF_REQUEST: 1,
    Way.HALF_HANDSHAKE: 1,
    Way.NO_HANDSHAKE: 1,
}


def ways(mix: Mapping[enum.Enum, int]) -> Iterator[enum.Enum]:
    """The mix over and over, each way spread evenly."""
    total = sum(mix.values())
    places = [((index + 0.5) * total / count, way) for way, count in mix.items() for index in range(count)]
    places.sort(key=lambda place: place[0])
    return itertools.cycle([way for _, way in places])


_KEEPALIVE = frame_bytes(keepalive())


class Churn(abc.ABC):
    """Opens and ends connections, at most `at_once` at a time, each of a node that has no other one."""

    def __init__(self, node_ids: Iterable[str], at_once: int, mix: Mapping[enum.Enum, int]) -> None:
        nodes = list(node_ids)
        assert len(nodes) >= at_once
        self._shares = [nodes[number::at_once] for number in range(at_once)]
        self._mix = mix
        self.done: Counter[enum.Enum] = Counter()

    async def run(self, connections: int) -> None:
        """Makes that many connections; AssertionError when one is not answered as it should be."""
        turns = iter(range(connections))
        order = ways(self._mix)
        async with asyncio.TaskGroup() as group:
            for share in self._shares:
                group.create_task(self._worker(share, turns, order))

    @abc.abstractmethod
    async def crowd(self) -> None:
        """Has a link of every node open at once, then closes them all."""

    @property
    @abc.abstractmethod
    def admitted(self) -> int:
        """Sessions that were opened: a node that is taken over has two."""

    @property
    @abc.abstractmethod
    def undecided(self) -> int:
        """Connections that ended while their request was decided: some get a session, and some do not."""

    async def _worker(self, nodes: Sequence[str], turns: Iterator[int], order: Iterator[enum.Enum]) -> None:
        for _, node_id in zip(turns, itertools.cycle(nodes), strict=False):
            way = next(order)
            async with asyncio.timeout(ANSWER_SECONDS):
                await self._one(way, node_id)
            self.done[way] += 1

    @abc.abstractmethod
    async def _one(self, way: enum.Enum, node_id: str) -> None:
        """One connection from its beginning to its end."""


class WebSocketChurn(Churn):
    """Over TCP and TLS."""

    def __init__(self, peers: EdgePeers, node_ids: Iterable[str], at_once: int) -> None:
        nodes = list(node_ids)
        super().__init__(nodes, at_once, MIX)
        self._peers = peers
        for node_id in nodes:
            peers.context(node_id)

    async def crowd(self) -> None:
        nodes = [node_id for share in self._shares for node_id in share]
        some = asyncio.Semaphore(len(self._shares))

        async def opened(node_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            async with some, asyncio.timeout(ANSWER_SECONDS):
                reader, writer = await self._connect(node_id)
                await self._upgrade(reader, writer, node_id)
                return reader, writer

        for reader, writer in await asyncio.gather(*map(opened, nodes)):
            writer.write(_CLOSE_FRAME)
            await _until_closed(reader)
            writer.transport.abort()

    @property
    def admitted(self) -> int:
        return sum(self.done[way] for way in ADMITTED) + self.done[Way.TAKEN_OVER]

    @property
    def undecided(self) -> int:
        return self.done[Way.CUT_IN_UPGRADE]

    async def _one(self, way: enum.Enum, node_id: str) -> None:
        if way is Way.NO_HANDSHAKE or way is Way.HALF_HANDSHAKE:
            _, writer = await asyncio.open_connection(HOST, self._peers.port)
            if way is Way.HALF_HANDSHAKE:
                # The header of a record that says it is longer than what follows.
                writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
                await writer.drain()
            writer.close()
            await writer.wait_closed()
            return
        reader, writer = await self._connect(node_id)
        if way is Way.NO_REQUEST:
            _reset(writer)
        elif way is Way.HALF_REQUEST:
            writer.write(request_bytes(node_id)[:90])
            _reset(writer)
        elif way is Way.CUT_IN_UPGRADE:
            writer.write(request_bytes(node_id))
            await writer.drain()
            _reset(writer)
        elif way is Way.REFUSED:
            writer.write(request_bytes(f"{node_id}-else"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 403 ")
            writer.close()
        else:
            await self._upgrade(reader, writer, node_id)
            await self._end(way, reader, writer, node_id)
        writer.transport.abort()

    async def _connect(self, node_id: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            HOST, self._peers.port, ssl=self._peers.context(node_id), server_hostname="localhost"
        )

    async def _upgrade(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: str
    ) -> None:
        writer.write(request_bytes(node_id))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        writer.write(_KEEPALIVE)

    async def _end(
        self, way: enum.Enum, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, node_id: str
    ) -> None:
        if way is Way.CLOSED:
            writer.write(_CLOSE_FRAME)
            await _until_closed(reader)
        elif way is Way.TAKEN_OVER:
            later, later_writer = await self._connect(node_id)
            await self._upgrade(later, later_writer, node_id)
            await _until_closed(reader)
            later_writer.write(_CLOSE_FRAME)
            await _until_closed(later)
            later_writer.transport.abort()
        elif way is Way.CUT_IN_FRAME:
            writer.write(_KEEPALIVE[:40])
            await writer.drain()
            _reset(writer)
        elif way is Way.RESET:
            _reset(writer)
        else:
            writer.close()


async def _until_closed(reader: asyncio.StreamReader) -> None:
    """Reads the hub's frames up to its close frame and the end behind that."""
    while True:
        head = await reader.readexactly(2)
        size = head[1]
        if size == 126:
            size = int.from_bytes(await reader.readexactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await reader.readexactly(8), "big")
        await reader.readexactly(size)
        if head[0] == _CLOSE_OPCODE:
            await reader.read()
            return


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
