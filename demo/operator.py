"""What an operator of the demo asks the hub for."""

from dataclasses import dataclass

import grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub
from cloudhub.v1.sessions_pb2 import GetLimitsRequest
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub


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


class Operator:
    """Reads the admin services."""

    def __init__(self, dispatcher: grpc.aio.Channel, sessions: grpc.aio.Channel) -> None:
        self._dispatcher = DispatcherAdminStub(dispatcher)
        self._sessions = SessionsAdminStub(sessions)

    async def figures(self) -> HubFigures:
        """The present figures, all nodes."""
        nodes: list[pb.NodeDelivery] = []
        token = ""
        while True:
            page = await self._dispatcher.ListNodes(pb.ListNodesRequest(page_size=1000, page_token=token))
            nodes.extend(page.nodes)
            token = page.next_page_token
            if not token:
                break
        limits = await self._sessions.GetLimits(GetLimitsRequest())
        return HubFigures(
            nodes=len(nodes),
            sessions=limits.nodes,
            pending=sum(node.pending for node in nodes),
            parked=sum(node.parked for node in nodes),
            in_flight=sum(node.in_flight for node in nodes),
            last_seq=sum(node.last_seq for node in nodes),
        )

    async def explain(self, node_id: str, object_key: str) -> pb.ExplainDeliveryResponse | None:
        """Where the newest message about an object is; None if the hub knows nothing of it."""
        try:
            return await self._dispatcher.ExplainDelivery(
                pb.ExplainDeliveryRequest(node_id=node_id, object_key=object_key)
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
