"""Edges that break the rules on links of their own: each has its node and a certificate."""

import asyncio
import contextlib
import json
import random
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

from chaos.hostile.acts import Act
from chaos.hostile.programs import Programs, object_message
from cloudhub.v1 import dispatcher_pb2 as pb
from edge.settings import DEFAULT_PROJECT

POISON_NODE = "hostile-poison"
FLAPPING_NODE = "hostile-flapping"
UPLOADING_NODE = "hostile-uploads"
HOSTILE_NODES = (POISON_NODE, FLAPPING_NODE, UPLOADING_NODE)
LINK_ENDS = (OSError, EOFError, ssl.SSLError, ConnectionClosed, InvalidHandshake, TimeoutError)
"""What a link that is refused or cut raises."""
POISON_SECONDS = 90.0
"""Until a poison message has to be parked and what is behind it has arrived, whatever else is broken."""
_DIAL_SECONDS = 3.0
_FIRST_MESSAGE_SECONDS = 0.3
_AGAIN_SECONDS = 0.1
_KEEPALIVE_SECONDS = 1.0
_LOOK_SECONDS = 0.5
_UNREADABLE = 1007
"""The close code for a message that cannot be read (RFC 6455, 7.4.1)."""
_UPLOAD_BYTES = 4096


def contexts_from(certificates: Path) -> Callable[[str], ssl.SSLContext]:
    """The TLS settings of a node, from the files of `edge.certificates`; each is made once."""

    @cache
    def context_of(node_id: str) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=str(certificates / "ca.crt"))
        nodes = certificates / "nodes"
        context.load_cert_chain(nodes / f"{node_id}.crt", nodes / f"{node_id}.key")
        return context

    return context_of


class HostileEdges:
    """Dials whichever of `servers` (wss://HOST:PORT) is there, with the certificate that `context_of` a node
    has. What is for its nodes is published by `programs`."""

    def __init__(
        self,
        servers: Sequence[str],
        context_of: Callable[[str], ssl.SSLContext],
        programs: Programs,
        seed: int,
    ) -> None:
        self._servers = servers
        self._context_of = context_of
        self._programs = programs
        self._chance = random.Random(seed)
        self._uploads = 0

    @asynccontextmanager
    async def _link(self, node_id: str) -> AsyncIterator[ClientConnection]:
        """An admitted link; at the end it is cut, unless it was closed before. Raises one of LINK_ENDS."""
        server = self._chance.choice(self._servers)
        link = await connect(
            f"{server}/{DEFAULT_PROJECT}/{node_id}/events",
            ssl=self._context_of(node_id),
            additional_headers={"Node_id": node_id, "Project_id": DEFAULT_PROJECT, "Connectionuse": "msg"},
            compression=None,
            ping_interval=None,
            proxy=None,
            open_timeout=_DIAL_SECONDS,
            close_timeout=1.0,
        )
        async with kept_alive(link, node_id):
            yield link

    async def flap(self, act: Act) -> bool:
        """Opens so many links, each cut when it has brought a message or a moment has passed; whether any was
        admitted."""
        with contextlib.suppress(grpc.aio.AioRpcError):
            await self._programs.publish(object_message("flapping", act.number), [FLAPPING_NODE])
        admitted = False
        for _ in range(act.size):
            with contextlib.suppress(*LINK_ENDS):
                async with self._link(FLAPPING_NODE) as link:
                    admitted = True
                    async with asyncio.timeout(_FIRST_MESSAGE_SECONDS):
                        await link.recv()
            await asyncio.sleep(act.hold_seconds)
        return admitted

    async def upload(self, act: Act) -> bool:
        """Sends so many uploads in one go; whether the link was there to the end of them."""
        try:
            async with self._link(UPLOADING_NODE) as link:
                for _ in range(act.size):
                    self._uploads += 1
                    await link.send(_upload(self._uploads))
                await asyncio.sleep(act.hold_seconds)
        except LINK_ENDS:
            return False
        return True

    async def refuse_poison(self, act: Act) -> str:
        """Publishes a message on which the edge ends its link and one behind it; what is wrong with what came
        of them, empty if nothing. Raises AioRpcError if they could not be published, TimeoutError if the node
        cannot connect."""
        poison, behind = f"poison-{act.number}", f"behind-{act.number}"
        try:
            async with self._link(POISON_NODE):
                pass  # what is for a node that never connected expires soon
        except LINK_ENDS as error:
            raise TimeoutError("no connector lets the node in") from error
        for name in (poison, behind):
            (outcome,) = await self._programs.publish(object_message(name, act.number), [POISON_NODE])
            if outcome.outcome != pb.OUTCOME_ACCEPTED:
                return ""  # the node has both from an act of the same number
        arrived = asyncio.Event()
        edge = asyncio.create_task(self._refusing(poison, behind, arrived), name="edge that refuses")
        try:
            async with asyncio.timeout(POISON_SECONDS):
                await arrived.wait()
                while not await self._parked(poison):  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(_LOOK_SECONDS)
        except TimeoutError:
            what = "was not parked" if arrived.is_set() else f"keeps {behind} from its node"
            return f"{poison} {what} within {POISON_SECONDS:g} s"
        finally:
            edge.cancel()
            await asyncio.gather(edge, return_exceptions=True)
        return ""

    async def _parked(self, uid: str) -> bool:
        try:
            return bool(await self._programs.parked_reason(POISON_NODE, uid))
        except grpc.aio.AioRpcError:
            return False  # that dispatcher is down: another one will say

    async def _refusing(self, poison: str, behind: str, arrived: asyncio.Event) -> None:
        """Acknowledges all but the poison, on whatever links it takes."""
        while True:
            with contextlib.suppress(*LINK_ENDS):
                async with self._link(POISON_NODE) as link:
                    async for text in link:
                        message = json.loads(text)
                        name = message["route"]["resource"].rpartition("/")[2]
                        if name == poison:
                            await link.close(_UNREADABLE)
                            break
                        if name == behind:
                            arrived.set()
                        await link.send(_acknowledgement(message))
            await asyncio.sleep(_AGAIN_SECONDS)


@asynccontextmanager
async def kept_alive(link: ClientConnection, node_id: str) -> AsyncIterator[None]:
    """Keepalives on a node's link; at the end it is cut, not closed."""
    beating = asyncio.create_task(_keep_alive(link), name=f"keepalive of {node_id}")
    try:
        yield
    finally:
        beating.cancel()
        await asyncio.gather(beating, return_exceptions=True)
        link.transport.abort()
        await link.wait_closed()


async def _keep_alive(link: ClientConnection) -> None:
    header = {"msg_id": "alive", "timestamp": 1}
    route = {"source": "websocket", "group": "resource", "operation": "keepalive", "resource": "node"}
    beat = json.dumps({"header": header, "route": route, "content": "ping"})
    while True:
        await link.send(beat)
        await asyncio.sleep(_KEEPALIVE_SECONDS)


def _acknowledgement(message: dict[str, Any]) -> str:
    parent_id = message["header"]["msg_id"]
    return json.dumps(
        {
            "header": {"msg_id": f"{parent_id}-ok", "parent_msg_id": parent_id, "timestamp": 1},
            "route": {"source": "edged", "group": "resource", "operation": "response", "resource": "x"},
            "content": "OK",
        }
    )


def _upload(number: int) -> str:
    return json.dumps(
        {
            "header": {"msg_id": f"hostile-{number}", "timestamp": 1},
            "route": {"source": "hostile", "group": "user", "operation": "upload", "resource": "data"},
            "content": {"number": number, "text": "x" * _UPLOAD_BYTES},
        }
    )
