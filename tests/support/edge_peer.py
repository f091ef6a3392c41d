"""An edge node as connectors see it: a WebSocket client with a certificate."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from websockets.asyncio.client import ClientConnection, connect

from tests.support.certs import Issued, TestAuthority

PROJECT = "e632aba927ea4ac2b575ec1603d56f10"


class EdgePeers:
    """Opens links to one connector with certificates of one CA, which are kept per node."""

    def __init__(self, authority: TestAuthority, port: int) -> None:
        self._authority = authority
        self._contexts: dict[str, ssl.SSLContext] = {}
        self.port = port

    def context(self, node_id: str) -> ssl.SSLContext:
        """The TLS settings of a node."""
        if node_id not in self._contexts:
            self._contexts[node_id] = self._authority.client_context(self._authority.node(node_id))
        return self._contexts[node_id]

    def context_of(self, issued: Issued | None) -> ssl.SSLContext:
        """TLS settings with any certificate, or none."""
        return self._authority.client_context(issued)

    async def open(
        self,
        node_id: str = "edge-1",
        *,
        context: ssl.SSLContext | None = None,
        headers: dict[str, str] | None = None,
        path: str | None = None,
        port: int | None = None,
        **options: Any,
    ) -> ClientConnection:
        """A link whose upgrade was answered 101; raises websockets' InvalidStatus otherwise. `port` is that
        of another connector."""
        return await connect(
            f"wss://localhost:{port or self.port}{path or f'/{PROJECT}/{node_id}/events'}",
            ssl=context or self.context(node_id),
            host="127.0.0.1",
            additional_headers=(
                {"Node_id": node_id, "Project_id": PROJECT, "Connectionuse": "msg"}
                if headers is None
                else headers
            ),
            compression=None,
            ping_interval=None,
            proxy=None,
            **{"open_timeout": 10, "close_timeout": 5, **options},
        )

    @asynccontextmanager
    async def link(self, node_id: str = "edge-1", **options: Any) -> AsyncIterator[ClientConnection]:
        """An open link that is closed (and its transport gone) when the block is left."""
        peer = await self.open(node_id, **options)
        try:
            yield peer
        finally:
            await peer.close()

    async def raw(
        self, node_id: str = "edge-1", *, context: ssl.SSLContext | None = None, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A TLS connection without WebSocket, for peers that misbehave; its receive buffer is small."""
        connected = socket.socket()
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
        connected.setblocking(False)
        await asyncio.get_running_loop().sock_connect(connected, ("127.0.0.1", self.port))
        return await asyncio.open_connection(
            sock=connected,
            ssl=context or self.context(node_id),
            server_hostname="localhost",
            **options,
        )

    async def upgraded(
        self, node_id: str = "edge-1", **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """The same with an admitted link; nothing of the hub's frames is read."""
        reader, writer = await self.raw(node_id, **options)
        writer.write(request_bytes(node_id))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 101 "), head
        return reader, writer


def frame_bytes(text: str) -> bytes:
    """A text frame in one piece, masked with zeros."""
    payload = text.encode()
    size = len(payload)
    header = bytes([0x81, 0x80 | size]) if size < 126 else b"\x81\xfe" + size.to_bytes(2, "big")
    return header + bytes(4) + payload


def request_bytes(node_id: str = "edge-1", headers: dict[str, str] | None = None) -> bytes:
    """An upgrade request as a stock edge sends it."""
    fields = headers or {
        "Host": "localhost",
        "User-Agent": "Go-http-client/1.1",
        "Connection": "Upgrade",
        "Connectionuse": "msg",
        "Node_id": node_id,
        "Project_id": PROJECT,
        "Sec-WebSocket-Key": "zPL6T0x2tfbY1eUIp9srYw==",
        "Sec-WebSocket-Version": "13",
        "Upgrade": "websocket",
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"GET /{PROJECT}/{node_id}/events HTTP/1.1\r\n{lines}\r\n".encode()


def keepalive(message_id: str = "k1") -> str:
    """A frame that a stock edge sends."""
    return json.dumps(
        {
            "header": {"msg_id": message_id, "timestamp": 1},
            "route": {
                "source": "websocket",
                "group": "resource",
                "operation": "keepalive",
                "resource": "node",
            },
            "content": "ping",
        }
    )
