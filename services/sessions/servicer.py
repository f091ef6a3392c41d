"""SessionsService: requests in, transactions, verdicts out, notices after the commit."""

import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc

from cloudhub.v1 import sessions_pb2, sessions_pb2_grpc
from services.runtime.clock import Clock
from services.runtime.errors import InvalidRequest
from services.runtime.logs import get_log
from services.runtime.tracing import Tracing, is_sampled
from services.sessions import requests, wire
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.records import Opening, OpenResult
from services.sessions.registry import Registry

# Events handed over by one renewal, about.
MOST_EVENTS_PER_RENEWAL = 256
# Directives looked at together; when a dispatcher confirms some, the next ones come into view.
MOST_DIRECTIVES = 4096

Context = grpc.aio.ServicerContext[Any, Any]
log = get_log(__name__)


class SessionsServicer(sessions_pb2_grpc.SessionsServiceServicer):
    """For dispatchers. Whatever is answered is on disk."""

    def __init__(
        self,
        registry: Registry,
        notices: Notices,
        metrics: Metrics,
        tracing: Tracing,
        clock: Clock,
        *,
        lease_seconds: float,
        retry_seconds: float,
    ) -> None:
        self._registry = registry
        self._notices = notices
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock
        self._lease_seconds = lease_seconds
        self._retry_seconds = retry_seconds

    async def OpenSessions(
        self, request: sessions_pb2.OpenSessionsRequest, context: Context
    ) -> sessions_pb2.OpenSessionsResponse:
        begun_ns = time.time_ns()
        dispatcher_id = requests.dispatcher_id(request.dispatcher_id)
        entries = requests.openings(request)
        with self._metrics.transaction("open", len(entries)):
            committed = await self._registry.open(dispatcher_id, entries, self._clock.wall_ms())
        self._metrics.opened(committed.results)
        self._notices.tell(committed)
        if self._tracing.enabled:
            self._trace(entries, committed.results, begun_ns)
        return sessions_pb2.OpenSessionsResponse(
            verdicts=[
                wire.open_message(result, self._retry_seconds) for result in wire.within(committed.results)
            ]
        )

    async def ActivateSessions(
        self, request: sessions_pb2.ActivateSessionsRequest, context: Context
    ) -> sessions_pb2.ActivateSessionsResponse:
        dispatcher_id = requests.dispatcher_id(request.dispatcher_id)
        refs = requests.refs(request.sessions)
        with self._metrics.transaction("activate", len(refs)):
            committed = await self._registry.activate(dispatcher_id, refs, self._clock.wall_ms())
        self._notices.tell(committed)
        response = sessions_pb2.ActivateSessionsResponse()
        for result in committed.results:
            verdict = response.verdicts.add(active=result.active)
            if result.event:
                verdict.event.CopyFrom(wire.event_message(result.event))
            if not result.active:
                self._metrics.stale("activate")
        return response

    async def CloseSessions(
        self, request: sessions_pb2.CloseSessionsRequest, context: Context
    ) -> sessions_pb2.CloseSessionsResponse:
        dispatcher_id = requests.dispatcher_id(request.dispatcher_id)
        endings = requests.endings(request)
        with self._metrics.transaction("close", len(endings)):
            committed = await self._registry.close(dispatcher_id, endings, self._clock.wall_ms())
        self._notices.tell(committed)
        response = sessions_pb2.CloseSessionsResponse()
        for result in committed.results:
            verdict = response.verdicts.add(closed=result.closed, reason=wire.reason_message(result.reason))
            if result.event:
                verdict.event.CopyFrom(wire.event_message(result.event))
            if not result.closed:
                self._metrics.stale("close")
        return response

    async def DeleteNodes(
        self, request: sessions_pb2.DeleteNodesRequest, context: Context
    ) -> sessions_pb2.DeleteNodesResponse:
        node_ids = requests.node_ids(request)
        with self._metrics.transaction("delete", len(node_ids)):
            committed = await self._registry.delete_nodes(node_ids, self._clock.wall_ms())
        self._notices.tell(committed)
        for node_id, deletion in zip(node_ids, committed.results, strict=True):
            if deletion.known:
                log.info("node.deleted", node_id=node_id, epoch=deletion.epoch)
        return sessions_pb2.DeleteNodesResponse(
            deleted=sum(deletion.known for deletion in committed.results),
            epochs=[deletion.epoch for deletion in committed.results],
        )

    async def ListHeld(
        self, request: sessions_pb2.ListHeldRequest, context: Context
    ) -> sessions_pb2.ListHeldResponse:
        dispatcher_id, after, size = requests.held_page(request)
        with self._metrics.transaction("list_held"):
            found = await self._registry.held(dispatcher_id, after, size + 1)
        return sessions_pb2.ListHeldResponse(
            sessions=[sessions_pb2.SessionRef(node_id=ref.node_id, epoch=ref.epoch) for ref in found[:size]],
            more=len(found) > size,
        )

    async def TransferSessions(
        self, request: sessions_pb2.TransferSessionsRequest, context: Context
    ) -> sessions_pb2.TransferSessionsResponse:
        dispatcher_id = requests.dispatcher_id(request.dispatcher_id)
        wanted = requests.transfers(request)
        with self._metrics.transaction("transfer", len(wanted)):
            committed = await self._registry.transfer(dispatcher_id, wanted, self._clock.wall_ms())
        self._metrics.transferred(committed.results)
        self._notices.tell(committed)
        return sessions_pb2.TransferSessionsResponse(
            verdicts=[wire.transfer_message(result) for result in wire.within(committed.results)]
        )

    async def LocateNodes(
        self, request: sessions_pb2.LocateNodesRequest, context: Context
    ) -> sessions_pb2.LocateNodesResponse:
        node_ids = requests.node_ids(request)
        with self._metrics.transaction("locate", len(node_ids)):
            sessions = await self._registry.locate(node_ids)
        return sessions_pb2.LocateNodesResponse(
            sessions=[wire.session_message(session) for session in sessions]
        )

    async def RenewLease(
        self, request: sessions_pb2.RenewLeaseRequest, context: Context
    ) -> sessions_pb2.RenewLeaseResponse:
        renewal = requests.renewal(request)
        with self._metrics.transaction("renew"):
            committed = await self._registry.renew(renewal, self._clock.wall_ms(), MOST_EVENTS_PER_RENEWAL)
            leases = await self._registry.leases()
        self._notices.tell(committed)
        self._metrics.handed_over(len(committed.results))
        return sessions_pb2.RenewLeaseResponse(
            lease_seconds=self._lease_seconds,
            adopted_events=[wire.event_message(event) for event in committed.results],
            # One that has not renewed yet has not said where it can be reached.
            dispatchers=[wire.peer_message(lease) for lease in leases if lease.address and not lease.lost],
        )

    async def ReleaseLease(
        self, request: sessions_pb2.ReleaseLeaseRequest, context: Context
    ) -> sessions_pb2.ReleaseLeaseResponse:
        dispatcher_id = requests.dispatcher_id(request.dispatcher_id)
        with self._metrics.transaction("release"):
            committed = await self._registry.release(dispatcher_id, self._clock.wall_ms())
        self._notices.tell(committed)
        return sessions_pb2.ReleaseLeaseResponse()

    async def WatchDirectives(
        self, request: sessions_pb2.WatchDirectivesRequest, context: Context
    ) -> AsyncIterator[sessions_pb2.Directives]:
        dispatcher_id = requests.dispatcher_id(request.dispatcher_id)
        with self._notices.listen(dispatcher_id) as bell:
            # What is open stands in rows; a stream remembers only what it has said of them.
            said: set[tuple[str, int, int]] = set()
            while True:
                bell.clear()
                found = {
                    (item.node_id, item.epoch, int(item.reason)): item
                    for item in await self._registry.directives(dispatcher_id, MOST_DIRECTIVES)
                }
                fresh = [item for key, item in found.items() if key not in said]
                said = set(found)
                if fresh:
                    yield sessions_pb2.Directives(end=[wire.directive_message(item) for item in fresh])
                await bell.wait()
                if self._notices.stopping:
                    raise self._notices.gone()

    async def AcknowledgeEvents(
        self, request: sessions_pb2.AcknowledgeEventsRequest, context: Context
    ) -> sessions_pb2.AcknowledgeEventsResponse:
        event_ids = requests.event_ids(request)
        if not event_ids:
            raise InvalidRequest("event_ids", "should name at least one event; it is empty")
        with self._metrics.transaction("acknowledge", len(event_ids)):
            self._metrics.acknowledged(await self._registry.acknowledge(event_ids))
        return sessions_pb2.AcknowledgeEventsResponse()

    def _trace(self, entries: Sequence[Opening], results: Sequence[OpenResult], begun_ns: int) -> None:
        for entry, result in zip(entries, results, strict=True):
            if not is_sampled(entry.traceparent):
                continue
            refused = result.forbidden or (wire.refusal_detail(result) if result.full else "")
            self._tracing.record(
                "admit",
                entry.traceparent,
                start_ns=begun_ns,
                error=refused,
                attributes={
                    "cloudhub.node.id": entry.node_id,
                    "cloudhub.session.epoch": result.epoch,
                    "cloudhub.outcome": (
                        "forbidden" if result.forbidden else "node_limit" if result.full else "opened"
                    ),
                    "cloudhub.session.superseded": result.superseded is not None,
                },
            )
