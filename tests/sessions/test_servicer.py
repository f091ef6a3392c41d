"""SessionsService over gRPC, one real service in this process: `services.sessions.servicer`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from cloudhub.v1 import link_pb2
from cloudhub.v1 import sessions_pb2 as pb
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub, SessionsServiceStub
from services.runtime.errors import StoreUnavailable
from services.runtime.rpc import error_reason
from services.runtime.tracing import Tracing
from services.sessions.app import SessionsApp
from services.sessions.records import Committed, Directive, OpenResult
from services.sessions.registry import Registry
from tests.support.sessions import FakeRegistry, running_sessions

if TYPE_CHECKING:
    from cloudhub.v1.sessions_pb2_grpc import SessionsAdminAsyncStub, SessionsServiceAsyncStub

Service = tuple[SessionsApp, "SessionsServiceAsyncStub", "SessionsAdminAsyncStub"]
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def an_open(node_id: str = "edge-1", traceparent: str = "", connector_id: str = "c1") -> pb.OpenSession:
    return pb.OpenSession(
        node_id=node_id,
        project_id="p1",
        connector_id=connector_id,
        link=1,
        transport="websocket",
        peer_address="192.0.2.1:1",
        traceparent=traceparent,
    )


def open_request(*entries: pb.OpenSession, dispatcher_id: str = "d1") -> pb.OpenSessionsRequest:
    return pb.OpenSessionsRequest(dispatcher_id=dispatcher_id, sessions=entries)


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_sessions(tmp_path, limit_per_connector=3, limit_retry_seconds=7.0) as (app, channel):
        yield app, SessionsServiceStub(channel), SessionsAdminStub(channel)


async def active(
    stub: "SessionsServiceAsyncStub", node_id: str = "edge-1", dispatcher_id: str = "d1"
) -> tuple[int, pb.LifecycleEvent]:
    """A new ACTIVE session's epoch and its event."""
    opened = await stub.OpenSessions(open_request(an_open(node_id), dispatcher_id=dispatcher_id))
    epoch = opened.verdicts[0].epoch
    ref = pb.SessionRef(node_id=node_id, epoch=epoch)
    activated = await stub.ActivateSessions(
        pb.ActivateSessionsRequest(dispatcher_id=dispatcher_id, sessions=[ref])
    )
    assert activated.verdicts[0].active
    return epoch, activated.verdicts[0].event


def close_request(
    node_id: str, epoch: int, reason: int, dispatcher_id: str = "d1"
) -> pb.CloseSessionsRequest:
    entry = pb.CloseSession(node_id=node_id, epoch=epoch, reason=link_pb2.CloseReason.ValueType(reason))
    return pb.CloseSessionsRequest(dispatcher_id=dispatcher_id, sessions=[entry])


async def test_a_session_lives_and_ends(service: Service) -> None:
    """C8: one event each, with distinct ids, that go when they are acknowledged."""
    _, stub, _ = service
    epoch, connected = await active(stub)
    located = await stub.LocateNodes(pb.LocateNodesRequest(node_ids=["edge-1", "edge-2"]))
    assert [(s.node_id, s.epoch, s.state) for s in located.sessions] == [
        ("edge-1", epoch, pb.SESSION_STATE_ACTIVE)
    ]
    assert (connected.kind, connected.node_id, connected.epoch) == ("connected", "edge-1", epoch)
    closing = close_request("edge-1", epoch, link_pb2.CLOSE_REASON_EDGE_CLOSED)
    closed = (await stub.CloseSessions(closing)).verdicts[0]
    assert (closed.closed, closed.reason) == (True, link_pb2.CLOSE_REASON_EDGE_CLOSED)
    assert (closed.event.kind, closed.event.reason) == ("disconnected", link_pb2.CLOSE_REASON_EDGE_CLOSED)
    assert closed.event.event_id != connected.event_id
    ids = [connected.event_id, closed.event.event_id]
    await stub.AcknowledgeEvents(pb.AcknowledgeEventsRequest(event_ids=ids))
    again = (await stub.CloseSessions(closing)).verdicts[0]
    assert (again.closed, again.HasField("event"), again.reason) == (
        False,
        False,
        link_pb2.CLOSE_REASON_EDGE_CLOSED,
    )
    assert not (await stub.LocateNodes(pb.LocateNodesRequest(node_ids=["edge-1"]))).sessions


async def test_of_simultaneous_opens_exactly_as_many_win_as_there_is_room_for(service: Service) -> None:
    """C7: over calls of several dispatchers at once; a refusal says why and when to come again."""
    app, stub, admin = service
    calls = [open_request(an_open(f"edge-{i}"), dispatcher_id=f"d{i % 4}") for i in range(24)]
    responses = await asyncio.gather(*(stub.OpenSessions(call) for call in calls))
    verdicts = [response.verdicts[0] for response in responses]
    assert sum(verdict.epoch > 0 for verdict in verdicts) == 3
    refusals = [verdict.refusal for verdict in verdicts if not verdict.epoch]
    assert {(r.reason, r.detail, r.retry_after_seconds) for r in refusals} == {
        (link_pb2.REFUSAL_REASON_NODE_LIMIT, "connector c1 has its limit of 3 nodes", 7.0)
    }
    assert (await admin.GetLimits(pb.GetLimitsRequest())).nodes == 3
    value = app.metrics.registry.get_sample_value
    assert value("cloudhub_sessions_opens_total", {"outcome": "opened"}) == 3
    assert value("cloudhub_sessions_opens_total", {"outcome": "limit_connector"}) == 21


async def test_a_takeover_comes_with_all_that_is_to_be_told_before(service: Service) -> None:
    """C1, C8."""
    _, stub, _ = service
    epoch, connected = await active(stub)
    verdict = (await stub.OpenSessions(open_request(an_open(), dispatcher_id="d2"))).verdicts[0]
    assert (verdict.superseded.epoch, verdict.superseded.state) == (epoch, pb.SESSION_STATE_CLOSED)
    assert verdict.superseded.close_reason == link_pb2.CLOSE_REASON_SUPERSEDED
    assert verdict.superseded.closed_at.seconds >= verdict.superseded.opened_at.seconds
    assert [event.event_id for event in verdict.earlier_events] == [connected.event_id]
    assert verdict.superseded_event.kind == "disconnected"
    late = await stub.CloseSessions(close_request("edge-1", epoch, link_pb2.CLOSE_REASON_TRANSPORT_ERROR))
    assert not late.verdicts[0].closed
    located = await stub.LocateNodes(pb.LocateNodesRequest(node_ids=["edge-1"]))
    assert [session.epoch for session in located.sessions] == [verdict.epoch]


async def test_a_stale_activation_is_refused_and_counted(service: Service) -> None:
    app, stub, _ = service
    ref = pb.SessionRef(node_id="edge-1", epoch=5)
    response = await stub.ActivateSessions(pb.ActivateSessionsRequest(dispatcher_id="d1", sessions=[ref]))
    assert not response.verdicts[0].active
    stale = "cloudhub_sessions_stale_calls_total"
    assert app.metrics.registry.get_sample_value(stale, {"operation": "activate"}) == 1


async def test_leases_are_renewed_and_released(service: Service) -> None:
    _, stub, _ = service
    _, connected = await active(stub)
    renewed = await stub.RenewLease(pb.RenewLeaseRequest(dispatcher_id="d2", counter=1))
    assert (renewed.lease_seconds, list(renewed.adopted_events)) == (15.0, [])
    await stub.ReleaseLease(pb.ReleaseLeaseRequest(dispatcher_id="d1"))
    renewed = await stub.RenewLease(pb.RenewLeaseRequest(dispatcher_id="d2", counter=2))
    assert [event.event_id for event in renewed.adopted_events] == [connected.event_id]


async def test_a_dispatcher_is_told_what_is_open_and_what_comes(service: Service) -> None:
    _, stub, admin = service
    for name in ("edge-1", "edge-2", "edge-3"):
        await active(stub, name)
    await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-1"))
    await stub.OpenSessions(open_request(an_open("edge-2"), dispatcher_id="d2"))
    for _ in range(2):
        # A stream that starts anew repeats what is still open.
        stream: Any = stub.WatchDirectives(pb.WatchDirectivesRequest(dispatcher_id="d1"))
        first = await stream.read()
        assert isinstance(first, pb.Directives)
        assert [(end.node_id, end.reason) for end in first.end] == [
            ("edge-1", link_pb2.CLOSE_REASON_EVICTED),
            ("edge-2", link_pb2.CLOSE_REASON_SUPERSEDED),
        ]
    await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-3"))
    second = await stream.read()
    assert isinstance(second, pb.Directives)
    assert [end.node_id for end in second.end] == ["edge-3"]
    for end in (*first.end, *second.end):
        await stub.CloseSessions(close_request(end.node_id, end.epoch, end.reason))
    await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-2"))
    other = stub.WatchDirectives(pb.WatchDirectivesRequest(dispatcher_id="d2"))
    third = await other.read()
    assert isinstance(third, pb.Directives)
    assert [end.node_id for end in third.end] == ["edge-2"]
    stream.cancel()
    other.cancel()


async def test_a_bad_request_names_its_field_and_harms_nothing(service: Service) -> None:
    _, stub, _ = service
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.OpenSessions(open_request(an_open("edge-1"), an_open("Edge!")))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (caught.value.details() or "").startswith("sessions[1].node_id: should be a node id")
    assert error_reason(caught.value) == "INVALID_FIELD"
    with pytest.raises(grpc.aio.AioRpcError, match="event_ids: should name at least one"):
        await stub.AcknowledgeEvents(pb.AcknowledgeEventsRequest())
    with pytest.raises(grpc.aio.AioRpcError, match="dispatcher_id: should be"):
        await stub.WatchDirectives(pb.WatchDirectivesRequest()).read()
    assert not (await stub.LocateNodes(pb.LocateNodesRequest(node_ids=["edge-1"]))).sessions


async def test_a_session_is_transferred_and_its_former_dispatcher_told(service: Service) -> None:
    """C37: verdicts in order, the events that moved along, a directive, the outcomes counted."""
    app, stub, _ = service
    epoch, event = await active(stub)
    watch = stub.WatchDirectives(pb.WatchDirectivesRequest(dispatcher_id="d1"))
    entries = [
        pb.TransferSession(node_id="edge-1", epoch=epoch, connector_id="c1", link=link) for link in (1, 2)
    ]
    answer = await stub.TransferSessions(
        pb.TransferSessionsRequest(dispatcher_id="d2", sessions=entries), timeout=5
    )
    granted, refused = answer.verdicts
    assert granted.epoch > epoch
    assert list(granted.earlier_events) == [event]
    assert (refused.epoch, refused.reason) == (0, link_pb2.CLOSE_REASON_SUPERSEDED)
    directives = await watch.read()
    assert isinstance(directives, pb.Directives)
    assert [(one.epoch, one.reason) for one in directives.end] == [(epoch, link_pb2.CLOSE_REASON_TRANSFERRED)]
    for outcome in ("granted", "superseded"):
        name = "cloudhub_sessions_transfers_total"
        assert app.metrics.registry.get_sample_value(name, {"outcome": outcome}) == 1


class NoStore(FakeRegistry):
    """A registry whose database is away."""

    async def open(self, *_: object) -> Committed[OpenResult]:
        raise StoreUnavailable("the database refused: disk full")

    async def directives(self, *_: object) -> list[Directive]:
        raise StoreUnavailable("the database refused: disk full")


async def test_a_store_that_does_not_answer_is_unavailable_and_no_refusal(tmp_path: Path) -> None:
    def no_store(_: Registry) -> Registry:
        return NoStore()

    async with running_sessions(tmp_path, wrap=no_store) as (_, channel):
        stub = SessionsServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.OpenSessions(open_request(an_open()))
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert error_reason(caught.value) == "STORE_UNAVAILABLE"
        with pytest.raises(grpc.aio.AioRpcError) as streamed:
            await stub.WatchDirectives(pb.WatchDirectivesRequest(dispatcher_id="d1")).read()
        assert streamed.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_an_admission_is_a_span_of_the_links_trace(tmp_path: Path) -> None:
    """Sampled opens only, admitted or refused."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with running_sessions(tmp_path, tracing=Tracing(provider, "sessions"), limit_per_connector=1) as (
        _,
        channel,
    ):
        stub = SessionsServiceStub(channel)
        response = await stub.OpenSessions(
            open_request(
                an_open("edge-1", TRACEPARENT),
                an_open("edge-2", TRACEPARENT),
                an_open("edge-3", TRACEPARENT[:-1] + "0"),
                an_open("edge-4", "nonsense"),
            )
        )
        spans: tuple[ReadableSpan, ...] = exporter.get_finished_spans()
    assert [span.name for span in spans] == ["admit", "admit"]
    admitted, refused = spans
    assert admitted.attributes
    assert refused.attributes
    assert admitted.parent
    assert f"{admitted.parent.span_id:016x}" == TRACEPARENT.split("-")[2]
    assert admitted.attributes["cloudhub.node.id"] == "edge-1"
    assert admitted.attributes["cloudhub.session.epoch"] == response.verdicts[0].epoch
    assert admitted.attributes["cloudhub.outcome"] == "opened"
    assert refused.attributes["cloudhub.outcome"] == "node_limit"
    assert refused.status.description == "connector c1 has its limit of 1 nodes"


async def test_nodes_are_deleted_whether_they_are_known_or_not(service: Service) -> None:
    """C10: the caller learns up to which epoch the sessions are over."""
    _, stub, admin = service
    epoch, _ = await active(stub)
    answer = await stub.DeleteNodes(pb.DeleteNodesRequest(node_ids=["edge-9", "edge-1"]))
    assert (answer.deleted, list(answer.epochs)) == (1, [0, epoch])
    session = (await admin.GetSession(pb.GetSessionRequest(node_id="edge-1"))).session
    assert session.state == pb.SESSION_STATE_DRAINING
    closing = close_request("edge-1", epoch, link_pb2.CLOSE_REASON_EDGE_CLOSED)
    closed = (await stub.CloseSessions(closing)).verdicts[0]
    assert (closed.closed, closed.reason) == (True, link_pb2.CLOSE_REASON_NODE_DELETED)
    assert closed.event.reason == link_pb2.CLOSE_REASON_NODE_DELETED
    with pytest.raises(grpc.aio.AioRpcError, match=r"node_ids\[1\]: should be a node id"):
        await stub.DeleteNodes(pb.DeleteNodesRequest(node_ids=["edge-2", "Edge!"]))


async def test_what_a_dispatcher_holds_is_listed_page_by_page(service: Service) -> None:
    _, stub, _ = service
    epochs = [(await active(stub, f"edge-{number}"))[0] for number in (1, 2, 3)]
    first = await stub.ListHeld(pb.ListHeldRequest(dispatcher_id="d1", page_size=2))
    assert [(ref.node_id, ref.epoch) for ref in first.sessions] == [
        ("edge-1", epochs[0]),
        ("edge-2", epochs[1]),
    ]
    assert first.more
    last = await stub.ListHeld(pb.ListHeldRequest(dispatcher_id="d1", after_node_id="edge-2", page_size=2))
    assert ([ref.node_id for ref in last.sessions], last.more) == (["edge-3"], False)
    nothing = await stub.ListHeld(pb.ListHeldRequest(dispatcher_id="d2"))
    assert (list(nothing.sessions), nothing.more) == ([], False)
    with pytest.raises(grpc.aio.AioRpcError, match="page_size: should be at most 4096"):
        await stub.ListHeld(pb.ListHeldRequest(dispatcher_id="d1", page_size=5000))


async def test_a_renewal_answers_the_dispatchers_that_are_there(service: Service) -> None:
    """Not one that is lost, nor one that has not said where it is."""
    _, stub, _ = service
    await active(stub, dispatcher_id="d3")
    for name in ("d1", "d2"):
        request = pb.RenewLeaseRequest(
            dispatcher_id=name, name=f"name-{name}", address=f"{name}:1", counter=1
        )
        answer = await stub.RenewLease(request)
    assert [(peer.dispatcher_id, peer.name, peer.address) for peer in answer.dispatchers] == [
        ("d1", "name-d1", "d1:1"),
        ("d2", "name-d2", "d2:1"),
    ]
    await stub.ReleaseLease(pb.ReleaseLeaseRequest(dispatcher_id="d1"))
    answer = await stub.RenewLease(pb.RenewLeaseRequest(dispatcher_id="d2", address="d2:1", counter=2))
    assert [peer.dispatcher_id for peer in answer.dispatchers] == ["d2"]
