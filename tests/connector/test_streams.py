"""Streams to dispatchers: attaching, losing one, choosing one."""

import asyncio

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cloudhub.v1 import link_pb2, message_pb2
from services.connector import dispatcher_stream
from services.connector.app import ConnectorApp, running_app
from services.connector.rendezvous import best_dispatcher
from services.runtime.tracing import Tracing
from tests.connector.conftest import MakeSettings, StartApp, metric, poll, until_attached
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers, keepalive
from tests.support.link_dispatcher import LinkDispatcher


async def test_a_stream_begins_with_hello(app: ConnectorApp, dispatcher: LinkDispatcher) -> None:
    assert dispatcher.hellos[0].name == "connector-test"
    assert len(dispatcher.hellos[0].connector_id) == 32
    assert metric(app, "dispatchers_attached") == 1


async def test_when_a_stream_is_lost_its_links_stay_and_are_transferred_once_it_is_back(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link() as peer:
        dispatcher.end_stream()
        asked = await dispatcher.asked()
        assert (asked.link.link, asked.link.node_id, asked.epoch) == (1, "edge-1", 101)
        await dispatcher.until(lambda: dispatcher.epochs[1] == 102)
        dispatcher.send_messages(1, message_pb2.Message(id="after"))
        assert "after" in str(await peer.recv())
        async with peers.link("edge-2"):
            assert (await dispatcher.announced(2)).link == 2
    assert metric(app, "transfers_total", outcome="moved") == 1
    assert metric(app, "links_closed_total", reason="dispatcher_lost") == 0
    assert metric(app, "dispatcher_streams_lost_total", reason="ended") == 1


async def test_a_link_that_waits_when_its_stream_is_lost_is_answered_503(
    peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    dispatcher.admit = False
    opening = asyncio.create_task(peers.open())
    await dispatcher.announced()
    dispatcher.end_stream()
    with pytest.raises(InvalidStatus) as refused:
        await opening
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["Retry-After"]


async def test_heartbeats_go_both_ways_and_a_silent_dispatcher_is_given_up(
    make_settings: MakeSettings,
) -> None:
    async with LinkDispatcher(lease_seconds=0.15).running() as dispatcher:
        settings = make_settings(dispatcher.address)
        async with running_app(settings, tracing=Tracing(None, "connector")) as app:
            await until_attached(app)
            for _ in range(8):
                beats = dispatcher.heartbeats
                dispatcher.send(link_pb2.DispatcherBatch(heartbeat=True))
                await dispatcher.until(lambda beats=beats: dispatcher.heartbeats > beats)  # type: ignore[misc]
            assert dispatcher.streams == 1
            await dispatcher.until(lambda: dispatcher.streams == 2)
            assert metric(app, "dispatcher_streams_lost_total", reason="silent") == 1


async def test_a_dispatcher_without_hello_is_not_attached(
    make_settings: MakeSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher_stream, "_HELLO_TIMEOUT", 0.05)
    dispatcher = LinkDispatcher()
    dispatcher.hold_hello = True
    async with dispatcher.running():
        settings = make_settings(dispatcher.address)
        async with running_app(settings, tracing=Tracing(None, "connector")) as app:
            await poll(lambda: metric(app, "dispatcher_streams_lost_total", reason="no_hello") >= 1)
            assert app.dispatchers.attached == 0


async def test_without_any_dispatcher_links_are_answered_503(
    make_settings: MakeSettings, authority: TestAuthority
) -> None:
    settings = make_settings("127.0.0.1:1")
    async with running_app(settings, tracing=Tracing(None, "connector")) as app:
        with pytest.raises(InvalidStatus) as refused:
            await EdgePeers(authority, app.edge_port).open()
        assert refused.value.response.status_code == 503
        assert refused.value.response.headers["Retry-After"] == "5"
        await poll(lambda: metric(app, "dispatcher_streams_lost_total", reason="unavailable") >= 1)


async def test_nodes_go_to_their_dispatcher_and_to_the_other_one_when_it_is_gone(
    make_settings: MakeSettings, authority: TestAuthority
) -> None:
    async with LinkDispatcher("d1").running() as one, LinkDispatcher("d2").running() as two:
        settings = make_settings(f"{one.address}, {two.address}")
        async with running_app(settings, tracing=Tracing(None, "connector")) as app:
            await until_attached(app, 2)
            peers = EdgePeers(authority, app.edge_port)
            by_address = {one.address: one, two.address: two}
            best = best_dispatcher("edge-1", list(by_address))
            assert best is not None
            first = by_address.pop(best)
            (second,) = by_address.values()
            async with peers.link("edge-1"):
                await first.announced()
            first.hold_hello = True
            first.end_stream()
            await until_attached(app, 1)
            async with peers.link("edge-1"):
                await second.announced()


async def test_links_pause_while_their_stream_is_behind(
    app: ConnectorApp,
    peers: EdgePeers,
    dispatcher: LinkDispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dispatcher_stream, "_CONGESTED_BYTES", 400)
    async with peers.link() as peer:
        for number in range(50):
            await peer.send(keepalive(f"k{number}"))
        await dispatcher.until(lambda: len(dispatcher.upstream) == 50)
        assert [frame.message.id for frame in dispatcher.upstream] == [f"k{n}" for n in range(50)]
        assert metric(app, "read_pauses_total", reason="stream") >= 1


async def test_the_end_of_links_is_told_before_a_stopping_connector_leaves(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    async with start_app() as app:
        peer = await EdgePeers(authority, app.edge_port).open()
    with pytest.raises(ConnectionClosed) as closed:
        await peer.recv()
    assert closed.value.rcvd is not None
    assert closed.value.rcvd.code == 1012
    await dispatcher.until(lambda: dispatcher.ended)
    assert dispatcher.ended[0].reason == link_pb2.CLOSE_REASON_DRAINED
    await dispatcher.until(lambda: dispatcher.streams_ended == 1)
