"""Invariant 10: input that nobody should send, at a hub under load. Each has a clear answer; what it harms,
the checks of the scenario find."""

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from demo.hub import Hub
from tests.support.edge_peer import frame_bytes, request_bytes
from tests.support.hub import request

RUDE = "rude-1"
"""A node of its own, for links that misbehave once they are open."""
_ANSWER_SECONDS = 20.0
_PUBLISHES: list[tuple[str, pb.PublishRequest]] = [
    ("message.resource_version", request(RUDE, version="")),
    ("message.resource_version", request(RUDE, version="-1")),
    ("message.resource_version", request(RUDE, version="9" * 21)),
    ("node_ids", request("Not A Node")),
    ("message.content", request(RUDE)),
]
_PUBLISHES[-1][1].message.content = b'{"metadata": '
_Way = Callable[[], Awaitable[str]]


class BadInput:
    """A stranger, a node and a program, all of which get it wrong."""

    def __init__(self, hub: Hub, host: str, certificates: Path, victim: str) -> None:
        self._hub = hub
        self._host = host
        self._port = hub.ports[0].edges
        self._certificates = certificates
        self._victim = victim

    async def breaches(self) -> list[str]:
        """What had another answer than it should have."""
        found = await self._publishes()
        ways: list[tuple[str, set[str], _Way]] = [
            ("no TLS", {"closed"}, self._plain),
            ("no certificate", {"TLS alert"}, self._no_certificate),
            ("another node's path", {"403"}, self._foreign_path),
            ("no request", {"400"}, self._no_request),
            # With no room for one node more, the link is refused as those of others are.
            ("no JSON", {"1007", "429"}, self._no_json),
        ]
        for what, wanted, way in ways:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS):
                    answer = await way()
            except TimeoutError:
                answer = "silence"
            if answer not in wanted:
                found.append(f"{what} was answered by {answer}, not {' or '.join(sorted(wanted))}")
        return found

    async def _publishes(self) -> list[str]:
        found: list[str] = []
        async with self._hub.dispatchers[0].open_channel() as channel:
            cloud: Any = DispatcherServiceStub(channel)
            for field, bad in _PUBLISHES:
                (outcome,) = (await cloud.Publish(bad, timeout=_ANSWER_SECONDS)).outcomes
                if (outcome.outcome, outcome.field) != (pb.OUTCOME_REJECTED, field) or not outcome.detail:
                    found.append(f"a publish with a bad {field} was answered {outcome}")
            admin: Any = DispatcherAdminStub(channel)
            try:
                await admin.InspectNode(pb.InspectNodeRequest(node_id="\x00"), timeout=_ANSWER_SECONDS)
                found.append("a node id of zero bytes was looked for")
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.INVALID_ARGUMENT or not error.details():
                    found.append(f"a node id of zero bytes was answered {error.code()}")
        return found

    def _context(self, *, with_certificate: bool = True) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(self._certificates / "ca.crt"))
        if with_certificate:
            nodes = self._certificates / "nodes"
            context.load_cert_chain(nodes / f"{RUDE}.crt", nodes / f"{RUDE}.key")
        return context

    async def _plain(self) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(request_bytes(RUDE))
            await reader.read()  # an alert, perhaps
        except ConnectionError:
            pass
        finally:
            writer.transport.abort()
        return "closed"

    async def _no_certificate(self) -> str:
        try:
            return await self._answer(self._context(with_certificate=False), request_bytes(RUDE))
        except (ssl.SSLError, ConnectionError, asyncio.IncompleteReadError):
            return "TLS alert"

    async def _foreign_path(self) -> str:
        return await self._answer(self._context(), request_bytes(self._victim))

    async def _no_request(self) -> str:
        return await self._answer(self._context(), b"\x00\xff\r\n\r\n")

    async def _no_json(self) -> str:
        return await self._answer(self._context(), request_bytes(RUDE), frame_bytes('{"header": '))

    async def _answer(self, context: ssl.SSLContext, opening: bytes, frame: bytes = b"") -> str:
        """The status of the answer; after a 101 the code that closes the link on which the frame was sent."""
        reader, writer = await asyncio.open_connection(
            self._host, self._port, ssl=context, server_hostname=self._host
        )
        try:
            writer.write(opening)
            status = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1].decode()
            if status != "101" or not frame:
                return status
            writer.write(frame)
            while True:
                first, size = await reader.readexactly(2)
                if size == 126:
                    size = int.from_bytes(await reader.readexactly(2))
                content = await reader.readexactly(size)
                if first & 0xF == 0x8:
                    return str(int.from_bytes(content[:2]))
        finally:
            writer.transport.abort()
