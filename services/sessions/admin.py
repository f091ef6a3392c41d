"""SessionsAdmin: what operators see and change."""

from collections.abc import AsyncIterator
from typing import Any

import grpc

from cloudhub.v1 import resources_pb2, sessions_pb2, sessions_pb2_grpc
from services.runtime.clock import Clock
from services.runtime.errors import InvalidRequest, NotFound, Refused
from services.runtime.logs import get_log
from services.runtime.resources import process_resources
from services.sessions import requests, wire
from services.sessions.limits import Scope
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.pages import page_start, page_token, place_start, place_token
from services.sessions.reaper import Reaper
from services.sessions.records import Eviction, Filter
from services.sessions.registry import Registry

DEFAULT_PAGE_SIZE = 100
MOST_PAGE_SIZE = 1000

Context = grpc.aio.ServicerContext[Any, Any]
log = get_log(__name__)


class AdminServicer(sessions_pb2_grpc.SessionsAdminServicer):
    """For operators, by grpcurl or programs."""

    def __init__(
        self, registry: Registry, notices: Notices, metrics: Metrics, clock: Clock, reaper: Reaper
    ) -> None:
        self._registry = registry
        self._notices = notices
        self._metrics = metrics
        self._clock = clock
        self._reaper = reaper

    async def ListSessions(
        self, request: sessions_pb2.ListSessionsRequest, context: Context
    ) -> sessions_pb2.ListSessionsResponse:
        wanted = requests.session_filter(request)
        size = request.page_size or DEFAULT_PAGE_SIZE
        if size > MOST_PAGE_SIZE:
            raise InvalidRequest("page_size", f"should be at most {MOST_PAGE_SIZE}; got {size}")
        after = page_start(wanted, request.page_token)
        if after is None:
            raise InvalidRequest("page_token", "should be the next_page_token of a call with the same filter")
        found = await self._registry.page(wanted, after, size + 1)
        shown = found[:size]
        return sessions_pb2.ListSessionsResponse(
            sessions=[wire.session_message(session) for session in shown],
            next_page_token=page_token(wanted, shown[-1].node_id) if len(found) > size else "",
        )

    async def GetSession(
        self, request: sessions_pb2.GetSessionRequest, context: Context
    ) -> sessions_pb2.GetSessionResponse:
        node_id = requests.node_id("node_id", request.node_id)
        session = await self._registry.get(node_id)
        if not session:
            raise _unknown(node_id)
        return sessions_pb2.GetSessionResponse(session=wire.session_message(session))

    async def WatchSessions(
        self, request: sessions_pb2.WatchSessionsRequest, context: Context
    ) -> AsyncIterator[sessions_pb2.WatchSessionsResponse]:
        prefix = requests.prefix(request.node_id_prefix)
        # Watching first: what changes while the present ones are listed comes after them, perhaps twice.
        with self._notices.watch(prefix) as watch:
            wanted, after, more = Filter(node_id_prefix=prefix), "", request.include_present
            while more:
                page = await self._registry.page(wanted, after, MOST_PAGE_SIZE)
                for session in page:
                    yield sessions_pb2.WatchSessionsResponse(session=wire.session_message(session))
                more = len(page) == MOST_PAGE_SIZE
                after = page[-1].node_id if page else ""
            while True:
                for session in await watch.take():
                    yield sessions_pb2.WatchSessionsResponse(session=wire.session_message(session))

    async def EvictSession(
        self, request: sessions_pb2.EvictSessionRequest, context: Context
    ) -> sessions_pb2.EvictSessionResponse:
        node_id = requests.node_id("node_id", request.node_id)
        with self._metrics.transaction("evict"):
            committed = await self._registry.evict(node_id, request.epoch, self._clock.wall_ms())
        self._notices.tell(committed)
        result = committed.results[0]
        if not result.session:
            raise _unknown(node_id)
        if result.eviction is Eviction.NO_SESSION:
            raise NotFound("NO_LIVE_SESSION", f"node {node_id} is not connected", node_id=node_id)
        if result.eviction is Eviction.OTHER_EPOCH:
            raise Refused(
                "OTHER_EPOCH",
                f"the live session of node {node_id} has epoch {result.session.epoch}, not {request.epoch}",
                node_id=node_id,
                epoch=str(result.session.epoch),
            )
        log.info(
            "session.evicted", node_id=node_id, epoch=result.session.epoch, outcome=result.eviction.value
        )
        return sessions_pb2.EvictSessionResponse(session=wire.session_message(result.session))

    async def GetLimits(
        self, request: sessions_pb2.GetLimitsRequest, context: Context
    ) -> sessions_pb2.GetLimitsResponse:
        size = request.page_size or MOST_PAGE_SIZE
        if size > MOST_PAGE_SIZE:
            raise InvalidRequest("page_size", f"should be at most {MOST_PAGE_SIZE}; got {size}")
        after = place_start(request.page_token)
        if request.page_token and after is None:
            raise InvalidRequest("page_token", "should be the next_page_token of a former call")
        usage = await self._registry.usage(after, size + 1)
        places = sorted(place for place in usage.counts if place[0] is not Scope.TOTAL)
        for place in places[size:]:
            usage.counts.pop(place)
        by_scope: dict[Scope, dict[str, int]] = {scope: {} for scope in Scope}
        for (scope, key), nodes in usage.counts.items():
            by_scope[scope][key] = nodes
        return sessions_pb2.GetLimitsResponse(
            limits=wire.limits_message(usage),
            nodes=by_scope[Scope.TOTAL].get("", 0),
            nodes_by_connector=by_scope[Scope.CONNECTOR],
            nodes_by_project=by_scope[Scope.PROJECT],
            next_page_token=place_token(places[size - 1]) if len(places) > size else "",
        )

    async def SetLimits(
        self, request: sessions_pb2.SetLimitsRequest, context: Context
    ) -> sessions_pb2.SetLimitsResponse:
        change = requests.limits_change(request)
        usage = await self._registry.change_limits(change)
        limits = usage.limits
        log.info(
            "limits.changed",
            per_connector=limits.per_connector,
            per_project=limits.per_project,
            total=limits.total,
            exceptions=len(limits.projects),
        )
        return sessions_pb2.SetLimitsResponse(limits=wire.limits_message(usage))

    async def ListInstances(
        self, request: sessions_pb2.ListInstancesRequest, context: Context
    ) -> sessions_pb2.ListInstancesResponse:
        found = await self._reaper.instances()
        return sessions_pb2.ListInstancesResponse(
            instances=[wire.instance_message(instance) for instance in found]
        )

    async def GetResources(
        self, request: resources_pb2.GetResourcesRequest, context: Context
    ) -> resources_pb2.SessionsResources:
        held = resources_pb2.SessionsResources(
            process=process_resources(collect_garbage=request.collect_garbage)
        )
        self._notices.count(held)
        return held


def _unknown(node_id: str) -> NotFound:
    return NotFound("UNKNOWN_NODE", f"node {node_id} never had a session", node_id=node_id)
