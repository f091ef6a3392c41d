"""Attacks on a connector by many connections at once, or by slow ones, and what others notice of them."""

import asyncio
import ssl
import time
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from websockets.frames import Frame, Opcode

from cloudhub.v1 import message_pb2
from services.connector.app import ConnectorApp
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.edge_peer import EdgePeers, keepalive, request_bytes
from tests.support.figures import Figures
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.strangers import ATTACKER, shown, strangers, times


@asynccontextmanager
async def _untouched(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher, seconds: float
) -> AsyncIterator[None]:
    """An edge that behaves well exchanges messages all the time; each has to come within `seconds`."""
    async with peers.link("good") as good:
        link = dispatcher.announcements[-1].link
        over = asyncio.Event()
        rounds = 0

        async def exchange(number: int) -> None:
            begun = time.monotonic()
            dispatcher.send_messages(link, message_pb2.Message(id=f"down-{number}", content=b"1"))
            assert f"down-{number}" in str(await good.recv())
            await good.send(keepalive(f"up-{number}"))
            await dispatcher.until(
                lambda: dispatcher.upstream[-1:] and dispatcher.upstream[-1].message.id == f"up-{number}"
            )
            assert time.monotonic() - begun < seconds, "the edge that behaves well had to wait"

        async def exchange_on() -> None:
            nonlocal rounds
            while not over.is_set():
                await exchange(rounds)
                rounds += 1
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            group.create_task(exchange_on())
            try:
                yield
            finally:
                over.set()
        assert rounds > 0


def _client_hello(context: ssl.SSLContext) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="localhost").do_handshake()
    return outgoing.read()


_MOST_SECONDS = 2.0
"""What an edge needs to get in during an attack, at the very most; idle it needs some hundredths."""


async def _connecting(peers: EdgePeers, count: int, source: str = "127.0.0.1") -> list[float]:
    """How long an edge at that address needs for a link."""

    async def connect(number: int) -> None:
        async with peers.link(f"edge-{number % 4}", local_addr=(source, 0)):
            pass

    return await times(count, connect)


@pytest.mark.no_cover
@pytest.mark.parametrize("source", [ATTACKER, "127.0.0.1"], ids=["other address", "same address"])
async def test_thousands_of_silent_sockets_keep_no_edge_out(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher, figures: Figures, source: str
) -> None:
    """C47, invariants 6, 7: who only connects takes nothing from edges, not at its own address either."""
    async with start_app() as app:
        peers = EdgePeers(authority, app.edge_port)
        idle = await _connecting(peers, 10)
        async with _untouched(app, peers, dispatcher, 2.0), strangers(app.edge_port, 5300, source) as silent:
            await poll(lambda: silent.cut() >= 5300 - 4096, 20)
            attacked = await _connecting(peers, 10)
            figures(shown("connect, 5 300 silent sockets", idle, attacked))
            assert attacked[-1] < _MOST_SECONDS
            assert metric(app, "openings") <= 2
            assert metric(app, "waiting_connections", transport="websocket") <= 4096 + 2
            assert metric(app, "handshake_failures_total", reason="crowded_out") >= 5300 - 4096
        await poll(lambda: app.listener.connections == 0)
        assert metric(app, "waiting_connections") == 0


@pytest.mark.no_cover
async def test_half_finished_handshakes_of_one_network_keep_no_edge_out(
    start_app: StartApp, authority: TestAuthority, dispatcher: LinkDispatcher, figures: Figures
) -> None:
    """C47: all that may be at work is one network's, which comes again whenever it is cut; others get in."""
    hello = _client_hello(authority.client_context(None))
    async with start_app(openings_most=64, max_waiting_connections=256) as app:
        peers = EdgePeers(authority, app.edge_port)
        idle = await _connecting(peers, 10)
        async with (
            _untouched(app, peers, dispatcher, 2.0),
            strangers(app.edge_port, 320, data=hello, persistent=True),
        ):
            await poll(lambda: metric(app, "openings") == 64)
            attacked = await _connecting(peers, 10)
            figures(shown("connect, all openings another network's", idle, attacked))
            assert attacked[-1] < _MOST_SECONDS
        await poll(lambda: app.listener.connections == 0)
        await poll(lambda: metric(app, "openings") == 0)


@pytest.mark.no_cover
async def test_a_fleet_behind_one_address_gets_in_beside_an_attacker(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """Whole fleets come in the same second: neither a share nor an attacker keeps them out."""
    fleet = 40
    async with start_app(openings_most=8, max_waiting_connections=256) as app:
        peers = EdgePeers(authority, app.edge_port)
        for number in range(fleet):
            peers.context(f"edge-{number}")
        async with (
            strangers(app.edge_port, 300, persistent=True),
            strangers(app.edge_port, 150, "127.0.0.67", b"\x16", persistent=True),
        ):
            async with asyncio.timeout(60), asyncio.TaskGroup() as group:
                opening = [group.create_task(peers.open(f"edge-{number}")) for number in range(fleet)]
            assert len(app.links.admitted()) == fleet
            for task in opening:
                await task.result().close()


@pytest.mark.no_cover
async def test_peers_that_do_not_read_their_refusal_take_nothing_from_others(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """What is being closed counts too: refused as fast as they like, strangers hold no more than they may."""
    async with start_app(openings_most=16, max_waiting_connections=64, opening_seconds=5.0) as app:
        peers = EdgePeers(authority, app.edge_port)
        async with strangers(app.edge_port, 200, data=b"GET / HTTP/1.1\r\n\r\n" * 9, persistent=True):
            await poll(lambda: metric(app, "handshake_failures_total", reason="not_tls") >= 400, 30)
            assert app.listener.connections <= 64 + 16 + 1
            assert (await _connecting(peers, 5))[-1] < _MOST_SECONDS
        await poll(lambda: app.listener.connections == 0)


@pytest.mark.no_cover
async def test_openings_that_are_not_finished_end_in_their_time(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """Invariant 6: nobody else wants the room, and it is free again all the same."""
    hello = _client_hello(authority.client_context(None))
    async with start_app(opening_seconds=3.0) as app:
        async with strangers(app.edge_port, 50), strangers(app.edge_port, 50, data=hello):
            await poll(lambda: metric(app, "handshake_failures_total", reason="silent") == 50, 20)
            await poll(lambda: metric(app, "handshake_failures_total", reason="handshake_timeout") == 50, 20)
        await poll(lambda: app.listener.connections == 0)


@pytest.mark.parametrize("phase", ["tls", "request"])
async def test_a_peer_that_sends_byte_by_byte_has_no_more_time_than_others(
    start_app: StartApp, authority: TestAuthority, phase: str
) -> None:
    """The deadline is of the whole opening: a byte now and then does not move it."""
    async with start_app(opening_seconds=0.5) as app:
        begun = time.monotonic()
        if phase == "tls":
            data = _client_hello(authority.client_context(None))
            reader, writer = await asyncio.open_connection("127.0.0.1", app.edge_port)
        else:
            data = request_bytes()
            reader, writer = await EdgePeers(authority, app.edge_port).raw()
        # What uvloop says of a write to a connection that it has closed is a RuntimeError.
        with pytest.raises((ConnectionError, EOFError, ssl.SSLError, RuntimeError)):
            for byte in data:
                writer.write(bytes([byte]))
                async with asyncio.timeout(5):
                    await writer.drain()
                if reader.at_eof() or writer.is_closing():
                    raise EOFError
                await asyncio.sleep(0.02)
        assert time.monotonic() - begun < 1.5
        await poll(lambda: app.listener.connections == 0)
        reason = "handshake_timeout" if phase == "tls" else "request_timeout"
        assert metric(app, "handshake_failures_total", reason=reason) == 1
        writer.transport.abort()


async def test_a_frame_that_comes_byte_by_byte_is_a_frame(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """A slow link is no fault; what it has sent of a frame so far is all that is kept of it."""
    reader, writer = await peers.raw()
    writer.write(request_bytes())
    await reader.readuntil(b"\r\n\r\n")
    for byte in Frame(Opcode.TEXT, keepalive("slow").encode()).serialize(mask=True):
        writer.write(bytes([byte]))
        await asyncio.sleep(0)
    await dispatcher.until(lambda: dispatcher.upstream)
    assert dispatcher.upstream[0].message.id == "slow"
    writer.transport.abort()
    await dispatcher.until(lambda: dispatcher.ended)


@pytest.mark.parametrize(
    "offer",
    ["permessage-deflate", "permessage-deflate; client_max_window_bits", "x-unknown, permessage-deflate"],
)
async def test_compression_is_not_agreed_to(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher, offer: str
) -> None:
    """C33: a frame that says it is compressed ends the link; it is never inflated."""
    request = request_bytes().replace(b"\r\n\r\n", f"\r\nSec-WebSocket-Extensions: {offer}\r\n\r\n".encode())
    reader, writer = await peers.raw()
    writer.write(request)
    answer = await reader.readuntil(b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 101")
    assert b"extensions" not in answer.lower()
    # 100 MiB of spaces are 100 KiB of it.
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = squeezer.compress(b" " * (100 * 1024 * 1024)) + squeezer.flush(zlib.Z_SYNC_FLUSH)
    frame = Frame(Opcode.TEXT, bomb).serialize(mask=True)
    writer.write(bytes([frame[0] | 0x40]) + frame[1:])
    closing = await asyncio.wait_for(reader.read(), 5)
    assert int.from_bytes(closing[2:4], "big") == 1002
    assert metric(app, "frames_refused_total", reason="websocket_protocol") == 1
    writer.close()
    await poll(lambda: app.listener.connections == 0)
    assert not dispatcher.upstream


async def test_openings_that_ask_and_leave_are_forgotten(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """Invariant 6: edges that leave while the dispatcher decides, a hundred times."""
    dispatcher.admit = False
    peers.context("edge-1")
    for number in range(100):
        _, writer = await peers.raw()
        writer.write(request_bytes())
        await dispatcher.announced(number + 1)
        writer.transport.abort()
    await dispatcher.until(lambda: len(dispatcher.ended) == 100)
    await poll(lambda: app.listener.connections == 0)
    assert len(app.links) == 0
    assert metric(app, "openings") == 0
