"""Edges that misbehave, played in the test's own process over sockets of a site.

Each breaks one rule and keeps the others: it has a certificate of its own node and, where the rule is about
an open link, sends its keepalives. What they may not disturb are the links of others.
"""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from chaos.hostile.edges import kept_alive
from demo.ports import HubPorts
from tests.lab.network import Site
from tests.support.edge_peer import PROJECT, frame_bytes, keepalive, request_bytes

# So small that a peer that does not read has closed its window after a few messages.
_RECEIVE_BUFFER_BYTES = 4096
_KEEPALIVE_SECONDS = 1.0
_DIAL_SECONDS = 10.0
# What a cut-off or refused link raises in its peer.
LINK_ENDS = (OSError, EOFError, ssl.SSLError, ConnectionClosed, InvalidStatus, TimeoutError)


@dataclass(slots=True)
class Peer:
    """One node, at a site. `counts` says what it did, for the table."""

    site: Site
    cloud_address: str
    certificates: Path
    node_id: str
    counts: dict[str, int] = field(default_factory=dict)
    got: list[str] = field(default_factory=list)
    """Ids of messages, by those who take them down."""
    seconds: list[float] = field(default_factory=list)
    """How long what it does took, each time."""
    _context: ssl.SSLContext | None = None

    def count(self, what: str) -> None:
        """It did this once more."""
        self.counts[what] = self.counts.get(what, 0) + 1

    def context(self) -> ssl.SSLContext:
        """Its certificate, and the CA that it trusts; made once, since reading them is the dearest part."""
        if self._context is not None:
            return self._context
        context = self._context = ssl.create_default_context(cafile=str(self.certificates / "ca.crt"))
        nodes = self.certificates / "nodes"
        context.load_cert_chain(nodes / f"{self.node_id}.crt", nodes / f"{self.node_id}.key")
        return context

    async def tcp(self) -> socket.socket:
        """A connection to the hub without a word."""
        made = self.site.socket()
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            made.setblocking(False)
            async with asyncio.timeout(_DIAL_SECONDS):
                await asyncio.get_running_loop().sock_connect(made, (self.cloud_address, HubPorts().edges))
        except BaseException:
            made.close()
            raise
        return made

    async def tls(self, context: ssl.SSLContext) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection whose TLS handshake is over."""
        return await asyncio.open_connection(
            sock=await self.tcp(), ssl=context, server_hostname=self.cloud_address
        )

    @asynccontextmanager
    async def link(self) -> AsyncIterator[ClientConnection]:
        """An admitted link with keepalives; at the end it is cut, not closed."""
        address = f"wss://{self.cloud_address}:{HubPorts().edges}/{PROJECT}/{self.node_id}/events"
        headers = {"Node_id": self.node_id, "Project_id": PROJECT, "Connectionuse": "msg"}
        link = await connect(
            address,
            sock=await self.tcp(),
            ssl=self.context(),
            server_hostname=self.cloud_address,
            additional_headers=headers,
            compression=None,
            ping_interval=None,
            proxy=None,
            open_timeout=_DIAL_SECONDS,
            max_queue=1,
        )
        async with kept_alive(link, self.node_id):
            yield link


async def again_and_again(play: Callable[[], Awaitable[object]], pause_seconds: float) -> None:
    """Plays until cancelled, whatever becomes of each link."""
    while True:
        with contextlib.suppress(*LINK_ENDS):
            await play()
        await asyncio.sleep(pause_seconds)


async def reads_nothing(peer: Peer, reads: threading.Event, over: threading.Event) -> None:
    """Not a byte after the hub's answer to its upgrade, so that its kernel closes the window; its keepalives
    go on. When it `reads` at last, it acknowledges all, until `over`."""
    connection = await peer.tcp()
    try:
        connection.settimeout(_DIAL_SECONDS)
        # asyncio's streams would read ahead, whether somebody wants the bytes or not.
        await asyncio.to_thread(_read_nothing, peer, connection, reads, over)
    finally:
        connection.close()


def _read_nothing(
    peer: Peer, connection: socket.socket, reads: threading.Event, over: threading.Event
) -> None:
    with peer.context().wrap_socket(connection, server_hostname=peer.cloud_address) as tls:
        tls.sendall(request_bytes(peer.node_id))
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += tls.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 "), answer
        peer.count("links")
        while not reads.wait(_KEEPALIVE_SECONDS):
            tls.sendall(frame_bytes(keepalive()))
        with tls.makefile("rb", 64 * 1024) as stream, contextlib.suppress(TimeoutError):
            while not over.is_set():
                message_id = json.loads(_text_of(stream))["header"]["msg_id"]
                peer.got.append(message_id)
                tls.sendall(frame_bytes(_answer(message_id, "response", "OK")))


def _text_of(stream: Any) -> bytes:
    """The next text frame, as the hub sends them: in one piece, not masked."""
    _, size = stream.read(2)
    if size == 126:
        size = int.from_bytes(stream.read(2))
    elif size == 127:
        size = int.from_bytes(stream.read(8))
    text: bytes = stream.read(size)
    return text


async def takes_slowly(peer: Peer) -> None:
    """It acknowledges what it has whole; how fast that is, is its wire's affair."""
    async with peer.link() as link:
        async for text in link:
            await link.send(_answer(json.loads(text)["header"]["msg_id"], "response", "OK"))
            peer.count("taken")


async def looks_in(peer: Peer) -> None:
    """It dials, waits for its first message and is gone, without an acknowledgement."""
    began = time.monotonic()
    async with peer.link() as link:
        await link.recv()
        peer.seconds.append(time.monotonic() - began)
        peer.count("returns")


async def reports_at_once(peer: Peer, reports: Sequence[str], stay_seconds: float) -> None:
    """It comes back and has all that to say, in one go; then it leaves."""
    _, writer = await _requested(peer, peer.context(), request_bytes(peer.node_id))
    try:
        writer.write(b"".join(map(frame_bytes, reports)))
        peer.count("storms")
        await asyncio.sleep(stay_seconds)
        writer.write(Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=True))
        await writer.drain()
    finally:
        writer.close()


async def acknowledges_nothing(peer: Peer) -> None:
    """It reads, and says nothing but keepalives."""
    async with peer.link() as link:
        async for _ in link:
            peer.count("received")


def _answer(parent_id: str, operation: str, content: Any) -> str:
    header = {"msg_id": "wrong", "parent_msg_id": parent_id, "timestamp": 1}
    route = {"source": "edged", "group": "resource", "operation": operation, "resource": "x"}
    return json.dumps({"header": header, "route": route, "content": content})


async def acknowledges_wrongly(peer: Peer, theirs: str) -> None:
    """Each message is answered with an id that nobody knows, the id of what another node got (`theirs`), its
    own id in part, an acknowledgement of an error, and a refusal whose text no database holds."""
    async with peer.link() as link:
        async for text in link:
            message_id = json.loads(text)["header"]["msg_id"]
            for parent_id in (f"{message_id}-x", theirs, message_id[:-1], "\x00", "y" * 10_000):
                await link.send(_answer(parent_id, "response", "OK"))
            await link.send(_answer(f"{message_id}-x", "error", "no \x00 space"))
            if peer.counts.get("answered", 0) % 2:
                await link.send(_answer(message_id, "error", "no \x00 space \ud800"))
            peer.count("answered")


async def comes_and_goes(peer: Peer, per_second: float) -> None:
    """So many dials a second, each cut as soon as it is admitted or refused, until cancelled."""
    context = peer.context()

    async def once() -> None:
        with contextlib.suppress(*LINK_ENDS):
            peer.count("dialled")
            _, writer = await _requested(peer, context, request_bytes(peer.node_id))
            writer.transport.abort()
            peer.count("admitted")

    async with asyncio.TaskGroup() as group:
        while True:
            group.create_task(once())
            await asyncio.sleep(1 / per_second)


async def _requested(
    peer: Peer, context: ssl.SSLContext, request: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await peer.tls(context)
    writer.write(request)
    try:
        async with asyncio.timeout(_DIAL_SECONDS):
            await reader.readuntil(b"\r\n\r\n")
    except BaseException:
        writer.transport.abort()
        raise
    return reader, writer


async def cuts_in_a_frame(peer: Peer) -> None:
    """A link whose connection ends in the middle of a frame."""
    _, writer = await _requested(peer, peer.context(), request_bytes(peer.node_id))
    frame = Frame(Opcode.TEXT, keepalive("cut").encode()).serialize(mask=True)
    writer.write(frame[: len(frame) // 2])
    await writer.drain()
    peer.count("in a frame")
    writer.transport.abort()


async def cuts_in_the_handshake(peer: Peer) -> None:
    """A connection that ends when half of the ClientHello is said."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        peer.context().wrap_bio(incoming, outgoing, server_hostname=peer.cloud_address).do_handshake()
    hello = outgoing.read()
    connection = await peer.tcp()
    try:
        await asyncio.get_running_loop().sock_sendall(connection, hello[: len(hello) // 2])
        peer.count("in TLS")
    finally:
        connection.close()


async def cuts_in_the_upgrade(peer: Peer) -> None:
    """A connection that ends in the middle of its request, or when that is whole and not answered yet."""
    for part in (0.5, 1.0):
        _, writer = await peer.tls(peer.context())
        request = request_bytes(peer.node_id)
        writer.write(request[: int(len(request) * part)])
        await writer.drain()
        peer.count("in the upgrade")
        writer.transport.abort()
