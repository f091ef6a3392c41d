"""The processes of a hub as the command line calls them; their calls fail with CtlFault."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloudhub.v1 import connector_pb2, dispatcher_pb2, enrolment_pb2, resources_pb2, sessions_pb2
from cloudhub.v1.connector_pb2_grpc import ConnectorAdminStub
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentAdminStub
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from ctl.faults import TRY_AGAIN, CtlFault, ExitCode, fault_of
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

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


@dataclass(frozen=True, slots=True)
class NodesFound:
    """What a dispatcher answered about nodes."""

    nodes: list[dispatcher_pb2.NodeDelivery]
    silent: list[dispatcher_pb2.SilentDispatcher]
    """Other dispatchers that it could not ask."""
    asked_others: bool
    """False: those of an older release do not."""


def merged(answers: Iterable[NodesFound]) -> list[dispatcher_pb2.NodeDelivery]:
    """What several dispatchers answered about nodes, in order of node id.

    What is stored, all of them know; what is in flight, only the one that holds the session; what is noted,
    the one that held it then.
    """
    found: dict[str, dispatcher_pb2.NodeDelivery] = {}
    for node in (node for answer in answers for node in answer.nodes):
        other = found.get(node.node_id)
        if node.connected or other is None:
            found[node.node_id], other = node, other or node
            node.last_note = node.last_note or other.last_note
        elif not other.last_note:
            other.last_note = node.last_note
    return [found[node_id] for node_id in sorted(found)]


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
        self,
        prefix: str = "",
        *,
        only_parked: bool = False,
        older_than_seconds: float | None = None,
        everywhere: bool = False,
    ) -> "NodesFound":
        """All nodes that the hub knows, or those with a prefix, a parked message, an old one; `everywhere`:
        with what the other dispatchers know of them."""
        request = dispatcher_pb2.ListNodesRequest(
            page_size=PAGE, node_id_prefix=prefix, only_parked=only_parked, everywhere=everywhere
        )
        if older_than_seconds is not None:
            request.oldest_pending_over.FromMilliseconds(round(older_than_seconds * 1000))
        nodes: list[dispatcher_pb2.NodeDelivery] = []
        silent: dict[str, dispatcher_pb2.SilentDispatcher] = {}
        asked_others = everywhere
        async for page in self.pages(self.admin.ListNodes, request):
            nodes.extend(page.nodes)
            silent |= {one.dispatcher_id: one for one in page.silent}
            asked_others = asked_others and page.everywhere
        return NodesFound(nodes, list(silent.values()), asked_others)


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

    async def count(self) -> int:
        """How many links it has."""
        return (await self.call(self.admin.GetResources, resources_pb2.GetResourcesRequest())).links

    async def drain(self, request: connector_pb2.DrainRequest) -> connector_pb2.DrainResponse:
        """Returns when no link is left, or at its deadline."""
        return await self.call(self.admin.Drain, request, limited=False)


class AttachedConnector:
    """A connector by way of a dispatcher: it need not be reached itself."""

    def __init__(self, dispatcher: Dispatcher, name: str) -> None:
        self._dispatcher = dispatcher
        self._name = name

    async def _page(self, request: connector_pb2.ListLinksRequest) -> connector_pb2.ListLinksResponse:
        asked = dispatcher_pb2.ListConnectorLinksRequest(connector=self._name, request=request)
        return await self._dispatcher.call(self._dispatcher.admin.ListConnectorLinks, asked)

    async def links(self, prefix: str = "") -> list[connector_pb2.Link]:
        """All links of this connector."""
        request = connector_pb2.ListLinksRequest(page_size=PAGE, node_id_prefix=prefix)
        found: list[connector_pb2.Link] = []
        while True:
            page = await self._page(request)
            found.extend(page.links)
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    async def count(self) -> int:
        """How many links it has."""
        return (await self._page(connector_pb2.ListLinksRequest(page_size=1))).total

    async def drain(self, request: connector_pb2.DrainRequest) -> connector_pb2.DrainResponse:
        """Returns when no link is left, or at its deadline."""
        asked = dispatcher_pb2.DrainConnectorRequest(connector=self._name, request=request)
        return await self._dispatcher.call(self._dispatcher.admin.DrainConnector, asked, limited=False)
