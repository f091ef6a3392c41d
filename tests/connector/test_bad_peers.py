"""Peers that break the rules: certificates, requests, frames."""

import asyncio
import datetime as dt
import ssl
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import Frame, Opcode

from cloudhub.v1 import link_pb2, message_pb2
from services.connector.app import ConnectorApp
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers, keepalive, request_bytes
from tests.support.link_dispatcher import LinkDispatcher

_HOUR = dt.timedelta(hours=1)
_REFUSED = (ssl.SSLError, ConnectionError, EOFError, OSError)


async def _assert_refused_by_tls(
    app: ConnectorApp, peers: EdgePeers, context: ssl.SSLContext, reason: str
) -> None:
    with pytest.raises(_REFUSED):
        reader, writer = await peers.raw(context=context)
        writer.write(request_bytes())
        if not await reader.read(1):
            raise EOFError
    await poll(lambda: app.listener.connections == 0)
    assert metric(app, "handshake_failures_total", reason=reason) == 1
    assert len(app.links) == 0


async def test_a_peer_without_a_certificate_is_refused(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """C6."""
    await _assert_refused_by_tls(app, peers, peers.context_of(None), "certificate_missing")
    assert not dispatcher.announcements


async def test_an_expired_certificate_is_refused(
    app: ConnectorApp, peers: EdgePeers, authority: TestAuthority
) -> None:
    """C6."""
    expired = authority.issue("system:node:edge-1", starts=-2 * _HOUR, ends=-_HOUR, file="expired")
    await _assert_refused_by_tls(app, peers, peers.context_of(expired), "certificate_expired")


async def test_a_certificate_that_is_not_valid_yet_is_refused(
    app: ConnectorApp, peers: EdgePeers, authority: TestAuthority
) -> None:
    """C6."""
    early = authority.issue("system:node:edge-1", starts=_HOUR, ends=2 * _HOUR, file="early")
    await _assert_refused_by_tls(app, peers, peers.context_of(early), "certificate_not_yet_valid")


async def test_a_certificate_of_another_ca_is_refused(
    app: ConnectorApp, peers: EdgePeers, tmp_path: Path
) -> None:
    """C6."""
    foreign = TestAuthority(tmp_path, "another-ca").node("edge-1")
    await _assert_refused_by_tls(app, peers, peers.context_of(foreign), "certificate_untrusted")


async def test_a_peer_that_speaks_no_tls_is_refused(app: ConnectorApp) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", app.edge_port)
    writer.write(request_bytes())
    while await reader.read(1024):
        pass
    writer.close()
    await writer.wait_closed()
    await poll(lambda: app.listener.connections == 0)
    assert metric(app, "handshake_failures_total", reason="not_tls") == 1


async def test_tls_1_2_is_accepted(app: ConnectorApp, peers: EdgePeers, authority: TestAuthority) -> None:
    context = authority.client_context(authority.node("edge-tls12"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    async with peers.link("edge-tls12", context=context):
        assert len(app.links) == 1


@pytest.mark.parametrize(
    ("common_name", "organization", "text"),
    [
        ("system:node:edge-2", "system:nodes", "edge-2"),
        ("system:node:edge-1", None, "system:nodes"),
        ("system:node:edge-1", "somebody", "somebody"),
        ("edge-1", "system:nodes", "system:node:"),
    ],
)
async def test_a_certificate_that_does_not_say_the_node_is_answered_403(
    app: ConnectorApp,
    peers: EdgePeers,
    authority: TestAuthority,
    dispatcher: LinkDispatcher,
    common_name: str,
    organization: str | None,
    text: str,
) -> None:
    """C6: another node's name, no organisation, another one."""
    issued = authority.issue(common_name, organization, file="odd")
    with pytest.raises(InvalidStatus) as refused:
        await peers.open("edge-1", context=peers.context_of(issued))
    assert refused.value.response.status_code == 403
    assert text in (refused.value.response.body or b"").decode()
    await poll(lambda: app.listener.connections == 0)
    assert not dispatcher.announcements


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /p/edge-1/events HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
        (b"POST /p/edge-1/events HTTP/1.1\r\nHost: x\r\n\r\n", b"405"),
        (b"GET /other HTTP/1.1\r\nHost: x\r\n\r\n", b"426"),
        (request_bytes().replace(b"/events", b"/nothing"), b"404"),
        (request_bytes().replace(b"Version: 13", b"Version: 7"), b"400"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nbroken\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 20_000, b"431"),
        (b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 4_000 + b"\r\n", b"431"),
    ],
)
async def test_a_request_that_is_no_upgrade_is_answered_and_closed(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher, request_text: bytes, status: bytes
) -> None:
    reader, writer = await peers.raw()
    writer.write(request_text)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.split(b" ", 2)[1] == status
    writer.close()
    await poll(lambda: app.listener.connections == 0)
    assert not dispatcher.announcements


async def test_a_handshake_that_is_not_finished_is_cut(start_app: StartApp, authority: TestAuthority) -> None:
    async with start_app(opening_seconds=0.5) as app:
        silent, writer = await asyncio.open_connection("127.0.0.1", app.edge_port)
        assert await silent.read() == b""
        writer.close()
        slow, slow_writer = await EdgePeers(authority, app.edge_port).raw()
        slow_writer.write(b"GET /")
        with pytest.raises(_REFUSED):
            if not await slow.read():
                raise EOFError
        slow_writer.transport.abort()
        await poll(lambda: app.listener.connections == 0)
        assert metric(app, "handshake_failures_total", reason="silent") == 1
        assert metric(app, "handshake_failures_total", reason="request_timeout") == 1


async def test_openings_are_bounded_and_the_rest_waits(start_app: StartApp, authority: TestAuthority) -> None:
    async with start_app(openings_most=1, opening_seconds=0.3) as app:
        _, begun = await asyncio.open_connection("127.0.0.1", app.edge_port)
        begun.write(b"\x16")
        await poll(lambda: metric(app, "openings") == 1)
        async with EdgePeers(authority, app.edge_port).link():
            assert metric(app, "handshake_failures_total", reason="crowded_out") == 1
            assert metric(app, "accept_waits_total") >= 1
        begun.close()


async def test_a_slow_opening_has_its_time_while_there_is_room(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """On a narrow wire a TLS handshake takes long; only while others wait for its place it has a third."""
    async with start_app(openings_most=2, opening_seconds=3.0) as app:
        began = time.monotonic()
        _, slow = await asyncio.open_connection("127.0.0.1", app.edge_port)
        slow.write(b"\x16")
        async with EdgePeers(authority, app.edge_port).link("quick"):
            assert metric(app, "openings") == 1, "the slow one is still at it"
        _, other = await asyncio.open_connection("127.0.0.1", app.edge_port)
        other.write(b"\x16")
        await poll(lambda: metric(app, "openings") == 2)
        async with EdgePeers(authority, app.edge_port).link("late"):
            assert 0.9 < time.monotonic() - began < 2.5
        assert metric(app, "handshake_failures_total", reason="crowded_out") >= 1
        slow.close()
        other.close()


async def test_a_peer_that_leaves_during_the_handshake_is_counted(app: ConnectorApp) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", app.edge_port)
    writer.close()
    await poll(lambda: metric(app, "handshake_failures_total", reason="peer_closed") == 1)
    await poll(lambda: app.listener.connections == 0)


@pytest.mark.parametrize(
    ("frame", "code", "label"),
    [
        ("not json", 1007, "invalid_json"),
        ('{"content":' + "[" * 100_000, 1007, "nested_too_deep"),
        ("[]", 1008, "wrong_shape"),
        ('{"header":{"timestamp":1e999}}', 1008, "wrong_shape"),
        (b"\x00\x01", 1003, "binary_frame"),
        ("x" * 70_000, 1009, "frame_too_big"),
    ],
)
async def test_a_bad_frame_ends_its_link_and_nothing_else(
    start_app: StartApp,
    authority: TestAuthority,
    dispatcher: LinkDispatcher,
    frame: str | bytes,
    code: int,
    label: str,
) -> None:
    """C29, C33."""
    most = 65536 if label == "frame_too_big" else 1024 * 1024
    async with start_app(frame_most_bytes=most) as app:
        peers = EdgePeers(authority, app.edge_port)
        async with peers.link("good") as good, peers.link("bad") as bad:
            await bad.send(keepalive("before"))
            await bad.send(frame)
            with pytest.raises(ConnectionClosed) as closed:
                await bad.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == code
            await dispatcher.until(lambda: dispatcher.ended)
            assert dispatcher.ended[0].reason == link_pb2.CLOSE_REASON_PROTOCOL_ERROR
            assert dispatcher.ended[0].link == 2
            assert dispatcher.upstream[0].message.id == "before"
            await good.send(keepalive("after"))
            await dispatcher.until(lambda: len(dispatcher.upstream) == 2)
            assert metric(app, "frames_refused_total", reason=label) == 1


@pytest.mark.parametrize(
    ("data", "code", "label"),
    [
        (Frame(Opcode.TEXT, b'{"content":"\xff"}').serialize(mask=True), 1007, "invalid_utf8"),
        (Frame(Opcode.TEXT, b"{}").serialize(mask=False), 1002, "websocket_protocol"),
        (Frame(Opcode.CONT, b"{}").serialize(mask=True), 1002, "websocket_protocol"),
        (b"\x8f\x80", 1002, "websocket_protocol"),
        # C33: the announced length alone is enough; no such memory was ever there.
        (b"\x81\xff" + (2**62).to_bytes(8, "big"), 1009, "frame_too_big"),
        (
            Frame(Opcode.TEXT, b"x" * 2_800_000, fin=False).serialize(mask=True)
            + Frame(Opcode.CONT, b"x" * 2_800_000).serialize(mask=True),
            1009,
            "frame_too_big",
        ),
    ],
    # Said here: the mask of a frame is another one each time.
    ids=["no UTF-8", "unmasked", "no beginning", "reserved opcode", "announced too big", "too big in parts"],
)
async def test_bytes_that_are_no_frames_end_the_link(
    app: ConnectorApp,
    peers: EdgePeers,
    dispatcher: LinkDispatcher,
    data: bytes,
    code: int,
    label: str,
) -> None:
    """C29, C33."""
    reader, writer = await peers.raw()
    writer.write(request_bytes())
    await reader.readuntil(b"\r\n\r\n")
    writer.write(data)
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer[0] == 0x88
    assert int.from_bytes(answer[2:4], "big") == code
    writer.close()
    await dispatcher.until(lambda: dispatcher.ended)
    assert dispatcher.ended[0].reason == link_pb2.CLOSE_REASON_PROTOCOL_ERROR
    assert metric(app, "frames_refused_total", reason=label) == 1
    await poll(lambda: app.listener.connections == 0)


async def test_a_peer_that_pings_and_reads_nothing_costs_no_memory(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    reader, writer = await peers.raw("edge-1", limit=1024)
    writer.write(request_bytes())
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    ping = Frame(Opcode.PING, b"x" * 125).serialize(mask=True)
    await dispatcher.announced()
    content = b'"' + b"y" * 6_000_000 + b'"'
    dispatcher.send_messages(1, message_pb2.Message(id="m", content=content))
    await poll(lambda: (link := app.links.get(1)) and link.transport.blocked)
    writer.write(ping * 1000 + Frame(Opcode.TEXT, keepalive("end").encode()).serialize(mask=True))
    await dispatcher.until(lambda: dispatcher.upstream)
    link = app.links.get(1)
    assert link is not None
    assert len(link.transport._pong) == 127  # type: ignore[attr-defined]
    writer.transport.abort()
    await dispatcher.until(lambda: dispatcher.ended)


async def test_a_peer_that_ignores_a_close_is_cut(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher
) -> None:
    async with start_app(close_seconds=0.2) as app:
        reader, writer = await EdgePeers(authority, app.edge_port).raw()
        writer.write(request_bytes())
        await reader.readuntil(b"\r\n\r\n")
        dispatcher.close_link(1, link_pb2.CLOSE_REASON_KEEPALIVE_TIMEOUT)
        await dispatcher.until(lambda: dispatcher.ended)
        writer.write(Frame(Opcode.TEXT, keepalive("ignored").encode()).serialize(mask=True))
        with pytest.raises(_REFUSED):
            await reader.readexactly(10_000)
        await poll(lambda: app.listener.connections == 0)
        assert not dispatcher.upstream
        writer.transport.abort()
