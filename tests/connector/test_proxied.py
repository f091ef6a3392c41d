"""Load balancers that say by PROXY headers where connections come from: `--proxy-networks`."""

import asyncio
import socket
from ipaddress import IPv4Address

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import ClientConnection, connect

from services.connector.app import ConnectorApp
from services.connector.settings import ConnectorSettings
from services.runtime.acceptor import Proxies
from services.runtime.proxy_header import networks_of
from tests.connector.conftest import MakeSettings, StartApp, metric, poll
from tests.runtime.test_proxy_header import header
from tests.support.certs import TestAuthority
from tests.support.edge_peer import PROJECT, EdgePeers

BALANCERS = "127.0.0.0/8"
EDGE = IPv4Address("192.0.2.17")


async def dialled(app: ConnectorApp, *pieces: bytes) -> socket.socket:
    """A connection that has sent these bytes, each piece by itself."""
    loop = asyncio.get_running_loop()
    made = socket.socket()
    made.setblocking(False)
    await loop.sock_connect(made, ("127.0.0.1", app.edge_port))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for piece in pieces:
        await loop.sock_sendall(made, piece)
        await asyncio.sleep(0)
    return made


async def linked(peers: EdgePeers, made: socket.socket, node_id: str = "edge-1") -> ClientConnection:
    """A link over it."""
    return await connect(
        f"wss://localhost/{PROJECT}/{node_id}/events",
        ssl=peers.context(node_id),
        sock=made,
        additional_headers={"Node_id": node_id, "Project_id": PROJECT, "Connectionuse": "msg"},
        compression=None,
        ping_interval=None,
        proxy=None,
    )


async def cut(made: socket.socket) -> None:
    """Returns when the connector has ended it."""
    async with asyncio.timeout(10):
        try:
            assert await asyncio.get_running_loop().sock_recv(made, 1) == b""
        except ConnectionResetError:
            pass
    made.close()


def failed(app: ConnectorApp, reason: str) -> float:
    return metric(app, "handshake_failures_total", transport="websocket", reason=reason)


async def test_the_address_of_a_link_is_the_one_that_its_header_tells(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """However the header is cut, and with bytes of other kinds behind the addresses."""
    async with start_app(proxy_networks=BALANCERS) as app:
        peers = EdgePeers(authority, app.edge_port)
        whole = header(EDGE, 4711, tlvs=b"\x04\x00\x03abc")
        for pieces in ((whole,), (whole[:1], whole[1:15], whole[15:16], whole[16:40], whole[40:])):
            with capture_logs() as logs:
                link = await linked(peers, await dialled(app, *pieces))
                await link.close()
                await poll(lambda: not app.listener.connections)
            (opened,) = (line for line in logs if line["event"] == "link.opened")
            assert opened["peer"] == "192.0.2.17:4711"


async def test_a_balancer_may_connect_for_itself(start_app: StartApp, authority: TestAuthority) -> None:
    async with start_app(proxy_networks=BALANCERS) as app:
        peers = EdgePeers(authority, app.edge_port)
        with capture_logs() as logs:
            link = await linked(peers, await dialled(app, header(EDGE, 1, command=0)))
            await link.close()
            await poll(lambda: not app.listener.connections)
        (opened,) = (line for line in logs if line["event"] == "link.opened")
        assert opened["peer"].startswith("127.0.0.1:")


async def test_shares_are_those_of_the_addresses_that_are_told(start_app: StartApp) -> None:
    """Of a balancer's connections the address with the most gives way; the other one notices nothing."""
    async with start_app(proxy_networks=BALANCERS, max_waiting_connections=4) as app:
        other = await dialled(app, header(IPv4Address("192.0.2.99"), 1))
        await poll(lambda: metric(app, "waiting_connections", transport="websocket") == 1)
        many = []
        for number in range(12):
            many.append(await dialled(app, header(EDGE, number)))
            await poll(lambda: app.listener._openings.networks() == 2)
        await poll(lambda: failed(app, "crowded_out") + failed(app, "crowded") >= 9)
        with pytest.raises(BlockingIOError):
            other.recv(1)
        for one in (other, *many):
            one.close()


async def test_a_header_that_nobody_expects_has_a_reason_of_its_own(start_app: StartApp) -> None:
    """Where it is off, and from a network that is not named; of either version. Others are as ever."""
    for networks in ("", "192.0.2.0/24"):
        async with start_app(proxy_networks=networks) as app:
            with capture_logs() as logs:
                for data in (header(EDGE, 1) + b"\x16\x03\x01", b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n"):
                    await cut(await dialled(app, data))
            assert failed(app, "proxy_header_unexpected") == 2
            told = next(line for line in logs if line["event"] == "handshake.failed")
            assert told["reason"] == "proxy_header_unexpected"
            assert told["detail"] == "it begins with a PROXY header; --proxy-networks names who may send one"
            await cut(await dialled(app, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"))
            assert failed(app, "not_tls") == 1


async def test_who_has_to_send_a_header_and_does_not_is_cut(start_app: StartApp) -> None:
    async with start_app(proxy_networks=BALANCERS) as app:
        for data in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(32),
            b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n",
            header(EDGE, 1, version=3),
        ):
            await cut(await dialled(app, data))
        assert failed(app, "proxy_header_malformed") == 3
        half = await dialled(app, header(EDGE, 1)[:20])
        half.close()
        await poll(lambda: failed(app, "peer_closed") == 1)


async def test_a_header_that_does_not_come_ends_its_connection_alone(
    start_app: StartApp, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither does one that stops half way; an edge that comes meanwhile has its link."""
    proxies = Proxies(networks_of(BALANCERS), header_seconds=0.5)
    monkeypatch.setattr(ConnectorSettings, "proxies", lambda _: proxies)
    async with start_app() as app:
        stuck = [await dialled(app), await dialled(app, header(EDGE, 1)[:20])]
        link = await linked(EdgePeers(authority, app.edge_port), await dialled(app, header(EDGE, 2)))
        for one in stuck:
            await cut(one)
        assert failed(app, "proxy_header_timeout") == 2
        await link.close()


def test_networks_that_are_none_are_refused(make_settings: MakeSettings) -> None:
    with pytest.raises(ValueError, match="should be networks as in"):
        make_settings("127.0.0.1:1", proxy_networks="10.0.0.1/8")
