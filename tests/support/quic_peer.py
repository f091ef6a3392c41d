"""An edge node as connectors see it over QUIC: aioquic's client with a certificate, free of rules."""

import asyncio
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import (
    ConnectionTerminated,
    HandshakeCompleted,
    QuicEvent,
    StreamDataReceived,
)

from cloudhub.v1.edge_pb2 import EdgeHeader, EdgeMessage, EdgeRouter
from services.connector.quic.framing import MESSAGE_PREFIX, FrameReader, frame_header
from services.connector.quic.setup import PROTOCOL
from tests.support.certs import Issued, TestAuthority
from tests.support.edge_peer import PROJECT

HOST = "127.0.0.1"
CONTROL, UP, DOWN = 0, 2, 3


def framed(message: EdgeMessage | bytes) -> bytes:
    """A message as it goes on a stream."""
    payload = message if isinstance(message, bytes) else message.SerializeToString()
    return frame_header(len(payload)) + payload


def request(node_id: str, headers: dict[str, list[str]] | None = None) -> EdgeMessage:
    """What an edge says first."""
    content = headers or {"Node_id": [node_id], "Project_id": [PROJECT], "Connectionuse": ["msg"]}
    return EdgeMessage(
        header=EdgeHeader(id="request-1"),
        router=EdgeRouter(operation="header", resource="header"),
        content=json.dumps(content).encode(),
    )


def keepalive(message_id: str = "k1") -> EdgeMessage:
    """A message that every edge sends."""
    return EdgeMessage(
        header=EdgeHeader(id=message_id, timestamp_ms=1),
        router=EdgeRouter(source="websocket", group="resource", operation="keepalive", resource="node"),
        content=b'"ping"',
    )


class QuicPeer(QuicConnectionProtocol):
    """One connection; what happens to it is kept until somebody asks."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self.over: asyncio.Future[ConnectionTerminated] = self._loop.create_future()
        self.handshaken: asyncio.Future[HandshakeCompleted] = self._loop.create_future()
        self._answer = FrameReader(1 << 20)
        self._down = FrameReader(1 << 25, MESSAGE_PREFIX)
        self._answers: asyncio.Queue[EdgeMessage] = asyncio.Queue()
        self._messages: asyncio.Queue[EdgeMessage] = asyncio.Queue()
        self.hears = math.inf
        """Of the hub's datagrams so many; it is `deaf` to those that come then."""
        self.deaf: asyncio.Future[None] = self._loop.create_future()
        self._heard = 0
        self._vanished = False

    @property
    def quic(self) -> QuicConnection:
        """The connection itself, to break rules with."""
        return self._quic

    @property
    def ended(self) -> ConnectionTerminated | None:
        """How the connection was closed, as soon as the other side's word is here."""
        return self._quic._close_event

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        if not self._quic._network_paths:
            return  # It did not dial yet: whoever had this port before is meant.
        self._heard += 1
        if self._heard <= self.hears:
            super().datagram_received(data, addr)
            # The event comes after a time of draining, which is long where round trips are.
            if self.ended and not self.over.done():
                self.over.set_result(self.ended)
        elif not self.deaf.done():
            self.deaf.set_result(None)

    def transmit(self) -> None:
        if not self._vanished:
            super().transmit()

    def vanish(self) -> None:
        """Says nothing more, not even that it goes. Its owner closes its socket."""
        self._vanished = True
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, HandshakeCompleted) and not self.handshaken.done():
            self.handshaken.set_result(event)
        elif isinstance(event, StreamDataReceived):
            reader, queue = (
                (self._answer, self._answers) if event.stream_id == CONTROL else (self._down, self._messages)
            )
            reader.receive(event.data)
            while (payload := reader.next_payload()) is not None:
                queue.put_nowait(EdgeMessage.FromString(payload))
        elif isinstance(event, ConnectionTerminated) and not self.over.done():
            self.over.set_result(event)

    def write(self, stream_id: int, data: bytes, *, fin: bool = False) -> None:
        """Puts bytes on a stream."""
        self._quic.send_stream_data(stream_id, data, fin)
        self.transmit()

    async def closed(self) -> ConnectionTerminated:
        """How the connection ended, when it has."""
        async with asyncio.timeout(10):
            return await asyncio.shield(self.over)

    async def answer(self) -> EdgeMessage:
        """The hub's word on the request."""
        async with asyncio.timeout(10):
            return await self._answers.get()

    async def message(self) -> EdgeMessage:
        """The next message of the hub."""
        async with asyncio.timeout(10):
            return await self._messages.get()

    def ask(self, node_id: str, headers: dict[str, list[str]] | None = None) -> None:
        """Requests a link."""
        self.write(CONTROL, framed(request(node_id, headers)))

    def begin(self) -> None:
        """Begins the stream of messages."""
        self.write(UP, MESSAGE_PREFIX)

    def say(self, *messages: EdgeMessage) -> None:
        """Sends messages."""
        self.write(UP, b"".join(map(framed, messages)))


class QuicPeers:
    """Opens connections to one connector with certificates of one CA, which are kept per node."""

    def __init__(self, authority: TestAuthority, port: int) -> None:
        self._authority = authority
        self._issued: dict[str, Issued] = {}
        self.port = port

    def issued(self, node_id: str) -> Issued:
        """The certificate of a node."""
        if node_id not in self._issued:
            self._issued[node_id] = self._authority.node(node_id)
        return self._issued[node_id]

    def configuration(self, issued: Issued | None, **changes: Any) -> QuicConfiguration:
        """How a client with that certificate, or none, is set up."""
        values: dict[str, Any] = {
            "alpn_protocols": [PROTOCOL],
            "server_name": "localhost",
            "cafile": str(self._authority.certificate),
            "idle_timeout": 30.0,
        }
        configuration = QuicConfiguration(**(values | changes))
        if issued is not None:
            configuration.load_cert_chain(issued.certificate, issued.key)
        return configuration

    async def dial(
        self, issued: Issued | None, *, local: str = HOST, port: int | None = None, **changes: Any
    ) -> tuple[asyncio.DatagramTransport, QuicPeer]:
        """A connection whose handshake has begun; its socket is not connected, so that it may change."""
        configuration = self.configuration(issued, **changes)
        transport, peer = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: QuicPeer(QuicConnection(configuration=configuration)), local_addr=(local, 0)
        )
        peer.connect((HOST, port or self.port))
        return transport, peer

    @asynccontextmanager
    async def connection(self, issued: Issued | None, **changes: Any) -> AsyncIterator[QuicPeer]:
        """A connection that is closed when the block is left."""
        transport, peer = await self.dial(issued, **changes)
        try:
            yield peer
        finally:
            peer.close()
            transport.close()

    @asynccontextmanager
    async def link(self, node_id: str = "edge-1", **changes: Any) -> AsyncIterator[QuicPeer]:
        """An admitted link that is closed, with a word to the hub, when the block is left."""
        transport, peer = await self.dial(self.issued(node_id), **changes)
        try:
            peer.ask(node_id)
            peer.begin()
            answer = await peer.answer()
            assert answer.router.operation == "ack", answer
            yield peer
        finally:
            peer._quic.close(error_code=1000, reason_phrase="bye")
            peer.transmit()
            transport.close()
