"""Links over QUIC, on a running connector: what holds of WebSocket links too, and what QUIC alone has."""

import asyncio
import gc
import json
import math
import os
import time
from typing import Any

import psutil
import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode, QuicFrameType

from cloudhub.v1 import link_pb2, message_pb2
from cloudhub.v1.edge_pb2 import EdgeMessage, EdgeRouter
from services.connector.app import ConnectorApp
from services.connector.quic.connection import DOWNSTREAM, HubConnection
from services.connector.quic.listener import QuicListener
from services.connector.settings import QUIC_OFF
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import PROJECT
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.quic_peer import CONTROL, UP, QuicPeer, QuicPeers, framed, keepalive, request

_Reason = link_pb2.CloseReason


def _message(message_id: str, content: bytes = b'{"a": 1}') -> message_pb2.Message:
    return message_pb2.Message(id=message_id, resource="default/configmap/cm1", content=content)


async def _close_of(peer: QuicPeer) -> tuple[int, str]:
    """The code and text that the hub closed the connection with."""
    await poll(lambda: peer.ended)
    assert peer.ended is not None
    assert peer.ended.frame_type is None, "not closed by the application"
    return peer.ended.error_code, peer.ended.reason_phrase


async def test_a_link_is_announced_admitted_and_ended(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    async with quic_peers.link("edge-1") as peer:
        announcement = await dispatcher.announced()
        assert (announcement.node_id, announcement.project_id) == ("edge-1", PROJECT)
        assert announcement.transport == "quic"
        assert announcement.peer_address.startswith("127.0.0.1:")
        assert (metric(app, "links"), metric(app, "links_opened_total", transport="quic")) == (1, 1)
        assert peer.handshaken.result().alpn_protocol == "cloudhub-edge/1"
    await dispatcher.until(lambda: dispatcher.ended)
    end = dispatcher.ended[0]
    assert (end.link, end.epoch, end.reason) == (1, 101, _Reason.CLOSE_REASON_EDGE_CLOSED)
    assert end.detail == "1000 bye"
    assert metric(app, "links_closed_total", transport="quic", reason="edge_closed") == 1


async def test_frames_go_up_numbered_and_messages_come_down_in_order(
    quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    async with quic_peers.link() as peer:
        peer.say(*(keepalive(f"k{number}") for number in range(500)))
        await dispatcher.until(lambda: len(dispatcher.upstream) == 500)
        assert [frame.number for frame in dispatcher.upstream] == list(range(1, 501))
        assert [frame.message.id for frame in dispatcher.upstream] == [f"k{n}" for n in range(500)]
        dispatcher.send_messages(1, *(_message(f"m{n}") for n in range(500)))
        assert [(await peer.message()).header.id for _ in range(500)] == [f"m{n}" for n in range(500)]
        await dispatcher.until(
            lambda: dispatcher.written and dispatcher.written[-1].acknowledged_through == 500
        )


async def test_direct_messages_go_first(quic_peers: QuicPeers, dispatcher: LinkDispatcher) -> None:
    """C26."""
    async with quic_peers.link() as peer:
        frames = [dispatcher.message(1, _message("a1")), dispatcher.message(1, _message("a2"))]
        frames.append(dispatcher.message(1, _message("d1"), direct=True))
        dispatcher.send(link_pb2.DispatcherBatch(downstream=frames))
        assert [(await peer.message()).header.id for _ in range(3)] == ["d1", "a1", "a2"]


async def test_a_frame_larger_than_the_window_comes_whole(
    quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """Again and again: the limits move with what was read, not with what came."""
    async with quic_peers.link() as peer:
        for number in range(6):
            large = keepalive(f"large-{number}")
            large.content = json.dumps("x" * 700_000).encode()
            peer.say(large)
        await dispatcher.until(lambda: len(dispatcher.upstream) == 6, 30)
        assert {len(frame.message.content) for frame in dispatcher.upstream} == {700_002}


async def test_a_frame_over_the_limit_is_refused_before_memory_is_taken_for_it(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """C33."""
    async with quic_peers.link() as peer:
        peer.write(UP, framed(b"")[:6] + (4 * 1024 * 1024 + 1).to_bytes(4, "big"))
        code, text = await _close_of(peer)
    assert (code, "4194305 bytes" in text) == (1009, True)
    assert metric(app, "frames_refused_total", reason="frame_too_big") == 1
    assert dispatcher.ended[0].reason == _Reason.CLOSE_REASON_PROTOCOL_ERROR


@pytest.mark.parametrize(
    ("stream", "code", "label"),
    [
        (b"\x00" * 10, 1002, "quic_protocol"),
        (framed(b"\xff\xff"), 1007, "invalid_protobuf"),
        (framed(EdgeMessage(content=b"{")), 1007, "invalid_json"),
        (framed(EdgeMessage(content=b'"\xff"')), 1007, "invalid_utf8"),
        (framed(EdgeMessage(content=b"[" * 20_000)), 1007, "nested_too_deep"),
        (framed(EdgeMessage(extra={"content": b"1"})), 1008, "wrong_shape"),
    ],
)
async def test_a_breach_of_the_protocol_closes_the_link_and_only_that(
    app: ConnectorApp,
    quic_peers: QuicPeers,
    dispatcher: LinkDispatcher,
    stream: bytes,
    code: int,
    label: str,
) -> None:
    """C29."""
    async with quic_peers.link("edge-2") as other, quic_peers.link("edge-1") as peer:
        peer.write(UP, stream)
        assert (await _close_of(peer))[0] == code
        assert metric(app, "frames_refused_total", reason=label) == 1
        other.say(keepalive("still here"))
        await dispatcher.until(lambda: dispatcher.upstream)
        assert dispatcher.upstream[0].message.id == "still here"


@pytest.mark.parametrize("what", ["streams", "bytes"])
async def test_a_client_that_lets_the_hub_say_nothing_is_told_why(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher, what: str
) -> None:
    """It would get `ack`, and nothing ever after; what is missing is known by the handshake's end."""
    quic = QuicConnection(configuration=quic_peers.configuration(quic_peers.issued("edge-1")))
    if what == "streams":
        quic._local_max_streams_uni.value = 0
    else:
        quic._local_max_stream_data_uni = 0
    transport, peer = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: QuicPeer(quic), local_addr=("127.0.0.1", 0)
    )
    peer.connect(("127.0.0.1", quic_peers.port))
    peer.ask("edge-1")
    answer = await peer.answer()
    assert answer.router.operation == "nack"
    told = json.loads(answer.content)
    assert told["status"] == 400
    assert "initial_max_streams_uni" in told["text"]
    assert (await _close_of(peer))[0] == 400
    assert metric(app, "handshake_failures_total", reason="no_one_way_stream") == 1
    assert not dispatcher.announcements
    peer.close()
    transport.close()
    async with quic_peers.link("edge-1"):
        assert metric(app, "links") == 1


async def test_a_stream_that_ends_within_a_frame_is_a_breach_and_after_one_is_not(
    quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    async with quic_peers.link("edge-1") as peer:
        peer.write(UP, framed(keepalive()) + framed(keepalive())[:-1], fin=True)
        assert (await _close_of(peer))[0] == 1002
    async with quic_peers.link("edge-2") as peer:
        peer.write(UP, framed(keepalive()), fin=True)
        assert (await _close_of(peer))[0] == 1000
    await dispatcher.until(lambda: len(dispatcher.ended) == 2)
    reasons = [_Reason.CLOSE_REASON_PROTOCOL_ERROR, _Reason.CLOSE_REASON_EDGE_CLOSED]
    assert [end.reason for end in dispatcher.ended] == reasons
    assert len(dispatcher.upstream) == 2


async def test_a_stream_too_many_is_a_breach(app: ConnectorApp, quic_peers: QuicPeers) -> None:
    async with quic_peers.link() as peer:
        peer.quic._remote_max_streams_uni = 10
        peer.write(6, b"msg")
        await poll(lambda: peer.ended)
        assert peer.ended
        assert "Too many streams" in peer.ended.reason_phrase
    assert metric(app, "frames_refused_total", reason="quic_protocol") == 1


async def test_more_than_was_let_in_is_a_breach(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """C33: also after a long link, whose limits have not grown."""
    async with quic_peers.link() as peer:
        for number in range(40):
            large = keepalive(f"large-{number}")
            large.content = json.dumps("x" * 100_000).encode()
            peer.say(large)
        await dispatcher.until(lambda: len(dispatcher.upstream) == 40, 30)
        stream = peer.quic._streams[UP]
        assert stream.max_stream_data_remote - stream.sender._buffer_stop <= 256 * 1024
        peer.quic._remote_max_data = stream.max_stream_data_remote = 1 << 40
        # One byte, a gigabyte ahead: aioquic would keep room for all before it.
        stream.sender._buffer_start = stream.sender._buffer_stop = stream.sender.highest_offset = 1 << 30
        peer.write(UP, b"x")
        await poll(lambda: peer.ended)
        assert peer.ended
        assert "data limit" in peer.ended.reason_phrase
    assert metric(app, "frames_refused_total", reason="quic_protocol") == 1


async def test_an_edge_that_does_not_read_holds_the_hub_back(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """Its window is full: nothing more counts as written, and what waits is bounded."""
    async with quic_peers.link(max_data=100_000, max_stream_data=100_000) as peer:
        peer.quic._write_connection_limits = lambda **_: None  # type: ignore[method-assign]
        peer.quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
        content = json.dumps("x" * 10_000).encode()
        dispatcher.send_messages(1, *(_message(f"m{n}", content) for n in range(30)))
        for _ in range(8):
            await peer.message()
        link = app.links.admitted()[0]
        await poll(lambda: link.transport.blocked)
        assert not any(report.acknowledged_through > 14 for report in dispatcher.written)
        dispatcher.send_messages(1, _message("late"))
        await poll(lambda: link.state and len(link.state.outbound) > 10)


async def test_an_edge_that_is_gone_is_sent_probes_and_nothing_else(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """Until its link is found dead it costs little, however much is for it; that leaves once it is heard."""
    async with quic_peers.link() as peer:
        link = app.links.admitted()[0]
        peer.hears = 0
        dispatcher.send_messages(1, _message("unheard"))
        quic: HubConnection = link.transport._quic  # type: ignore[attr-defined]
        await poll(lambda: quic.unheard, 30)
        written = len(dispatcher.written)
        dispatcher.send_messages(1, *(_message(f"m{number}") for number in range(5)))
        await poll(lambda: link.transport.blocked)
        assert len(dispatcher.written) == written
        assert quic.sent_through(DOWNSTREAM) < quic.written_through(DOWNSTREAM)
        peer.hears = math.inf
        assert [(await peer.message()).header.id for _ in range(6)] == [
            "unheard",
            *(f"m{number}" for number in range(5)),
        ]
        await poll(lambda: not link.transport.blocked and not quic.unheard)
        assert len(dispatcher.written) > written


async def test_a_hub_that_is_behind_with_reading_sends_nothing_again(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement may be among what it has not read."""
    unread = False
    monkeypatch.setattr(QuicListener, "behind", lambda _: unread)
    async with quic_peers.link() as peer:
        quic: Any = app.links.admitted()[0].transport._quic  # type: ignore[attr-defined]
        await poll(lambda: quic.acknowledged_through(DOWNSTREAM) == quic.written_through(DOWNSTREAM))
        unread, peer.hears = True, 0
        dispatcher.send_messages(1, _message("m1"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(poll(lambda: quic._loss._pto_count), 0.7)
        unread = False
        await poll(lambda: quic._loss._pto_count)


async def test_held_input_is_not_looked_at_and_not_let_in(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    async with quic_peers.link() as peer:
        dispatcher.send(
            link_pb2.DispatcherBatch(read_controls=[link_pb2.ReadControl(link=1, epoch=101, paused=True)])
        )
        link = app.links.admitted()[0]
        await poll(lambda: link.state and not link.state.reading)
        sent = [keepalive(f"k{number}") for number in range(20_000)]
        peer.say(*sent)
        await poll(lambda: peer.quic._streams[UP].sender.highest_offset == 256 * 1024, 20)
        assert not dispatcher.upstream
        assert link.transport.idle_seconds(asyncio.get_running_loop().time() + 100) == 0.0
        dispatcher.send(
            link_pb2.DispatcherBatch(read_controls=[link_pb2.ReadControl(link=1, epoch=101, paused=False)])
        )
        await dispatcher.until(lambda: len(dispatcher.upstream) == len(sent), 60)


@pytest.mark.parametrize(
    ("reason", "code", "text"),
    [
        (_Reason.CLOSE_REASON_SUPERSEDED, 4001, "superseded by a newer link of this node"),
        (_Reason.CLOSE_REASON_EVICTED, 4002, "evicted by an operator"),
        (_Reason.CLOSE_REASON_KEEPALIVE_TIMEOUT, 4008, "no keepalive came in time"),
        (_Reason.CLOSE_REASON_OVERLOADED, 1013, "overloaded, reconnect later"),
    ],
)
async def test_the_last_message_and_the_reason_reach_the_edge(
    app: ConnectorApp,
    quic_peers: QuicPeers,
    dispatcher: LinkDispatcher,
    reason: link_pb2.CloseReason.ValueType,
    code: int,
    text: str,
) -> None:
    """C5 for links that were open: the codes of WebSocket links."""
    async with quic_peers.link() as peer:
        dispatcher.send_messages(1, _message("last"))
        dispatcher.close_link(1, reason, "so it is")
        assert (await peer.message()).header.id == "last"
        assert await _close_of(peer) == (code, f"{text}: so it is")
    assert app.quic
    await poll(lambda: app.quic.connections == 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        (link_pb2.REFUSAL_REASON_NODE_LIMIT, 429),
        (link_pb2.REFUSAL_REASON_UNAVAILABLE, 503),
        (link_pb2.REFUSAL_REASON_FORBIDDEN, 403),
    ],
)
async def test_a_refused_edge_is_told_and_nothing_it_said_is_looked_at(
    app: ConnectorApp,
    quic_peers: QuicPeers,
    dispatcher: LinkDispatcher,
    reason: link_pb2.RefusalReason.ValueType,
    status: int,
) -> None:
    """C5, C7."""
    dispatcher.admit = False
    async with quic_peers.connection(quic_peers.issued("edge-1")) as peer:
        peer.ask("edge-1")
        peer.begin()
        peer.say(keepalive())
        dispatcher.refuse((await dispatcher.announced()).link, reason)
        answer = await peer.answer()
        assert answer.router.operation == "nack"
        refusal = json.loads(answer.content)
        assert refusal["status"] == status
        assert refusal["text"]
        assert ("retry_after_seconds" in refusal) == (status != 403)
        assert (await _close_of(peer))[0] == status
    assert metric(app, "refusals_total", transport="quic", status=str(status)) == 1
    assert not dispatcher.upstream
    assert len(app.links) == 0
    assert app.quic
    await poll(lambda: app.quic.connections == 0)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"Project_id": [PROJECT]}, "header_node_missing"),
        ({"Node_id": ["edge-1"]}, "header_project_missing"),
        ({"Node_id": ["edge-2"], "Project_id": [PROJECT]}, "certificate_node"),
        ({"Node_id": ["edge-1", "edge-2"], "Project_id": [PROJECT]}, "header_node"),
        ({"Node_id": ["Edge 1"], "Project_id": [PROJECT]}, "node_id_malformed"),
        ({"Node_id": ["edge-1"], "Project_id": ["a/b"]}, "project_id_malformed"),
        ({"Node_id": ["edge-1"], "Project_id": [PROJECT], "ConnectionUse": ["raw"]}, "header_use"),
    ],
)
async def test_certificate_and_headers_have_to_agree(
    app: ConnectorApp, quic_peers: QuicPeers, headers: dict[str, list[str]], reason: str
) -> None:
    """C6: the node is who the certificate says."""
    async with quic_peers.connection(quic_peers.issued("edge-1")) as peer:
        peer.ask("edge-1", headers)
        answer = await peer.answer()
        assert answer.router.operation == "nack"
        assert json.loads(answer.content)["status"] == 403
    assert metric(app, "refusals_total", transport="quic", status="403", reason=reason) == 1
    assert len(app.links) == 0


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (framed(b"\xff"), 400),
        (framed(keepalive()), 400),
        (framed(EdgeMessage(router=EdgeRouter(operation="header"), content=b"[]")), 400),
        (framed(EdgeMessage(router=EdgeRouter(operation="header"), content=b'{"Node_id": "edge-1"}')), 400),
        (framed(b"")[:6] + (16 * 1024 + 1).to_bytes(4, "big"), 431),
    ],
)
async def test_what_is_no_request_is_answered_and_closed(
    app: ConnectorApp, quic_peers: QuicPeers, first: bytes, status: int
) -> None:
    """C5, invariant 10."""
    async with quic_peers.connection(quic_peers.issued("edge-1")) as peer:
        peer.write(0, first)
        answer = json.loads((await peer.answer()).content)
        assert answer["status"] == status
        assert (await _close_of(peer))[0] == status
    reason = "request_too_large" if status == 431 else "bad_request"
    assert metric(app, "handshake_failures_total", transport="quic", reason=reason) == 1


@pytest.mark.parametrize("node_id", ["edge-1", "edge-2"], ids=["admitted", "refused"])
async def test_a_peer_that_wants_no_answer_gets_none(
    app: ConnectorApp, quic_peers: QuicPeers, node_id: str
) -> None:
    """Invariant 10: it asks, and in the same datagram gives the stream up."""
    assert app.quic
    async with quic_peers.connection(quic_peers.issued("edge-1")) as peer:
        await asyncio.wait_for(peer.handshaken, 10)
        peer.quic.send_stream_data(CONTROL, framed(request(node_id)))
        peer.quic.stop_stream(CONTROL, 1)
        peer.transmit()
        await poll(lambda: peer.ended)
    assert (len(app.links), app.quic.connections) == (0, 0)


async def test_a_peer_that_says_nothing_is_closed(start_app: StartApp, authority: TestAuthority) -> None:
    async with start_app(opening_seconds=0.5) as app:
        peers = QuicPeers(authority, app.quic_port)
        async with peers.connection(peers.issued("edge-1")) as peer:
            await poll(lambda: peer.ended)
        assert metric(app, "handshake_failures_total", reason="request_timeout") == 1
        assert app.quic
        assert app.quic.connections == 0


async def test_an_opening_that_others_wait_for_has_a_third_of_its_time(
    start_app: StartApp, authority: TestAuthority
) -> None:
    async with start_app(openings_most=1, opening_seconds=6.0) as app:
        peers = QuicPeers(authority, app.quic_port)
        began = time.monotonic()
        async with peers.connection(peers.issued("edge-1")) as silent:
            # Its first packets are dropped, and it sends them again.
            async with peers.connection(peers.issued("edge-2")) as late:
                late.ask("edge-2")
                assert (await late.answer()).router.operation == "ack"
                assert 1.9 < time.monotonic() - began < 5.5
            await poll(lambda: silent.ended)
        assert metric(app, "handshake_failures_total", transport="quic", reason="crowded_out") == 1


async def test_exactly_as_many_as_there_is_room_for_are_admitted(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """C7: over both transports together."""
    async with start_app(links_most=3) as app:
        peers = QuicPeers(authority, app.quic_port)
        answers = []
        connections = [await peers.dial(peers.issued(f"edge-{number}")) for number in range(8)]
        for number, (_, peer) in enumerate(connections):
            peer.ask(f"edge-{number}")
        for _, peer in connections:
            answers.append((await peer.answer()).router.operation)
        assert sorted(answers) == ["ack"] * 3 + ["nack"] * 5
        assert metric(app, "refusals_total", transport="quic", status="503", reason="connector_full") == 5
        for transport, peer in connections:
            peer.close()
            transport.close()
        await poll(lambda: len(app.links) == 0)


async def test_draining_closes_links_with_1012(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """C11: and who comes then is sent elsewhere."""
    async with quic_peers.link() as peer:
        assert await app.drain() == 1
        assert (await _close_of(peer))[0] == 1012
        async with quic_peers.connection(quic_peers.issued("edge-2")) as late:
            late.ask("edge-2")
            assert json.loads((await late.answer()).content)["status"] == 503


@pytest.mark.parametrize("code", [1009, 1001, 2**40])
async def test_how_the_edge_closed_is_told_to_the_dispatcher(
    quic_peers: QuicPeers, dispatcher: LinkDispatcher, code: int
) -> None:
    """C42: a code of any size; an error of QUIC's own is none of the link's."""
    async with quic_peers.link() as peer:
        peer._quic.close(error_code=code, reason_phrase="told")
        peer.transmit()
        await dispatcher.until(lambda: dispatcher.ended)
    async with quic_peers.link() as peer:
        peer._quic.close(QuicErrorCode.INTERNAL_ERROR, QuicFrameType.PADDING, "broken")
        peer.transmit()
        await dispatcher.until(lambda: len(dispatcher.ended) == 2)
    ends = [(end.by_edge, end.close_code) for end in dispatcher.ended]
    assert ends == [(True, min(code, 2**32 - 1)), (True, 0)]


@pytest.mark.no_cover
async def test_a_thousand_connects_leave_nothing_behind(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """C2: connections that end politely, that vanish, and that are refused."""
    assert app.quic
    process = psutil.Process(os.getpid())

    async def rounds(count: int) -> None:
        for number in range(count):
            transport, peer = await quic_peers.dial(quic_peers.issued("edge-1"))
            peer.ask("edge-1" if number % 3 else "edge-2")
            await peer.answer()
            if number % 5:
                peer._quic.close(error_code=1000)
                peer.transmit()
            transport.close()
            if peer._timer:
                peer._timer.cancel()

    await rounds(20)
    for connection in tuple(app.quic._connections):
        connection.abort()
    tasks, descriptors = len(asyncio.all_tasks()), process.num_fds()
    await rounds(int(os.environ.get("QUIC_CONNECTS", "60")))
    for connection in tuple(app.quic._connections):
        connection.abort()
    await poll(lambda: app.quic.connections == 0, 30)  # type: ignore[union-attr]
    await poll(lambda: len(app.links) == 0)
    gc.collect()
    assert app.quic.connection_ids == 0
    assert app.quic.openings == 0
    assert len(asyncio.all_tasks()) <= tasks
    assert process.num_fds() <= descriptors


async def test_quic_can_be_off(start_app: StartApp) -> None:
    async with start_app(quic_listen=QUIC_OFF) as app:
        assert (app.quic, app.quic_port) == (None, 0)
