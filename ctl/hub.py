"""The services of a hub as the command line calls them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloudhub.v1 import connector_pb2, dispatcher_pb2, enrolment_pb2, sessions_pb2
from cloudhub.v1.connector_pb2_grpc import ConnectorAdminStub
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentAdminStub
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from ctl.faults import TRY_AGAIN, UNKNOWN, CtlFault, ExitCode, fault_of, unknown_nodes
from ctl.output import note
from services.runtime.clock import SystemClock
from services.runtime.errors import StartupError
from services.runtime.rpc import open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, MutualTls, Security
from services.runtime.settings import check_address, got
from services.runtime.tls_files import TlsFiles

if TYPE_CHECKING:
    from cloudhub.v1.connector_pb2_grpc import ConnectorAdminAsyncStub
    from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminAsyncStub, DispatcherServiceAsyncStub
    from cloudhub.v1.enrolment_pb2_grpc import EnrolmentAdminAsyncStub
    from cloudhub.v1.sessions_pb2_grpc import SessionsAdminAsyncStub

Answer = TypeVar("Answer")
PAGE = 1000
_NODES_AT_ONCE = 10_000
# How long one dispatcher of several may hold up the answer of the others.
_MAX_SILENCE_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Access:
    """Where the services are, and how they are spoken to."""

    dispatcher: str
    """HOST:PORT; of several dispatchers all, with commas between."""
    sessions: str
    connector: str
    ca: Path | None = None
    """With it, `cert` and `key`: TLS, as an operator or publisher (docs/operations/certificates.md)."""
    cert: Path | None = None
    key: Path | None = None
    timeout_seconds: float = 10.0
    """Of one call."""

    def check(self) -> None:
        """Raises CtlFault for what cannot be."""
        for service in ("dispatcher", "sessions", "connector"):
            for address in getattr(self, service).split(","):
                try:
                    check_address(address)
                except ValueError as fault:
                    raise CtlFault(ExitCode.USAGE, f"--{service}: {fault}{got(address)}") from None
        if len({path is None for path in (self.ca, self.cert, self.key)}) > 1:
            raise CtlFault(
                ExitCode.USAGE,
                "--ca, --cert and --key go together: TLS wants the hub's CA, your certificate and its key",
            )


def security_of(access: Access) -> Security:
    """TLS if `access` names a CA, else plaintext, which stays on this machine. Raises CtlFault for files that
    cannot be used."""
    if access.ca is None or access.cert is None or access.key is None:
        return PLAINTEXT_LOOPBACK
    try:
        return MutualTls(TlsFiles(access.cert, access.key, access.ca), SystemClock(), note)
    except StartupError as error:
        raise CtlFault(ExitCode.USAGE, str(error)) from error


def dial(address: str, security: Security) -> grpc.aio.Channel:
    """A channel to one service. Raises CtlFault for an address that needs TLS."""
    try:
        return open_channel(address, security)
    except StartupError as error:
        raise CtlFault(ExitCode.USAGE, f"{error} (--cert, --key and --ca)") from error


class Service:
    """One process of a hub; its calls fail with CtlFault."""

    def __init__(
        self,
        kind: str,
        address: str,
        channel: grpc.aio.Channel,
        timeout_seconds: float,
        security: Security = PLAINTEXT_LOOPBACK,
    ) -> None:
        self.kind = kind
        self.address = address
        self.channel = channel
        self._timeout = timeout_seconds
        self._security = security

    async def _fault(self, error: grpc.aio.AioRpcError, seconds: float = 0.0) -> CtlFault:
        why = ""
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            # gRPC does not say what a handshake failed for.
            why = await self._security.explain(self.address)
        return fault_of(error, self.kind, self.address, seconds or self._timeout, why)

    async def silence(self) -> CtlFault | None:
        """Why it does not answer at all; None: it does, whatever its health is."""
        seconds = min(self._timeout, _MAX_SILENCE_SECONDS)
        health: Any = health_pb2_grpc.HealthStub(self.channel)
        try:
            await health.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
        except grpc.aio.AioRpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                return await self._fault(error, seconds)
        return None

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
            raise await self._fault(error) from error

    async def pages(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Any, Answer]", request: Any
    ) -> AsyncIterator[Answer]:
        """The answers to a request, page by page."""
        while True:
            page: Any = await self.call(method, request)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

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
            if code is grpc.StatusCode.CANCELLED or (answered and code in TRY_AGAIN):
                raise lost from error
            raise await self._fault(error) from error


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

    async def unknown(self, node_ids: Sequence[str]) -> list[str]:
        """Those among the ids that name no node that the hub knows."""
        found: list[str] = []
        for start in range(0, len(node_ids), _NODES_AT_ONCE):
            request = dispatcher_pb2.FindUnknownNodesRequest(
                node_ids=node_ids[start : start + _NODES_AT_ONCE]
            )
            found.extend((await self.call(self.publishing.FindUnknownNodes, request)).node_ids)
        return found

    async def nodes(
        self, prefix: str = "", *, only_parked: bool = False, older_than_seconds: float | None = None
    ) -> list[dispatcher_pb2.NodeDelivery]:
        """All nodes that the hub knows, or those with a prefix, a parked message, an old one."""
        request = dispatcher_pb2.ListNodesRequest(
            page_size=PAGE, node_id_prefix=prefix, only_parked=only_parked
        )
        if older_than_seconds is not None:
            request.oldest_pending_over.FromMilliseconds(round(older_than_seconds * 1000))
        return [one async for page in self.pages(self.admin.ListNodes, request) for one in page.nodes]


class Sessions(Service):
    """A sessions process."""

    @property
    def admin(self) -> "SessionsAdminAsyncStub":
        """Its service for operators."""
        return SessionsAdminStub(self.channel)

    @property
    def enrolment(self) -> "EnrolmentAdminAsyncStub":
        """Its service about tokens and certificates, for operators."""
        return EnrolmentAdminStub(self.channel)

    async def certificates(self, prefix: str = "") -> list[enrolment_pb2.NodeCertificate]:
        """All certificates of nodes whose ids begin so."""
        request = enrolment_pb2.ListCertificatesRequest(page_size=PAGE, node_id_prefix=prefix)
        return [
            one
            async for page in self.pages(self.enrolment.ListCertificates, request)
            for one in page.certificates
        ]

    async def revoked(self, prefix: str = "") -> list[enrolment_pb2.RevokedNode]:
        """All revoked nodes whose ids begin so."""
        request = enrolment_pb2.ListRevokedNodesRequest(page_size=PAGE, node_id_prefix=prefix)
        pages = self.pages(self.enrolment.ListRevokedNodes, request)
        return [one async for page in pages for one in page.nodes]

    async def tokens(self) -> list[enrolment_pb2.Token]:
        """All join tokens, the newest first."""
        request = enrolment_pb2.ListTokensRequest(page_size=PAGE)
        return [one async for page in self.pages(self.enrolment.ListTokens, request) for one in page.tokens]

    async def limits(self) -> sessions_pb2.GetLimitsResponse:
        """The limits, with the nodes of all connectors and projects."""
        request = sessions_pb2.GetLimitsRequest(page_size=PAGE)
        answer = sessions_pb2.GetLimitsResponse()
        async for page in self.pages(self.admin.GetLimits, request):
            answer.MergeFrom(page)
        answer.next_page_token = ""
        return answer

    async def listed(self, request: sessions_pb2.ListSessionsRequest) -> list[sessions_pb2.Session]:
        """All sessions that a request asks for."""
        request.page_size = PAGE
        return [one async for page in self.pages(self.admin.ListSessions, request) for one in page.sessions]

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
        return [one async for page in self.pages(self.admin.ListLinks, request) for one in page.links]


Kind = TypeVar("Kind", bound=Service)


class Hub:
    """An async context: the services of a hub, each dialled when it is first called."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._open = AsyncExitStack()
        self._reachable: list[Dispatcher] | None = None

    async def __aenter__(self) -> "Hub":
        self._security = security_of(self._access)
        self.dispatchers = [
            await self._dialled(Dispatcher, "dispatcher", address)
            for address in self._access.dispatcher.split(",")
        ]
        self.sessions = await self._dialled(Sessions, "sessions", self._access.sessions)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._open.aclose()

    async def _dialled(self, kind: type[Kind], name: str, address: str) -> Kind:
        channel = await self._open.enter_async_context(dial(address, self._security))
        return kind(name, address, channel, self._access.timeout_seconds, self._security)

    async def reachable(self) -> list[Dispatcher]:
        """The dispatchers that answer; of several the others are told once, beside the answer.

        Raises CtlFault if none does."""
        if self._reachable is None:
            self._reachable = self.dispatchers
            if len(self.dispatchers) > 1:
                faults = await asyncio.gather(*(one.silence() for one in self.dispatchers))
                self._reachable = [
                    one for one, fault in zip(self.dispatchers, faults, strict=True) if fault is None
                ]
                lost = [fault for fault in faults if fault is not None]
                if not self._reachable:
                    raise lost[0]
                for fault in lost:
                    note(f"cloudhubctl: {fault}; what is in flight there is not known")
        return self._reachable

    async def any_dispatcher(self) -> Dispatcher:
        """One that answers: what is stored, all of them know. Raises CtlFault if none does."""
        return (await self.reachable())[0]

    async def dispatcher_of(self, node_id: str) -> Dispatcher:
        """The one that holds the node's session, which alone knows what is in flight; any, if none does.
        Raises CtlFault if none answers."""
        dispatchers = await self.reachable()
        if len(dispatchers) == 1:
            return dispatchers[0]
        request = dispatcher_pb2.InspectNodeRequest(node_id=node_id, page_size=1)

        async def holds(one: Dispatcher) -> bool:
            try:
                return (await one.call(one.admin.InspectNode, request)).node.connected
            except CtlFault as fault:
                if fault.code is ExitCode.NOT_FOUND:
                    return False
                raise

        held = await asyncio.gather(*map(holds, dispatchers))
        return next((one for one, here in zip(dispatchers, held, strict=True) if here), dispatchers[0])

    async def about(
        self, node_id: str, method: "grpc.aio.UnaryUnaryMultiCallable[Any, Answer]", request: object
    ) -> Answer:
        """What sessions answers about a node. It knows nodes that had a session; whether the hub knows the id
        at all, a dispatcher says."""
        try:
            return await self.sessions.call(method, request)
        except CtlFault as fault:
            if fault.reason in UNKNOWN and await self._is_misspelt(node_id):
                raise unknown_nodes([node_id]) from fault
            raise

    async def _is_misspelt(self, node_id: str) -> bool:
        try:
            asked = await self.any_dispatcher()
            request = dispatcher_pb2.InspectNodeRequest(node_id=node_id, page_size=1)
            await asked.call(asked.admin.InspectNode, request)
        except CtlFault as fault:
            return fault.reason in UNKNOWN
        return False

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
        return await self._dialled(Connector, "connector", address)
