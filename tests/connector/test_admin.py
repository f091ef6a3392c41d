"""ConnectorAdmin, health and draining."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from websockets.exceptions import ConnectionClosed

from cloudhub.v1 import connector_pb2, connector_pb2_grpc, link_pb2, message_pb2, resources_pb2
from services.connector.app import ConnectorApp
from services.connector.drain import due
from tests.connector.conftest import StartApp, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers, keepalive, request_bytes
from tests.support.link_dispatcher import LinkDispatcher


@pytest.fixture
async def channel(app: ConnectorApp) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{app.grpc_port}") as opened:
        yield opened


async def _health(channel: grpc.aio.Channel) -> int:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest())
    return int(answer.status)


async def test_links_are_listed_in_pages_in_order_of_node_id(
    channel: grpc.aio.Channel, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    admin = connector_pb2_grpc.ConnectorAdminStub(channel)
    opened = [await peers.open(node) for node in ("edge-2", "other", "edge-1", "edge-3")]
    await opened[2].send(keepalive())
    await dispatcher.until(lambda: dispatcher.upstream)
    dispatcher.send_messages(3, message_pb2.Message(id="m"))
    await opened[2].recv()
    first = await admin.ListLinks(connector_pb2.ListLinksRequest(page_size=3))
    assert [link.node_id for link in first.links] == ["edge-1", "edge-2", "edge-3"]
    last = await admin.ListLinks(connector_pb2.ListLinksRequest(page_token=first.next_page_token))
    assert [link.node_id for link in last.links] == ["other"]
    assert last.next_page_token == ""
    link = first.links[0]
    assert (link.epoch, link.transport, link.dispatcher_id) == (103, "websocket", "dispatcher-1")
    assert (link.frames_received, link.frames_sent, link.queued_frames) == (1, 1, 0)
    assert link.opened_at.seconds > 0
    assert link.peer_address
    some = await admin.ListLinks(connector_pb2.ListLinksRequest(node_id_prefix="edge-", page_size=1000))
    assert len(some.links) == 3
    for peer in opened:
        await peer.close()


@pytest.mark.parametrize(
    ("request_message", "field"),
    [
        (connector_pb2.ListLinksRequest(page_size=1001), "page_size"),
        (connector_pb2.ListLinksRequest(page_token="x"), "page_token"),
        (connector_pb2.ListLinksRequest(page_token="x/y"), "page_token"),
    ],
)
async def test_a_bad_request_is_told_its_field(
    channel: grpc.aio.Channel, request_message: connector_pb2.ListLinksRequest, field: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await connector_pb2_grpc.ConnectorAdminStub(channel).ListLinks(request_message)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (refused.value.details() or "").startswith(field)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
async def test_a_drain_of_no_sensible_rate_is_refused(channel: grpc.aio.Channel, value: float) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await connector_pb2_grpc.ConnectorAdminStub(channel).Drain(
            connector_pb2.DrainRequest(links_per_second=value)
        )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_drain_closes_every_link_with_1012_and_accepts_no_more(
    app: ConnectorApp, channel: grpc.aio.Channel, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C11."""
    opened = [await peers.open(f"edge-{number}") for number in range(5)]
    await poll_health(channel, health_pb2.HealthCheckResponse.SERVING)
    answer = await connector_pb2_grpc.ConnectorAdminStub(channel).Drain(
        connector_pb2.DrainRequest(links_per_second=1000)
    )
    assert answer.closed == 5
    for peer in opened:
        with pytest.raises(ConnectionClosed) as closed:
            await peer.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    await dispatcher.until(lambda: len(dispatcher.ended) == 5)
    assert {end.reason for end in dispatcher.ended} == {link_pb2.CLOSE_REASON_DRAINED}
    with pytest.raises(OSError):
        await peers.open("edge-9")
    await poll_health(channel, health_pb2.HealthCheckResponse.NOT_SERVING)
    assert await app.drain() == 0


async def test_at_the_deadline_what_is_left_is_closed_at_once(app: ConnectorApp, peers: EdgePeers) -> None:
    """C11."""
    opened = [await peers.open(f"edge-{number}") for number in range(4)]
    assert await app.drain(0.001, 0.05) == 4
    for peer in opened:
        await peer.wait_closed()


def test_the_rate_is_kept_from_the_first_link_on() -> None:
    assert [due(10.0, elapsed) for elapsed in (0.0, 0.05, 0.1, 1.0)] == [1, 1, 2, 11]


async def poll_health(channel: grpc.aio.Channel, expected: int) -> None:
    async with asyncio.timeout(5):
        while await _health(channel) != expected:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_health_follows_the_dispatchers(channel: grpc.aio.Channel, dispatcher: LinkDispatcher) -> None:
    await poll_health(channel, health_pb2.HealthCheckResponse.SERVING)
    dispatcher.hold_hello = True
    dispatcher.end_stream()
    await poll_health(channel, health_pb2.HealthCheckResponse.NOT_SERVING)


async def test_a_request_during_a_drain_is_answered_503(
    start_app: StartApp, authority: TestAuthority
) -> None:
    async with start_app() as app:
        peers = EdgePeers(authority, app.edge_port)
        reader, writer = await peers.raw()
        await poll(lambda: app.listener.connections == 1)
        await app.drain()
        writer.write(request_bytes())
        assert (await reader.readline()).startswith(b"HTTP/1.1 503 ")
        writer.close()


async def test_what_is_held_is_counted_and_goes_with_the_links(
    app: ConnectorApp, channel: grpc.aio.Channel, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C2, C5."""
    admin = connector_pb2_grpc.ConnectorAdminStub(channel)

    async def held() -> resources_pb2.ConnectorResources:
        answer: resources_pb2.ConnectorResources = await admin.GetResources(
            resources_pb2.GetResourcesRequest(collect_garbage=True)
        )
        return answer

    before = await held()
    assert (before.connections, before.links, before.dispatcher_streams) == (0, 0, 1)
    dispatcher.receipts = dispatcher.admit = False
    waiting = asyncio.create_task(peers.open("edge-9"))
    announced = await dispatcher.announced()
    during = await held()
    assert (during.connections, during.openings, during.announced_links, during.links) == (1, 1, 1, 0)
    dispatcher.give_verdict(announced.link)
    peer = await waiting
    await peer.send(keepalive())
    await dispatcher.until(lambda: dispatcher.upstream)
    during = await held()
    assert (during.openings, during.announced_links, during.links) == (0, 0, 1)
    assert during.frames_without_receipt == 1
    assert during.process.tasks == before.process.tasks
    await peer.close()
    await poll(lambda: not app.listener.connections)
    after = await held()
    assert (after.links, after.frames_without_receipt) == (0, 0)
    assert after.process.tasks_by_name == before.process.tasks_by_name
