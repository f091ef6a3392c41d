"""Programs with a certificate of a publisher that do what harms others if anything does, in a process of
their own: `python -m tests.support.attacks KIND ADDRESS CERTIFICATE KEY CA`, until it is killed. It says how
much it did on a line per second."""

import asyncio
import json
import ssl
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from services.runtime.clock import SystemClock
from services.runtime.rpc import open_channel
from services.runtime.security import MutualTls
from services.runtime.tls_files import TlsFiles
from tests.support.certs import Issued
from tests.support.raw_http2 import DATA, END_STREAM, RawClient, frame, message_prefix

PUBLISH = "/cloudhub.v1.DispatcherService/Publish"
CONNECTIONS, CALLS = 8, 100
LARGE_BYTES, LARGE_NODES, UNKNOWN_NODES = 884 * 1024, 20, 10_000


class Attacker:
    """One caller. `done` counts calls that are over."""

    def __init__(self, address: str, issued: Issued, ca: Path) -> None:
        self.address = address
        self.issued = issued
        self.ca = ca
        self.done = 0

    # Calls as fast as HTTP/2 lets them go, over connections that obey nothing.

    async def flood(self) -> None:
        """As many as it may have and more, each answered at once by a refusal."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CONNECTIONS):
                group.create_task(self._flood_one())

    async def _flood_one(self) -> None:
        context = ssl.create_default_context(cafile=str(self.ca))
        context.load_cert_chain(self.issued.certificate, self.issued.key)
        context.set_alpn_protocols(["h2"])
        host, port = self.address.rsplit(":", 1)
        while True:
            with suppress(OSError, ssl.SSLError):
                client = await RawClient.connect(host, int(port), context)
                running = asyncio.create_task(client.run())
                while not client.ended.is_set() and not client.writer.is_closing():
                    streams = [client.open(PUBLISH) for _ in range(CALLS)]
                    for stream in streams:
                        client.writer.write(frame(DATA, END_STREAM, stream, message_prefix(0)))
                    await client.writer.drain()
                    async with client.came:
                        await client.came.wait_for(lambda: client.over(streams[-1]))  # noqa: B023
                    client.frames.clear()
                    self.done += CALLS
                running.cancel()
                await client.close()
            await asyncio.sleep(0.05)

    # Publishes of as much as one may ask for, four at a time.

    async def large(self) -> None:
        """To nodes that do not exist."""
        nodes = [f"large-{number}" for number in range(LARGE_NODES)]
        await self._publish_on(lambda number: self._request(nodes, number, LARGE_BYTES))

    async def unknown(self) -> None:
        """To as many ids as a call may name, of which there is none."""
        nodes = [f"unknown-{number}" for number in range(UNKNOWN_NODES)]
        await self._publish_on(lambda number: self._request(nodes, number, 10))

    @staticmethod
    def _request(nodes: list[str], number: int, size_bytes: int) -> pb.PublishRequest:
        name = f"cm{number % 8}"
        content = {"metadata": {"name": name, "uid": f"uid-{name}"}, "data": "x" * size_bytes}
        return pb.PublishRequest(
            node_ids=nodes,
            message=Message(
                source="edgecontroller",
                group="resource",
                operation="update",
                resource=f"default/configmap/{name}",
                resource_version=str(number + 1),
                content=json.dumps(content).encode(),
            ),
        )

    async def _publish_on(self, request: Callable[[int], pb.PublishRequest]) -> None:
        security = MutualTls(TlsFiles(self.issued.certificate, self.issued.key, self.ca), SystemClock())
        async with open_channel(self.address, security) as channel:
            stub: Any = DispatcherServiceStub(channel)

            async def one(number: int) -> None:
                while True:
                    with suppress(grpc.aio.AioRpcError):
                        await stub.Publish(request(number), timeout=30)
                    number += 4
                    self.done += 1

            async with asyncio.TaskGroup() as group:
                for number in range(4):
                    group.create_task(one(number))


async def _main(kind: str, address: str, certificate: str, key: str, ca: str) -> None:
    attacker = Attacker(address, Issued(Path(certificate), Path(key)), Path(ca))
    attack: Callable[[], Coroutine[Any, Any, None]] = getattr(attacker, kind)
    async with asyncio.TaskGroup() as group:
        group.create_task(attack())
        while True:
            print(attacker.done, flush=True)
            await asyncio.sleep(1.0)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
