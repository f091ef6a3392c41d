"""SessionsAdmin over gRPC, one real service in this process: `services.sessions.admin`."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from cloudhub.v1 import link_pb2
from cloudhub.v1 import sessions_pb2 as pb
from cloudhub.v1.resources_pb2 import GetResourcesRequest
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub, SessionsServiceStub
from services.runtime.rpc import error_reason
from tests.sessions.test_servicer import Service, active, an_open, close_request, open_request
from tests.support.processes import eventually
from tests.support.sessions import running_sessions


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running_sessions(tmp_path, watch_queue=5, most_watchers=1) as (app, channel):
        yield app, SessionsServiceStub(channel), SessionsAdminStub(channel)


async def test_sessions_are_listed_page_by_page(service: Service) -> None:
    _, stub, admin = service
    names = [f"edge-{index}" for index in range(5)]
    await stub.OpenSessions(open_request(*(an_open(name) for name in names)))
    seen: list[str] = []
    token = ""
    pages = 0
    while pages == 0 or token:
        page = await admin.ListSessions(pb.ListSessionsRequest(page_size=2, page_token=token))
        seen += [session.node_id for session in page.sessions]
        token = page.next_page_token
        pages += 1
    assert (seen, pages) == (names, 3)
    everything = await admin.ListSessions(pb.ListSessionsRequest(states=[pb.SESSION_STATE_OPENING]))
    assert len(everything.sessions) == 5
    assert everything.next_page_token == ""
    none = await admin.ListSessions(pb.ListSessionsRequest(states=[pb.SESSION_STATE_CLOSED]))
    assert (list(none.sessions), none.next_page_token) == ([], "")


async def test_a_page_token_belongs_to_its_filter(service: Service) -> None:
    _, stub, admin = service
    await stub.OpenSessions(open_request(an_open("edge-1"), an_open("edge-2")))
    token = (await admin.ListSessions(pb.ListSessionsRequest(page_size=1))).next_page_token
    for request in (
        pb.ListSessionsRequest(page_token=token, project_id="p1"),
        pb.ListSessionsRequest(page_token="edge-1"),
    ):
        with pytest.raises(grpc.aio.AioRpcError, match="page_token: should be the next_page_token"):
            await admin.ListSessions(request)
    with pytest.raises(grpc.aio.AioRpcError, match="page_size: should be at most 1000"):
        await admin.ListSessions(pb.ListSessionsRequest(page_size=1001))


async def test_a_closed_session_is_still_shown_with_its_reason(service: Service) -> None:
    _, stub, admin = service
    epoch, _ = await active(stub)
    await stub.CloseSessions(close_request("edge-1", epoch, link_pb2.CLOSE_REASON_KEEPALIVE_TIMEOUT))
    session = (await admin.GetSession(pb.GetSessionRequest(node_id="edge-1"))).session
    assert (session.state, session.epoch) == (pb.SESSION_STATE_CLOSED, epoch)
    assert session.close_reason == link_pb2.CLOSE_REASON_KEEPALIVE_TIMEOUT
    assert session.HasField("closed_at")


async def test_an_unknown_node_is_not_found(service: Service) -> None:
    _, _, admin = service
    for call in (
        admin.GetSession(pb.GetSessionRequest(node_id="edge-9")),
        admin.EvictSession(pb.EvictSessionRequest(node_id="edge-9")),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert error_reason(caught.value) == "UNKNOWN_NODE"


async def test_an_eviction_is_asked_confirmed_and_over(service: Service) -> None:
    _, stub, admin = service
    epoch, _ = await active(stub)
    with pytest.raises(grpc.aio.AioRpcError) as other:
        await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-1", epoch=epoch + 1))
    assert error_reason(other.value) == "OTHER_EPOCH"
    evicted = await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-1", epoch=epoch))
    assert evicted.session.state == pb.SESSION_STATE_DRAINING
    assert evicted.session.close_reason == link_pb2.CLOSE_REASON_UNSPECIFIED
    closing = close_request("edge-1", epoch, link_pb2.CLOSE_REASON_EDGE_CLOSED)
    closed = (await stub.CloseSessions(closing)).verdicts[0]
    assert (closed.closed, closed.reason) == (True, link_pb2.CLOSE_REASON_EVICTED)
    assert closed.event.reason == link_pb2.CLOSE_REASON_EVICTED
    with pytest.raises(grpc.aio.AioRpcError) as gone:
        await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-1"))
    assert error_reason(gone.value) == "NO_LIVE_SESSION"


async def read(
    stream: "grpc.aio.UnaryStreamCall[pb.WatchSessionsRequest, pb.WatchSessionsResponse]",
) -> tuple[str, int]:
    """The next change's node and state."""
    response = await stream.read()
    assert isinstance(response, pb.WatchSessionsResponse)
    return response.session.node_id, response.session.state


async def test_a_watcher_sees_the_present_ones_and_then_every_change(service: Service) -> None:
    _, stub, admin = service
    epoch, _ = await active(stub, "edge-1")
    await active(stub, "other-1")
    stream = admin.WatchSessions(pb.WatchSessionsRequest(node_id_prefix="edge", include_present=True))
    assert await read(stream) == ("edge-1", pb.SESSION_STATE_ACTIVE)
    await admin.EvictSession(pb.EvictSessionRequest(node_id="edge-1"))
    await active(stub, "other-2")
    await stub.CloseSessions(close_request("edge-1", epoch, link_pb2.CLOSE_REASON_EDGE_CLOSED))
    assert await read(stream) == ("edge-1", pb.SESSION_STATE_DRAINING)
    assert await read(stream) == ("edge-1", pb.SESSION_STATE_CLOSED)
    with pytest.raises(grpc.aio.AioRpcError) as second:
        await admin.WatchSessions(pb.WatchSessionsRequest()).read()
    assert error_reason(second.value) == "TOO_MANY_WATCHERS"
    stream.cancel()


async def test_a_watch_that_overflows_is_ended_with_a_reason(service: Service) -> None:
    """A batch of more changes than a watcher may lag behind."""
    _, stub, admin = service
    await active(stub, "edge-0")
    stream = admin.WatchSessions(pb.WatchSessionsRequest(include_present=True))
    assert await read(stream) == ("edge-0", pb.SESSION_STATE_ACTIVE)
    await stub.OpenSessions(open_request(*(an_open(f"edge-{i}") for i in range(1, 7))))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await read(stream)
    assert error_reason(caught.value) == "WATCH_OVERFLOW"


async def test_limits_are_read_and_changed_at_run_time(service: Service) -> None:
    _, stub, admin = service
    await stub.OpenSessions(open_request(an_open("edge-1"), an_open("edge-2", connector_id="c2")))
    changed = await admin.SetLimits(pb.SetLimitsRequest(total=2, projects={"p1": 9}))
    assert changed.limits == pb.Limits(per_connector=10_000, total=2, projects={"p1": 9})
    refused = (await stub.OpenSessions(open_request(an_open("edge-3")))).verdicts[0].refusal
    assert refused.detail == "the cluster has its limit of 2 nodes"
    usage = await admin.GetLimits(pb.GetLimitsRequest())
    assert usage == pb.GetLimitsResponse(
        limits=changed.limits,
        nodes=2,
        nodes_by_connector={"c1": 1, "c2": 1},
        nodes_by_project={"p1": 2},
    )
    again = await admin.SetLimits(pb.SetLimitsRequest(total=0, projects={"p1": 0}))
    assert again.limits == pb.Limits(per_connector=10_000)


async def test_connectors_and_projects_come_in_pages(service: Service) -> None:
    """Who asks for no size gets the first thousand, and is told that there are more."""
    _, stub, admin = service
    opens = [an_open(f"edge-{n:04}") for n in range(1003)]
    for number, one in enumerate(opens):
        one.project_id = f"p{number:04}"
    await stub.OpenSessions(open_request(*opens))
    first = await admin.GetLimits(pb.GetLimitsRequest())
    assert first.nodes_by_connector == {"c1": 1003}
    assert (first.nodes, len(first.nodes_by_project)) == (1003, 999)
    second = await admin.GetLimits(pb.GetLimitsRequest(page_token=first.next_page_token))
    assert sorted(second.nodes_by_project) == [f"p{n:04}" for n in range(999, 1003)]
    assert (second.nodes, len(second.nodes_by_connector), second.next_page_token) == (1003, 0, "")
    for request in (pb.GetLimitsRequest(page_size=1001), pb.GetLimitsRequest(page_token="no token")):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await admin.GetLimits(request)
        assert error_reason(refused.value) == "INVALID_FIELD"


async def test_reading_a_restarted_services_limits(tmp_path: Path) -> None:
    """What was changed at run time outlives the process; the rest follows the settings."""
    async with running_sessions(tmp_path) as (_, channel):
        await SessionsAdminStub(channel).SetLimits(pb.SetLimitsRequest(per_project=4))
    async with running_sessions(tmp_path, limit_total=50) as (_, channel):
        limits = (await SessionsAdminStub(channel).GetLimits(pb.GetLimitsRequest())).limits
    assert limits == pb.Limits(per_connector=10_000, per_project=4, total=50)


async def test_what_is_held_for_watchers_is_counted_and_goes_with_them(service: Service) -> None:
    app, stub, admin = service
    before = await admin.GetResources(GetResourcesRequest())
    assert (before.watchers, before.watched_changes) == (0, 0)
    stream = admin.WatchSessions(pb.WatchSessionsRequest(include_present=True))
    reading = asyncio.create_task(stream.read())
    await eventually(lambda: app.notices.watched)
    during = await admin.GetResources(GetResourcesRequest())
    assert (during.watchers, during.process.tasks > before.process.tasks) == (1, True)
    await active(stub, "edge-1")
    await reading
    stream.cancel()
    await eventually(lambda: not app.notices.watched)
    after = await admin.GetResources(GetResourcesRequest())
    assert (after.watchers, after.process.tasks) == (0, before.process.tasks)
