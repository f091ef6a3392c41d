"""The services of a hub as the command line calls them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from cloudhub.v1 import connector_pb2, dispatcher_pb2, sessions_pb2
from cloudhub.v1.connector_pb2_grpc import ConnectorAdminStub
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from ctl.faults import CtlFault, ExitCode, fault_of

if TYPE_CHECKING:
    from cloudhub.v1.connector_pb2_grpc import ConnectorAdminAsyncStub
    from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminAsyncStub, DispatcherServiceAsyncStub
    from cloudhub.v1.sessions_pb2_grpc import SessionsAdminAsyncStub

Answer = TypeVar("Answer")
PAGE = 1000
MOST_MESSAGE_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Access:
    """Where the services are, and how they are spoken to."""

    dispatcher: str
    """HOST:PORT; of several dispatchers all, with commas between."""
    sessions: str
    connector: str
    ca: Path | None = None
    """With it, TLS: the certificates that the services' are signed by."""
    cert: Path | None = None
    key: Path | None = None
    server_name: str = ""
    """The name in the services' certificates, where it is not that of their address."""
    timeout_seconds: float = 10.0
    """Of one call."""

    def check(self) -> None:
        """Raises CtlFault for what cannot be."""
        for service in ("dispatcher", "sessions", "connector"):
            for address in getattr(self, service).split(","):
                host, _, port = address.rpartition(":")
                if not host or not port.isdigit():
                    raise CtlFault(ExitCode.USAGE, f"--{service}: {address!r} should be HOST:PORT")
        if (self.cert is None) != (self.key is None):
            raise CtlFault(ExitCode.USAGE, "--cert and --key: a certificate and its key go together")
        if self.cert is not None and self.ca is None:
            raise CtlFault(
                ExitCode.USAGE, "--ca: a certificate of one's own needs the CA of the services too"
            )


def _read(flag: str, path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise CtlFault(ExitCode.USAGE, f"--{flag}: {path} cannot be read ({error.strerror})") from error


def open_channel(address: str, access: Access) -> grpc.aio.Channel:
    """A channel to one service: TLS if `access` names a CA. Raises CtlFault for files that cannot be read."""
    options: list[tuple[str, int | str]] = [
        ("grpc.max_receive_message_length", MOST_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MOST_MESSAGE_BYTES),
    ]
    if access.ca is None:
        return grpc.aio.insecure_channel(address, options=options)
    if access.server_name:
        options.append(("grpc.ssl_target_name_override", access.server_name))
    credentials = grpc.ssl_channel_credentials(
        _read("ca", access.ca), _read("key", access.key), _read("cert", access.cert)
    )
    return grpc.aio.secure_channel(address, credentials, options=options)


class Service:
    """One process of a hub; its calls fail with CtlFault."""

    def __init__(self, kind: str, address: str, channel: grpc.aio.Channel, timeout_seconds: float) -> None:
        self.kind = kind
        self.address = address
        self.channel = channel
        self._timeout = timeout_seconds

    async def call(
        self,
        method: "grpc.aio.UnaryUnaryMultiCallable[Any, Answer]",
        request: object,
        *,
        limited: bool = True,
    ) -> Answer:
        """The answer to a request; `limited` calls get the timeout."""
        try:
            return await method(request, timeout=self._timeout if limited else None)
        except grpc.aio.AioRpcError as error:
            raise fault_of(error, self.kind, self.address, self._timeout) from error

    async def stream(
        self, method: "grpc.aio.UnaryStreamMultiCallable[Any, Answer]", request: object
    ) -> AsyncIterator[Answer]:
        """The answers to a request, without an end: raises CtlFault when the service stops."""
        answered = False
        lost = CtlFault(
            ExitCode.UNREACHABLE, f"{self.kind} at {self.address} was stopped or lost; ask it anew"
        )
        try:
            async for answer in method(request):
                answered = True
                yield answer
            raise lost
        except grpc.aio.AioRpcError as error:
            code = error.code()
            if code is grpc.StatusCode.CANCELLED or (code is grpc.StatusCode.UNAVAILABLE and answered):
                raise lost from error
            raise fault_of(error, self.kind, self.address, self._timeout) from error


class Dispatcher(Service):
    """A dispatcher."""

    @property
    def publishing(self) -> "DispatcherServiceAsyncStub":
        """Its service for programs."""
        return DispatcherServiceStub(self.channel)

    @property
    def admin(self) -> "DispatcherAdminAsyncStub":
        """Its service for operators."""
        return DispatcherAdminStub(self.channel)

    async def nodes(
        self, prefix: str = "", *, only_parked: bool = False, older_than_seconds: float | None = None
    ) -> list[dispatcher_pb2.NodeDelivery]:
        """All nodes that the hub knows, or those with a prefix, a parked message, an old one."""
        request = dispatcher_pb2.ListNodesRequest(
            page_size=PAGE, node_id_prefix=prefix, only_parked=only_parked
        )
        if older_than_seconds is not None:
            request.oldest_pending_over.FromMilliseconds(round(older_than_seconds * 1000))
        found: list[dispatcher_pb2.NodeDelivery] = []
        while True:
            page = await self.call(self.admin.ListNodes, request)
            found.extend(page.nodes)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


class Sessions(Service):
    """A sessions process."""

    @property
    def admin(self) -> "SessionsAdminAsyncStub":
        """Its service for operators."""
        return SessionsAdminStub(self.channel)

    async def listed(self, request: sessions_pb2.ListSessionsRequest) -> list[sessions_pb2.Session]:
        """All sessions that a request asks for."""
        request.page_size = PAGE
        found: list[sessions_pb2.Session] = []
        while True:
            page = await self.call(self.admin.ListSessions, request)
            found.extend(page.sessions)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def instances(self) -> list[sessions_pb2.Instance]:
        """Every live process of the hub."""
        answer = await self.call(self.admin.ListInstances, sessions_pb2.ListInstancesRequest())
        return list(answer.instances)


class Connector(Service):
    """A connector."""

    @property
    def admin(self) -> "ConnectorAdminAsyncStub":
        """Its service for operators."""
        return ConnectorAdminStub(self.channel)

    async def links(self, prefix: str = "") -> list[connector_pb2.Link]:
        """All links of this connector."""
        request = connector_pb2.ListLinksRequest(page_size=PAGE, node_id_prefix=prefix)
        found: list[connector_pb2.Link] = []
        while True:
            page = await self.call(self.admin.ListLinks, request)
            found.extend(page.links)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token


class Hub:
    """An async context: the services of a hub, each dialled when it is first called."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._open = AsyncExitStack()

    async def __aenter__(self) -> "Hub":
        access = self._access
        self.dispatchers = [
            Dispatcher("dispatcher", address, await self._channel(address), access.timeout_seconds)
            for address in access.dispatcher.split(",")
        ]
        address = access.sessions
        self.sessions = Sessions("sessions", address, await self._channel(address), access.timeout_seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _channel(self, address: str) -> grpc.aio.Channel:
        return await self._open.enter_async_context(open_channel(address, self._access))

    @property
    def dispatcher(self) -> Dispatcher:
        """Any: what is stored, all of them know."""
        return self.dispatchers[0]

    async def dispatcher_of(self, node_id: str) -> Dispatcher:
        """The one that holds the node's session, which alone knows what is in flight; any, if none does."""
        if len(self.dispatchers) == 1:
            return self.dispatcher
        request = dispatcher_pb2.InspectNodeRequest(node_id=node_id, page_size=1)

        async def holds(one: Dispatcher) -> bool:
            try:
                return (await one.call(one.admin.InspectNode, request)).node.connected
            except CtlFault as fault:
                if fault.code is ExitCode.NOT_FOUND:
                    return False
                raise

        held = await asyncio.gather(*map(holds, self.dispatchers))
        return next((one for one, here in zip(self.dispatchers, held, strict=True) if here), self.dispatcher)

    async def connector(self, name: str = "") -> Connector:
        """The connector of a name or id, at the address that it advertises; else that of --connector."""
        address = self._access.connector
        if name:
            found = [one for one in await self.sessions.instances() if one.service == "connector"]
            chosen = [one for one in found if name in (one.name, one.instance_id)]
            if not chosen:
                there = ", ".join(sorted(one.name for one in found)) or "none"
                raise CtlFault(ExitCode.NOT_FOUND, f"no connector {name} is attached; there is: {there}")
            if len(chosen) > 1:
                raise CtlFault(ExitCode.USAGE, f"{name} names {len(chosen)} connectors: give an instance id")
            address = chosen[0].address
        return Connector("connector", address, await self._channel(address), self._access.timeout_seconds)
