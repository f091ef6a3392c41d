"""ConnectorAdmin over gRPC."""

from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cloudhub.v1 import connector_pb2, connector_pb2_grpc, resources_pb2
from services.connector.edge_link import EdgeLink
from services.connector.links import Links
from services.connector.resources import ConnectorHoldings
from services.runtime.errors import InvalidRequest

_DEFAULT_PAGE = 100
_MOST_PAGE = 1000


class ConnectorAdminServicer(connector_pb2_grpc.ConnectorAdminServicer):
    """Speaks gRPC only; `drain(links_per_second, deadline_seconds)` is the app's."""

    def __init__(
        self,
        links: Links,
        monotonic: Callable[[], float],
        drain: Callable[[float, float], Awaitable[int]],
        holdings: ConnectorHoldings,
    ) -> None:
        self._links = links
        self._monotonic = monotonic
        self._drain = drain
        self._holdings = holdings

    async def ListLinks(
        self, request: connector_pb2.ListLinksRequest, context: Any
    ) -> connector_pb2.ListLinksResponse:
        if request.page_size > _MOST_PAGE:
            raise InvalidRequest("page_size", f"should be at most {_MOST_PAGE}, it is {request.page_size}")
        size = request.page_size or _DEFAULT_PAGE
        found = self._links.page(_read_token(request.page_token), request.node_id_prefix, size + 1)
        page, more = found[:size], len(found) > size
        now = self._monotonic()
        return connector_pb2.ListLinksResponse(
            links=[_describe(link, now) for link in page],
            next_page_token=f"{page[-1].identity.node_id}/{page[-1].number}" if more else "",
            total=len(self._links),
        )

    async def Drain(self, request: connector_pb2.DrainRequest, context: Any) -> connector_pb2.DrainResponse:
        for field in ("links_per_second", "deadline_seconds"):
            value = getattr(request, field)
            if not 0 <= value <= 1e9:
                raise InvalidRequest(field, f"should be 0 (the configured value) or above, it is {value}")
        closed = await self._drain(request.links_per_second, request.deadline_seconds)
        return connector_pb2.DrainResponse(closed=closed)

    async def GetResources(
        self, request: resources_pb2.GetResourcesRequest, context: Any
    ) -> resources_pb2.ConnectorResources:
        return self._holdings.resources(collect_garbage=request.collect_garbage)


def _read_token(token: str) -> tuple[str, int]:
    if not token:
        return "", 0
    node_id, _, number = token.rpartition("/")
    if not node_id or not number.isascii() or not number.isdigit() or len(number) > 20:
        raise InvalidRequest("page_token", "should be the next_page_token of a former answer")
    return node_id, int(number)


def _describe(link: EdgeLink, now: float) -> connector_pb2.Link:
    state = link.state
    assert state is not None
    opened = Timestamp()
    opened.FromMilliseconds(link.opened_at_ms)
    return connector_pb2.Link(
        link=link.number,
        node_id=link.identity.node_id,
        project_id=link.identity.project_id,
        transport=link.transport.kind,
        peer_address=link.transport.peer_address,
        epoch=state.epoch,
        dispatcher_id=link.stream.dispatcher_id if link.stream else "",
        opened_at=opened,
        idle_seconds=link.transport.idle_seconds(now),
        queued_frames=len(state.outbound),
        queued_bytes=state.outbound.queued_bytes,
        frames_received=state.inbound.received,
        frames_sent=state.frames_sent,
    )
