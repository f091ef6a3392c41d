"""A cloud side for tests of edges: one WSS server in this process, scripted by the test."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

Json = dict[str, Any]


class CloudLink:
    """One link of an edge as the cloud sees it."""

    def __init__(self, connection: ServerConnection, request: Request) -> None:
        self.connection = connection
        self.path = request.path
        self.headers = request.headers
        self.received: asyncio.Queue[Json] = asyncio.Queue()
        self.keepalives = 0
        self.ended = asyncio.Event()

    @property
    def node_id(self) -> str:
        """The node that the path names."""
        return self.path.split("/")[2]

    @property
    def common_name(self) -> str:
        """The name in the certificate that the edge showed."""
        tls: ssl.SSLObject = self.connection.transport.get_extra_info("ssl_object")
        subject: Any = (tls.getpeercert() or {}).get("subject", ())
        return str(dict(part[0] for part in subject)["commonName"])

    async def send(self, message: Json | str | bytes) -> None:
        """Sends a message, or a frame's text as it is."""
        await self.connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def next(self, timeout_seconds: float = 5.0) -> Json:
        """The next message that is no keepalive."""
        async with asyncio.timeout(timeout_seconds):
            return await self.received.get()

    async def run(self) -> None:
        """Collects what the edge sends until the link ends."""
        try:
            async for frame in self.connection:
                message: Json = json.loads(frame)
                if message["route"].get("operation") == "keepalive":
                    self.keepalives += 1
                    continue
                self.received.put_nowait(message)
        except ConnectionClosed:
            pass
        finally:
            self.ended.set()


class CloudSide:
    """Accepts edges that show a certificate of the CA; an async context.

    `folder` has the layout of `edge.certificates`. `refuse`, if set, answers an upgrade with a
    status and headers instead of accepting it.
    """

    def __init__(self, folder: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(folder / "server.crt", folder / "server.key")
        self._context.load_verify_locations(folder / "ca.crt")
        self._context.verify_mode = ssl.CERT_REQUIRED
        self._arrived: asyncio.Queue[CloudLink] = asyncio.Queue()
        self.links: list[CloudLink] = []
        self.refuse: tuple[HTTPStatus, dict[str, str]] | None = None
        self.refused = 0
        self._server: Server | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """What an edge's `--server` should be."""
        return f"wss://127.0.0.1:{self.port}"

    async def link(self, timeout_seconds: float = 10.0) -> CloudLink:
        """The next link that an edge opens."""
        async with asyncio.timeout(timeout_seconds):
            return await self._arrived.get()

    async def __aenter__(self) -> "CloudSide":
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listens, on the former port if there was one."""
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            self.port,
            ssl=self._context,
            process_request=self._admit,
            compression=None,
            ping_interval=None,
            max_size=None,
        )
        self.port = next(iter(self._server.sockets)).getsockname()[1]

    async def stop(self) -> None:
        """Closes every link and the listener."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    def _admit(self, connection: ServerConnection, _: Request) -> Response | None:
        if self.refuse is None:
            return None
        status, headers = self.refuse
        self.refused += 1
        response = connection.respond(status, f"{status.phrase}\n")
        for name, value in headers.items():
            response.headers[name] = value
        return response

    async def _serve(self, connection: ServerConnection) -> None:
        assert connection.request is not None
        link = CloudLink(connection, connection.request)
        self.links.append(link)
        self._arrived.put_nowait(link)
        await link.run()


_numbers = count(1)


def object_message(
    resource: str = "default/configmap/cm1",
    *,
    operation: str = "update",
    uid: str = "uid-1",
    version: str = "1",
    traceparent: str = "",
    data: str = "x",
) -> Json:
    """A message about an object, as a publisher's arrives at the edge."""
    namespace, kind, name = resource.split("/")
    header: Json = {
        "msg_id": f"cloud-{next(_numbers)}",
        "timestamp": 1795468263601,
        "resourceversion": version,
    }
    if traceparent:
        header["traceparent"] = traceparent
    metadata = {"name": name, "namespace": namespace, "uid": uid, "resourceVersion": version}
    return {
        "header": header,
        "route": {
            "source": "edgecontroller",
            "group": "resource",
            "operation": operation,
            "resource": resource,
        },
        "content": {"kind": kind, "metadata": metadata, "data": {"value": data}},
    }


def answer_to(request: Json, content: Any = "OK", operation: str = "response") -> Json:
    """The hub's answer to a message of an edge."""
    return {
        "header": {
            "msg_id": f"cloud-{next(_numbers)}",
            "parent_msg_id": request["header"]["msg_id"],
            "timestamp": 1795468263601,
        },
        "route": {
            "source": "cloudhub",
            "group": "resource",
            "operation": operation,
            "resource": request["route"].get("resource", ""),
        },
        "content": content,
    }


async def eventually(condition: Callable[[], bool], timeout_seconds: float = 10.0) -> None:
    """Waits until a condition of another process or thread holds."""
    async with asyncio.timeout(timeout_seconds):
        while not condition():  # noqa: ASYNC110 - it is not ours to signal
            await asyncio.sleep(0.01)


@asynccontextmanager
async def cloud_side(folder: Path) -> AsyncIterator[CloudSide]:
    """A running CloudSide."""
    async with CloudSide(folder) as cloud:
        yield cloud
