"""Links over real sockets: from the announcement to the end."""

import asyncio
import gc
import json
import os
import socket
import struct

import psutil
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cloudhub.v1 import link_pb2, message_pb2
from services.connector.app import ConnectorApp
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import PROJECT, EdgePeers, keepalive, request_bytes
from tests.support.link_dispatcher import LinkDispatcher


def _message(message_id: str, content: bytes = b'{"a": 1}') -> message_pb2.Message:
    return message_pb2.Message(id=message_id, resource="default/configmap/cm1", content=content)


async def test_a_link_is_announced_admitted_and_ended(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link("edge-1"):
        announcement = await dispatcher.announced()
        assert (announcement.node_id, announcement.project_id) == ("edge-1", PROJECT)
        assert announcement.transport == "websocket"
        assert announcement.peer_address.startswith("127.0.0.1:")
        await poll(lambda: metric(app, "links") == 1)
    await dispatcher.until(lambda: dispatcher.ended)
    end = dispatcher.ended[0]
    assert (end.link, end.epoch, end.reason) == (1, 101, link_pb2.CLOSE_REASON_EDGE_CLOSED)
    assert metric(app, "links") == 0
    assert metric(app, "links_closed_total", reason="edge_closed") == 1


async def test_frames_go_up_numbered_and_messages_come_down_in_order(
    peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link() as peer:
        for number in range(50):
            await peer.send(keepalive(f"k{number}"))
        await dispatcher.until(lambda: len(dispatcher.upstream) == 50)
        assert [frame.number for frame in dispatcher.upstream] == list(range(1, 51))
        assert [frame.message.id for frame in dispatcher.upstream] == [f"k{n}" for n in range(50)]
        assert {frame.epoch for frame in dispatcher.upstream} == {101}
        dispatcher.send_messages(1, *(_message(f"m{n}") for n in range(100)))
        received = [json.loads(await peer.recv())["header"]["msg_id"] for _ in range(100)]
        assert received == [f"m{n}" for n in range(100)]
        await dispatcher.until(
            lambda: dispatcher.written and dispatcher.written[-1].acknowledged_through == 100
        )


async def test_direct_messages_go_first_and_both_lanes_are_reported(
    peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C26: the direct lane never waits behind acknowledged messages of the same batch."""
    async with peers.link() as peer:
        frames = [dispatcher.message(1, _message("a1")), dispatcher.message(1, _message("a2"))]
        frames.append(dispatcher.message(1, _message("d1"), direct=True))
        dispatcher.send(link_pb2.DispatcherBatch(downstream=frames))
        order = [json.loads(await peer.recv())["header"]["msg_id"] for _ in range(3)]
        assert order == ["d1", "a1", "a2"]
        await dispatcher.until(lambda: dispatcher.written)
        report = dispatcher.written[-1]
        assert (report.acknowledged_through, report.direct_through) == (2, 1)


async def test_a_fragmented_message_is_one_message(peers: EdgePeers, dispatcher: LinkDispatcher) -> None:
    async with peers.link() as peer:
        text = keepalive("parts")
        await peer.send(part for part in (text[:7], text[7:30], text[30:]))
        await dispatcher.until(lambda: dispatcher.upstream)
        assert dispatcher.upstream[0].message.id == "parts"
        assert dispatcher.upstream[0].size_bytes == len(text)


@pytest.mark.parametrize(("code", "told"), [(1009, 1009), (1000, 1000), (4321, 4321), (None, 0)])
async def test_the_edges_close_frame_is_told_to_the_dispatcher(
    peers: EdgePeers, dispatcher: LinkDispatcher, code: int | None, told: int
) -> None:
    """C42: a dispatcher has to know who ended a link, and with which code."""
    async with peers.link() as peer:
        peer.protocol.send_close(code)
        peer.send_data()
        await dispatcher.until(lambda: dispatcher.ended)
    assert (dispatcher.ended[0].by_edge, dispatcher.ended[0].close_code) == (True, told)


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_an_end_without_a_close_frame_is_the_edges(
    peers: EdgePeers, dispatcher: LinkDispatcher, how: str
) -> None:
    """C42."""
    _, writer = await peers.upgraded()
    if how == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
    else:
        writer.close()
    await dispatcher.until(lambda: dispatcher.ended)
    end = dispatcher.ended[0]
    assert (end.reason, end.by_edge, end.close_code) == (link_pb2.CLOSE_REASON_TRANSPORT_ERROR, True, 0)


async def test_what_the_hub_ends_is_not_the_edges(peers: EdgePeers, dispatcher: LinkDispatcher) -> None:
    """C42: nor what it has to end because the edge broke a rule."""
    async with peers.link() as evicted, peers.link("edge-2") as wrong:
        dispatcher.close_link(1, link_pb2.CLOSE_REASON_EVICTED)
        await wrong.send("not json")
        await dispatcher.until(lambda: len(dispatcher.ended) == 2)
        await evicted.wait_closed()
    assert [(end.by_edge, end.close_code) for end in dispatcher.ended] == [(False, 0)] * 2


async def test_pings_are_answered(peers: EdgePeers) -> None:
    async with peers.link() as peer:
        await asyncio.wait_for(await peer.ping(), 5)


async def test_the_old_links_close_does_not_touch_the_nodes_new_link(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C1: two links of one node."""
    async with peers.link("edge-1") as old, peers.link("edge-1") as new:
        dispatcher.close_link(1, link_pb2.CLOSE_REASON_SUPERSEDED)
        with pytest.raises(ConnectionClosed) as closed:
            await old.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4001
        await dispatcher.until(lambda: dispatcher.ended)
        assert (dispatcher.ended[0].link, dispatcher.ended[0].epoch) == (1, 101)
        dispatcher.send_messages(2, _message("for the new one"))
        assert json.loads(await new.recv())["header"]["msg_id"] == "for the new one"
        await new.send(keepalive("still here"))
        await dispatcher.until(lambda: dispatcher.upstream)
        assert dispatcher.upstream[0].link == 2
        assert len(app.links) == 1


async def test_a_message_before_the_close_still_reaches_the_edge(
    peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link() as peer:
        dispatcher.send(
            link_pb2.DispatcherBatch(
                downstream=[dispatcher.message(1, _message("disconnected"), direct=True)],
                closes=[
                    link_pb2.LinkClose(
                        link=1, epoch=101, reason=link_pb2.CLOSE_REASON_EVICTED, detail="by hand"
                    )
                ],
            )
        )
        assert json.loads(await peer.recv())["header"]["msg_id"] == "disconnected"
        with pytest.raises(ConnectionClosed) as closed:
            await peer.recv()
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (
            4002,
            "evicted by an operator: by hand",
        )
    await dispatcher.until(lambda: dispatcher.ended)
    assert dispatcher.ended[0].reason == link_pb2.CLOSE_REASON_EVICTED


async def test_elements_of_another_epoch_are_dropped_and_counted(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link() as peer:
        dispatcher.send(
            link_pb2.DispatcherBatch(
                downstream=[dispatcher.message(1, _message("stale"), epoch=99)],
                receipts=[link_pb2.Receipt(through=1, link=1, epoch=99)],
                read_controls=[link_pb2.ReadControl(paused=True, link=1, epoch=99)],
                probes=[link_pb2.Probe(link=1, epoch=99)],
                closes=[link_pb2.LinkClose(link=1, epoch=99), link_pb2.LinkClose(link=77, epoch=1)],
            )
        )
        dispatcher.send_messages(1, _message("fresh"))
        assert json.loads(await peer.recv())["header"]["msg_id"] == "fresh"
    for element in ("downstream", "receipt", "read_control", "probe", "close"):
        assert metric(app, "dropped_total", element=element, reason="epoch") == 1
    assert metric(app, "dropped_total", element="close", reason="link_gone") == 1
    assert not dispatcher.activity


async def test_a_message_that_is_no_json_is_not_sent_and_holds_up_nothing(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link() as peer:
        dispatcher.send_messages(1, _message("bad", b"{"))
        await dispatcher.until(lambda: dispatcher.written)
        assert dispatcher.written[0].acknowledged_through == 1
        dispatcher.send_messages(1, _message("good"))
        assert json.loads(await peer.recv())["header"]["msg_id"] == "good"
    assert metric(app, "dropped_total", element="downstream", reason="invalid_json") == 1


async def test_a_frame_whose_message_cannot_be_read_is_not_sent_and_holds_up_nothing(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link() as peer:
        spoilt = dispatcher.message(1, _message("bad"))
        spoilt.message = b"\xff\xff"
        dispatcher.send(link_pb2.DispatcherBatch(downstream=[spoilt]))
        dispatcher.send_messages(1, _message("good"))
        assert json.loads(await peer.recv())["header"]["msg_id"] == "good"
        await dispatcher.until(
            lambda: dispatcher.written and dispatcher.written[-1].acknowledged_through == 2
        )
    assert metric(app, "dropped_total", element="downstream", reason="unreadable") == 1


async def test_a_probe_tells_how_long_the_link_is_silent(
    peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    async with peers.link() as peer:
        await peer.send(keepalive())
        await dispatcher.until(lambda: dispatcher.upstream)
        dispatcher.send(link_pb2.DispatcherBatch(probes=[link_pb2.Probe(link=1, epoch=101)]))
        await dispatcher.until(lambda: dispatcher.activity)
        report = dispatcher.activity[0]
        assert (report.link, report.epoch) == (1, 101)
        assert 0 <= report.idle_seconds < 5


async def test_a_probe_with_a_ping_asks_the_edge(peers: EdgePeers, dispatcher: LinkDispatcher) -> None:
    """The answer to it is a sign of life that the next report tells of."""
    async with peers.link():
        await dispatcher.until(lambda: 1 in dispatcher.epochs)
        await asyncio.sleep(0.5)
        probe = link_pb2.Probe(link=1, epoch=101)
        dispatcher.send(link_pb2.DispatcherBatch(probes=[probe]))
        await dispatcher.until(lambda: dispatcher.activity)
        assert dispatcher.activity[0].idle_seconds >= 0.4
        probe.ping = True
        dispatcher.send(link_pb2.DispatcherBatch(probes=[probe]))
        probe.ping = False
        while dispatcher.activity[-1].idle_seconds >= 0.4:
            dispatcher.send(link_pb2.DispatcherBatch(probes=[probe]))
            count = len(dispatcher.activity)
            await dispatcher.until(lambda n=count: len(dispatcher.activity) > n)  # type: ignore[misc]


async def test_a_paused_link_is_not_read_until_it_may(peers: EdgePeers, dispatcher: LinkDispatcher) -> None:
    async with peers.link() as peer:
        await dispatcher.until(lambda: 1 in dispatcher.epochs)
        paused = link_pb2.ReadControl(link=1, epoch=101, paused=True)
        probe = link_pb2.Probe(link=1, epoch=101)
        dispatcher.send(link_pb2.DispatcherBatch(read_controls=[paused], probes=[probe]))
        await dispatcher.until(lambda: dispatcher.activity)
        await peer.send(keepalive("held"))
        dispatcher.send(link_pb2.DispatcherBatch(probes=[probe]))
        await dispatcher.until(lambda: len(dispatcher.activity) == 2)
        assert not dispatcher.upstream
        # Silence cannot be told from input that is held.
        assert dispatcher.activity[1].idle_seconds == 0
        dispatcher.send(link_pb2.DispatcherBatch(read_controls=[link_pb2.ReadControl(link=1, epoch=101)]))
        await dispatcher.until(lambda: dispatcher.upstream)
        assert dispatcher.upstream[0].message.id == "held"


async def test_a_link_without_receipts_stops_at_its_bound(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    dispatcher.receipts = False
    async with start_app(unreceipted_most_frames=8) as app:
        peers = EdgePeers(authority, app.edge_port)
        async with peers.link() as peer:
            for number in range(30):
                await peer.send(keepalive(f"k{number}"))
            await dispatcher.until(lambda: len(dispatcher.upstream) == 8)
            dispatcher.receipts = True
            dispatcher.send(
                link_pb2.DispatcherBatch(receipts=[link_pb2.Receipt(link=1, epoch=101, through=8)])
            )
            await dispatcher.until(lambda: len(dispatcher.upstream) == 30)
            assert [frame.number for frame in dispatcher.upstream] == list(range(1, 31))
            dispatcher.send(
                link_pb2.DispatcherBatch(receipts=[link_pb2.Receipt(link=1, epoch=101, through=99)])
            )
            await poll(lambda: metric(app, "dropped_total", element="receipt", reason="number_unknown") == 1)


async def test_a_link_over_its_rate_is_slowed_and_not_closed(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    async with start_app(frames_per_second=500.0, frames_burst=10.0) as app:
        peers = EdgePeers(authority, app.edge_port)
        async with peers.link() as peer:
            for number in range(60):
                await peer.send(keepalive(f"k{number}"))
            await dispatcher.until(lambda: len(dispatcher.upstream) == 60)
            assert [frame.message.id for frame in dispatcher.upstream] == [f"k{n}" for n in range(60)]
            assert metric(app, "read_pauses_total", reason="rate") >= 1


@pytest.mark.no_cover
async def test_a_thousandth_reconnect_leaves_what_the_first_left(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C2: everything a link started ends with it (300 reconnects)."""
    process = psutil.Process()

    async def quiet() -> tuple[int, int]:
        await poll(lambda: app.listener.connections == 0 and len(app.links) == 0)
        gc.collect()
        return len(asyncio.all_tasks()), process.num_fds()

    for _ in range(3):
        async with peers.link():
            pass
    tasks, descriptors = await quiet()
    for number in range(300):
        peer = await peers.open()
        if number % 3:
            await peer.close()
        else:
            peer.transport.abort()
            await peer.wait_closed()
    assert await quiet() == (tasks, descriptors)
    await dispatcher.until(lambda: len(dispatcher.ended) == 303)
    assert len({(end.link, end.epoch) for end in dispatcher.ended}) == 303
    assert metric(app, "links") == 0
    assert metric(app, "openings") == 0


async def test_a_connection_that_breaks_ends_its_link_with_a_transport_error(
    peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C27."""
    peer = await peers.open()
    await dispatcher.announced()
    dispatcher.send_messages(1, _message("m", b'"' + b"x" * 500_000 + b'"'))
    peer.transport.abort()
    await peer.wait_closed()
    await dispatcher.until(lambda: dispatcher.ended)
    assert dispatcher.ended[0].reason == link_pb2.CLOSE_REASON_TRANSPORT_ERROR
    assert dispatcher.ended[0].epoch == 101


async def test_an_edge_that_reads_nothing_blocks_only_itself(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    """Invariant 7: its written reports stop, other links go on, its queue is bounded."""
    async with start_app(queued_most_frames=300) as app:
        peers = EdgePeers(authority, app.edge_port)
        reader, writer = await peers.raw("slow", limit=1024)
        writer.write(request_bytes("slow"))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        async with peers.link("quick") as quick:
            await dispatcher.until(lambda: 2 in dispatcher.epochs)
            slow_link = next(a.link for a in dispatcher.announcements if a.node_id == "slow")
            quick_link = next(a.link for a in dispatcher.announcements if a.node_id == "quick")
            big = b'"' + b"x" * 20_000 + b'"'
            for _ in range(10):
                dispatcher.send_messages(slow_link, *(_message("big", big) for _ in range(20)))
                dispatcher.send_messages(quick_link, _message("q"))
                await quick.recv()
            link = app.links.get(slow_link)
            assert link is not None
            assert link.state is not None
            await poll(lambda: link.state and len(link.state.outbound) > 100)
            through = [r.acknowledged_through for r in dispatcher.written if r.link == slow_link]
            waiting = len(link.state.outbound)
            assert max(through, default=0) < 200 - waiting + 1
            # More than the queue holds is the dispatcher's breach: the link ends, the other does not.
            for _ in range(10):
                dispatcher.send_messages(slow_link, *(_message("big", big) for _ in range(20)))
            await dispatcher.until(lambda: dispatcher.ended)
            assert dispatcher.ended[0].reason == link_pb2.CLOSE_REASON_OVERLOADED
            dispatcher.send_messages(quick_link, _message("after"))
            assert json.loads(await quick.recv())["header"]["msg_id"] == "after"
        writer.transport.abort()
        await poll(lambda: app.listener.connections == 0)


async def test_what_was_blocked_is_reported_written_when_the_edge_reads_again(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """The timer of a message starts when its bytes are with the operating system, not before."""
    reader, writer = await peers.raw(limit=1024)
    writer.write(request_bytes())
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    content = b'"' + b"x" * 20_000 + b'"'
    dispatcher.send_messages(1, *(_message(f"m{n}", content) for n in range(200)))
    await poll(lambda: (link := app.links.get(1)) and link.transport.blocked)
    link = app.links.get(1)
    assert link is not None
    assert link.state is not None
    assert len(link.state.outbound) > 50
    assert max((r.acknowledged_through for r in dispatcher.written), default=0) < 150
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    received = 0
    while received < 200 * 20_000:
        received += len(await reader.read(65536))
    await dispatcher.until(lambda: dispatcher.written[-1].acknowledged_through == 200)
    through = [report.acknowledged_through for report in dispatcher.written]
    assert through == sorted(set(through))
    writer.close()


async def test_a_node_limit_is_answered_429_and_nothing_stays(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C5: a refused link is closed with a reason that the edge can read."""
    dispatcher.admit = False
    opening = asyncio.create_task(peers.open())
    announcement = await dispatcher.announced()
    dispatcher.give_verdict(
        announcement.link,
        link_pb2.Refusal(
            reason=link_pb2.REFUSAL_REASON_NODE_LIMIT, detail="3 of 3 nodes", retry_after_seconds=7
        ),
    )
    with pytest.raises(InvalidStatus) as refused:
        await opening
    response = refused.value.response
    assert response.status_code == 429
    assert response.headers["Retry-After"] == "7"
    assert response.body == b"3 of 3 nodes\n"
    await poll(lambda: app.listener.connections == 0)
    assert len(app.links) == 0
    assert metric(app, "refusals_total", status="429", reason="node_limit") == 1


@pytest.mark.parametrize(
    ("reason", "status", "retry"),
    [
        (link_pb2.REFUSAL_REASON_UNAVAILABLE, 503, "5"),
        (link_pb2.REFUSAL_REASON_FORBIDDEN, 403, None),
        (link_pb2.REFUSAL_REASON_UNSPECIFIED, 503, "5"),
    ],
)
async def test_refusals_have_their_status(
    peers: EdgePeers,
    dispatcher: LinkDispatcher,
    reason: link_pb2.RefusalReason.ValueType,
    status: int,
    retry: str | None,
) -> None:
    dispatcher.admit = False
    opening = asyncio.create_task(peers.open())
    announcement = await dispatcher.announced()
    dispatcher.give_verdict(announcement.link, link_pb2.Refusal(reason=reason))
    with pytest.raises(InvalidStatus) as refused:
        await opening
    assert refused.value.response.status_code == status
    assert refused.value.response.headers.get("Retry-After") == retry


async def test_what_a_peer_sends_before_its_verdict_is_not_looked_at(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C5: not even a breach of the protocol."""
    dispatcher.admit = False
    reader, writer = await peers.raw()
    writer.write(request_bytes() + b"\xff" * 200_000)
    announcement = await dispatcher.announced()
    dispatcher.give_verdict(announcement.link, link_pb2.Refusal(reason=link_pb2.REFUSAL_REASON_NODE_LIMIT))
    assert (await reader.readline()).startswith(b"HTTP/1.1 429 ")
    writer.transport.abort()
    await poll(lambda: app.listener.connections == 0)
    assert not dispatcher.upstream
    assert metric(app, "frames_refused_total", reason="websocket_protocol") == 0


async def test_a_peer_that_vanishes_while_it_waits_is_told_and_its_session_ended(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C5: epoch 0 at once, and the epoch of a verdict that comes too late."""
    dispatcher.admit = False
    _, writer = await peers.raw()
    writer.write(request_bytes())
    announcement = await dispatcher.announced()
    writer.transport.abort()
    await dispatcher.until(lambda: dispatcher.ended)
    assert (dispatcher.ended[0].link, dispatcher.ended[0].epoch) == (announcement.link, 0)
    epoch = dispatcher.give_verdict(announcement.link)
    await dispatcher.until(lambda: len(dispatcher.ended) == 2)
    assert (dispatcher.ended[1].link, dispatcher.ended[1].epoch) == (announcement.link, epoch)
    assert len(app.links) == 0


async def test_without_a_verdict_in_time_the_answer_is_503(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    dispatcher.admit = False
    async with start_app(verdict_seconds=0.05) as app:
        with pytest.raises(InvalidStatus) as refused:
            await EdgePeers(authority, app.edge_port).open()
        assert refused.value.response.status_code == 503
        await dispatcher.until(lambda: dispatcher.ended)
        assert dispatcher.ended[0].epoch == 0
        assert metric(app, "refusals_total", status="503", reason="verdict_timeout") == 1


async def test_links_above_the_connectors_bound_are_refused(
    start_app: StartApp, authority: TestAuthority
) -> None:
    async with start_app(links_most=1) as app:
        peers = EdgePeers(authority, app.edge_port)
        async with peers.link("edge-1"):
            with pytest.raises(InvalidStatus) as refused:
                await peers.open("edge-2")
            assert refused.value.response.status_code == 503


def test_the_suite_runs_where_descriptors_can_be_counted() -> None:
    assert os.path.isdir("/proc/self/fd")  # noqa: PTH112
