"""What an operator of the demo asks the hub for."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub
from cloudhub.v1.enrolment_pb2 import CreateTokenRequest, ListRevokedNodesRequest
from cloudhub.v1.enrolment_pb2_grpc import EnrolmentAdminStub
from cloudhub.v1.sessions_pb2 import GetLimitsRequest, ListInstancesRequest
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from demo.pages import pages

if TYPE_CHECKING:
    from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminAsyncStub

TOKEN_SECONDS = 600.0


class Process(NamedTuple):
    """A live process of the hub, and the nodes that it holds."""

    service: str
    nodes: int


@dataclass(frozen=True, slots=True)
class HubFigures:
    """Sums over all nodes."""

    nodes: int = 0
    sessions: int = 0
    pending: int = 0
    parked: int = 0
    in_flight: int = 0
    last_seq: int = 0
    """Messages ever accepted, over all nodes."""
    unsettled: int = 0
    """Pending and not parked, of nodes that can connect."""
    processes: tuple[Process, ...] = ()


async def _nodes(dispatcher: "DispatcherAdminAsyncStub") -> list[pb.NodeDelivery]:
    return [node async for page in pages(dispatcher.ListNodes, pb.ListNodesRequest()) for node in page.nodes]


class Operator:
    """Calls the admin services."""

    def __init__(self, dispatchers: Sequence[grpc.aio.Channel], sessions: grpc.aio.Channel) -> None:
        self._dispatchers = [DispatcherAdminStub(channel) for channel in dispatchers]
        self._sessions = SessionsAdminStub(sessions)
        self._enrolment = EnrolmentAdminStub(sessions)
        self.locked_out: frozenset[str] = frozenset()
        """Nodes that cannot connect: what waits for them is waited for by nobody."""

    async def figures(self) -> HubFigures:
        """The present figures, all nodes."""
        # The outbox is one for all; what is in flight, each dispatcher knows of its own sessions.
        in_flight = 0
        for dispatcher in self._dispatchers:
            nodes = await _nodes(dispatcher)
            in_flight += sum(node.in_flight for node in nodes)
        limits = await self._sessions.GetLimits(GetLimitsRequest())
        listed = await self._sessions.ListInstances(ListInstancesRequest())
        return HubFigures(
            nodes=len(nodes),
            sessions=limits.nodes,
            pending=sum(node.pending for node in nodes),
            parked=sum(node.parked for node in nodes),
            in_flight=in_flight,
            last_seq=sum(node.last_seq for node in nodes),
            unsettled=sum(
                node.pending - node.parked for node in nodes if node.node_id not in self.locked_out
            ),
            processes=tuple(Process(one.service, one.nodes) for one in listed.instances),
        )

    async def revoked(self) -> list[str]:
        """Nodes whose certificates are refused."""
        request = ListRevokedNodesRequest()
        found = pages(self._enrolment.ListRevokedNodes, request)
        return [node.node_id async for page in found for node in page.nodes if not node.enrolled_since]

    async def join_token(self, node_id: str) -> str:
        """With which the node gets its first certificate, soon and once."""
        request = CreateTokenRequest(node_pattern=node_id, uses=1, valid_seconds=TOKEN_SECONDS)
        return (await self._enrolment.CreateToken(request)).join_token

    async def explain(self, node_id: str, object_key: str) -> pb.ExplainDeliveryResponse | None:
        """Where the newest message about an object is; None if the hub knows nothing of it."""
        try:
            return await self._dispatchers[0].ExplainDelivery(
                pb.ExplainDeliveryRequest(node_id=node_id, object_key=object_key)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
