"""EnrolmentService: whether a certificate may be signed, and which processes sign.

Requests in, one transaction, the verdict out.
"""

import time
from typing import Any

import grpc

from cloudhub.v1 import enrolment_pb2, enrolment_pb2_grpc
from services.runtime.clock import Clock
from services.runtime.logs import get_log
from services.runtime.tracing import Tracing, is_sampled, traceparent_in
from services.sessions.enrolment import requests
from services.sessions.enrolment.record_sql import EnrolmentRecord
from services.sessions.enrolment.records import Refusal, Wanted
from services.sessions.metrics import Metrics
from services.sessions.registry import Registry
from services.sessions.wire import timestamp

Context = grpc.aio.ServicerContext[Any, Any]
log = get_log(__name__)


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """For the enrolment service. Whatever is granted is on disk."""

    def __init__(
        self,
        record: EnrolmentRecord,
        registry: Registry,
        metrics: Metrics,
        tracing: Tracing,
        clock: Clock,
        lease_seconds: float,
    ) -> None:
        self._record = record
        self._registry = registry
        self._lease_seconds = lease_seconds
        self._metrics = metrics
        self._tracing = tracing
        self._clock = clock

    async def IssueCertificate(
        self, request: enrolment_pb2.IssueCertificateRequest, context: Context
    ) -> enrolment_pb2.IssueCertificateResponse:
        wanted, now_ms = requests.wanted(request), self._clock.wall_ms()
        by_token = request.WhichOneof("right") == "token"
        traceparent, begun_ns = traceparent_in(context.invocation_metadata()), time.time_ns()
        with self._metrics.transaction("issue"):
            verdict = (
                await self._record.issue_by_token(request.token, wanted, now_ms)
                if by_token
                else await self._record.issue_by_certificate(request.former_serial, wanted, now_ms)
            )
        refusal, granted = (verdict, wanted) if isinstance(verdict, Refusal) else (None, verdict)
        if self._tracing.enabled and is_sampled(traceparent):
            self._trace(granted, refusal, traceparent, begun_ns)
        self._metrics.issued(refusal.reason.name.lower() if refusal else "token" if by_token else "renewal")
        if not refusal:
            log.info("certificate.issued", node_id=wanted.node_id, serial=granted.serial, by_token=by_token)
            return _granted(wanted, granted)
        log.warning(
            "certificate.refused",
            node_id=wanted.node_id,
            reason=refusal.reason.name,
            peer_address=wanted.peer_address,
        )
        return enrolment_pb2.IssueCertificateResponse(
            refusal=enrolment_pb2.EnrolmentRefusal(
                reason=enrolment_pb2.EnrolmentRefusalReason.ValueType(refusal.reason), detail=refusal.detail
            )
        )

    async def RenewPresence(
        self, request: enrolment_pb2.RenewPresenceRequest, context: Context
    ) -> enrolment_pb2.RenewPresenceResponse:
        process = requests.process(request)
        if request.leaving:
            for seen in await self._registry.replicas():
                if (seen.replica_id, seen.service) == (process.replica_id, process.service):
                    await self._registry.drop_replica(seen)
        else:
            await self._registry.beat(process)
        return enrolment_pb2.RenewPresenceResponse(interval_seconds=self._lease_seconds / 3)

    def _trace(self, wanted: Wanted, refusal: Refusal | None, traceparent: str, begun_ns: int) -> None:
        verdict = (
            {"cloudhub.outcome": "refused", "cloudhub.reason": refusal.reason.name.lower()}
            if refusal
            else {"cloudhub.outcome": "issued", "cloudhub.certificate.serial": wanted.serial}
        )
        self._tracing.record(
            "register",
            traceparent,
            start_ns=begun_ns,
            error=refusal.detail if refusal else "",
            attributes={"cloudhub.node.id": wanted.node_id, **verdict},
        )


def _granted(wanted: Wanted, granted: Wanted) -> enrolment_pb2.IssueCertificateResponse:
    if granted.serial == wanted.serial:
        return enrolment_pb2.IssueCertificateResponse()
    return enrolment_pb2.IssueCertificateResponse(
        serial=granted.serial,
        not_before=timestamp(granted.not_before_ms),
        not_after=timestamp(granted.not_after_ms),
    )
