"""Attacks on the QUIC port by peers with a proved address, and what others notice of them."""

import asyncio
import socket

from aioquic.quic.connection import QuicConnection

from services.connector.app import ConnectorApp
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.figures import Figures
from tests.support.quic_peer import HOST, QuicPeers
from tests.support.strangers import ATTACKER, shown, times

_MOST_SECONDS = 2.0


async def test_openings_of_one_network_keep_no_edge_out(
    start_app: StartApp, authority: TestAuthority, figures: Figures
) -> None:
    """C47: all openings there may be are one network's, and none of them goes on; others get in."""
    async with start_app(openings_most=16) as app:
        peers = QuicPeers(authority, app.quic_port)

        async def connect(_: int) -> None:
            async with peers.link("edge-1"):
                pass

        idle = await times(5, connect)
        stuck = [await peers.dial(peers.issued("edge-2"), local=ATTACKER) for _ in range(16)]
        await poll(lambda: metric(app, "openings", transport="quic") == 16)
        attacked = await times(5, connect)
        figures(shown("connect over QUIC, all openings another network's", idle, attacked))
        assert attacked[-1] < _MOST_SECONDS
        assert metric(app, "handshake_failures_total", transport="quic", reason="crowded_out") >= 1
        assert metric(app, "openings", transport="quic") <= 16
        for transport, peer in stuck:
            peer.close()
            transport.close()


async def test_a_retry_token_opens_one_connection(start_app: StartApp, authority: TestAuthority) -> None:
    """C47: the packet that carried it, sent again when its connection is gone, opens none."""
    async with start_app(opening_seconds=0.3) as app:
        peers = QuicPeers(authority, app.quic_port)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.setblocking(False)
            stranger.bind((ATTACKER, 0))
            hello = await _with_token(stranger, peers, app)
            stranger.sendto(hello, (HOST, app.quic_port))
            await poll(lambda: metric(app, "handshake_failures_total", transport="quic") == 1)
            await poll(lambda: app.quic is not None and app.quic.connections == 0)
            for _ in range(3):
                stranger.sendto(hello, (HOST, app.quic_port))
            await poll(lambda: metric(app, "quic_dropped_total", reason="token_used") == 3)
            assert metric(app, "handshake_failures_total", transport="quic") == 1


async def _with_token(stranger: socket.socket, peers: QuicPeers, app: ConnectorApp) -> bytes:
    """A client's first packet after the retry."""
    loop = asyncio.get_running_loop()
    client = QuicConnection(configuration=peers.configuration(None))
    hub = (HOST, app.quic_port)
    client.connect(hub, loop.time())
    for datagram, _ in client.datagrams_to_send(loop.time()):
        stranger.sendto(datagram, hub)
    client.receive_datagram(await loop.sock_recv(stranger, 2048), hub, loop.time())
    ((hello, _),) = client.datagrams_to_send(loop.time())
    return hello
