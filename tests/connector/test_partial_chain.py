"""A CA of edges that is another CA's: it is trusted, whether edges show it or not; none beside it is."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import pytest

from edge.agent import EdgeFleet
from edge.settings import EdgeSettings
from services.connector.app import ConnectorApp
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import Issued, TestAuthority
from tests.support.edge_peer import EdgePeers, request_bytes
from tests.support.processes import eventually
from tests.support.quic_peer import QuicPeers

Carrier = Literal["websocket", "quic"]
_CN = "system:node:edge-1"
CHAINS = pytest.mark.parametrize("shows_chain", [False, True], ids=["alone", "with its chain"])


@pytest.fixture
def root(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path / "root", "root", path_length=1)


@pytest.fixture
def devices(tmp_path: Path, root: TestAuthority) -> TestAuthority:
    """The CA that the hub is given."""
    return TestAuthority(tmp_path / "devices", "devices", parent=root)


@pytest.fixture
def intruder(tmp_path: Path, root: TestAuthority) -> Issued:
    """A certificate of the same node, of another CA of the same root."""
    office = TestAuthority(tmp_path / "office", "office", parent=root)
    return office.issue(_CN, chain=office.chain())


@pytest.fixture
async def app(start_app: StartApp, devices: TestAuthority) -> AsyncIterator[ConnectorApp]:
    """A connector for that CA's edges."""
    server = devices.issue("localhost", None, file="server")
    async with start_app(
        client_ca=devices.certificate, certificate=server.certificate, private_key=server.key
    ) as running:
        yield running


def edge(devices: TestAuthority, *, shows_chain: bool) -> Issued:
    return devices.issue(_CN, chain=devices.chain() if shows_chain else b"")


@CHAINS
async def test_an_edge_of_it_is_admitted(
    app: ConnectorApp, devices: TestAuthority, shows_chain: bool
) -> None:
    peers = EdgePeers(devices, app.edge_port)
    issued = edge(devices, shows_chain=shows_chain)
    connection = await peers.open("edge-1", context=peers.context_of(issued))
    assert len(app.links) == 1
    await connection.close()


async def test_who_is_of_another_ca_of_the_root_is_not(
    app: ConnectorApp, devices: TestAuthority, intruder: Issued
) -> None:
    peers = EdgePeers(devices, app.edge_port)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        reader, writer = await peers.raw(context=peers.context_of(intruder))
        writer.write(request_bytes())
        if not await reader.read(1):
            raise EOFError
    await poll(lambda: metric(app, "handshake_failures_total", reason="certificate_untrusted") == 1)


@CHAINS
async def test_the_same_over_quic(app: ConnectorApp, devices: TestAuthority, shows_chain: bool) -> None:
    peers = QuicPeers(devices, app.quic_port)
    issued = edge(devices, shows_chain=shows_chain)
    async with peers.connection(issued, verify_mode=ssl.CERT_NONE) as peer:
        peer.ask("edge-1")
        assert (await peer.answer()).router.operation == "ack"


async def test_the_other_ca_is_refused_over_quic(
    app: ConnectorApp, devices: TestAuthority, intruder: Issued
) -> None:
    peers = QuicPeers(devices, app.quic_port)
    async with peers.connection(intruder, verify_mode=ssl.CERT_NONE) as peer:
        peer.ask("edge-1")
        await peer.closed()
    await poll(lambda: metric(app, "handshake_failures_total", reason="certificate_untrusted") == 1)


def _settings(app: ConnectorApp, devices: TestAuthority, folder: Path, transport: Carrier) -> EdgeSettings:
    issued = edge(devices, shows_chain=False)
    return EdgeSettings(
        server=f"wss://localhost:{app.edge_port}",
        quic_server=f"quic://localhost:{app.quic_port}",
        transport=transport,
        ca=devices.certificate,
        certificate=issued.certificate,
        key=issued.key,
        database=folder / "edge.db",
        first_delay_seconds=0.02,
        most_delay_seconds=0.2,
    )


TRANSPORTS = pytest.mark.parametrize("transport", ["websocket", "quic"])


@TRANSPORTS
async def test_our_agent_trusts_a_hub_of_it(
    app: ConnectorApp, devices: TestAuthority, tmp_path: Path, transport: Carrier
) -> None:
    settings = _settings(app, devices, tmp_path, transport)
    async with EdgeFleet(settings, ["edge-1"]) as fleet, asyncio.timeout(15):
        await fleet.connected()


@TRANSPORTS
@pytest.mark.parametrize("whose", ["of another CA", "for another host"])
async def test_our_agent_trusts_no_other_hub(
    start_app: StartApp,
    root: TestAuthority,
    devices: TestAuthority,
    tmp_path: Path,
    transport: Carrier,
    whose: str,
) -> None:
    """Another CA of the same root, or a name that was not dialled; over QUIC too nothing is said to it."""
    issuer = devices if "host" in whose else TestAuthority(tmp_path / "office", "office", parent=root)
    names = ("elsewhere",) if "host" in whose else ("localhost",)
    server = issuer.issue("localhost", None, file="server", names=names, chain=issuer.chain())
    async with (
        start_app(
            client_ca=devices.certificate, certificate=server.certificate, private_key=server.key
        ) as app,
        EdgeFleet(_settings(app, devices, tmp_path, transport), ["edge-1"]) as fleet,
    ):
        await eventually(lambda: fleet["edge-1"].counters.dials_failed > 1, 10, "failed dials")
        assert (fleet.links, len(app.links)) == (0, 0)
