"""The clients in examples/, on QUIC stacks of others, against a whole hub (`make check-peers`)."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aioquic.tls import Epoch
from cryptography.hazmat.primitives.asymmetric import ec

from cloudhub.v1 import connector_pb2, sessions_pb2
from cloudhub.v1 import dispatcher_pb2 as pb
from services.connector.quic.transport import QuicEdgeConnection
from tests.support.certs import Issued, TestAuthority
from tests.support.edge_peer import PROJECT
from tests.support.hub import RunningHub, request, running_hub
from tests.support.processes import eventually
from tests.support.tools import program

pytestmark = [pytest.mark.peers, pytest.mark.timeout(300)]

ACKNOWLEDGED = pb.DELIVERY_STATE_ACKNOWLEDGED
_WAIT_SECONDS = 60.0
_PACKETS = 300  # More than an end of quic-go's sends or receives before it changes keys for the first time.

clients = pytest.mark.parametrize("client", ["edge-go", "edge-rust"])
go_alone = pytest.mark.parametrize("client", ["edge-go"])


class Peer:
    """A running client: its lines, and what it is told."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []

    async def until(self, beginning: str) -> str:
        """The first line yet to come that begins so."""
        assert self._process.stdout
        try:
            async with asyncio.timeout(_WAIT_SECONDS):
                while line := (await self._process.stdout.readline()).decode().rstrip("\n"):
                    self.lines.append(line)
                    if line.startswith(beginning):
                        return line
        except TimeoutError:
            raise AssertionError(f"the client did not say {beginning!r}: {self.lines}") from None
        raise AssertionError(f"the client ended without {beginning!r}: {self.lines}")

    def tell(self, line: str) -> None:
        """A command."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n".encode())

    async def exit_code(self) -> int:
        """When it has ended."""
        return await asyncio.wait_for(self._process.wait(), _WAIT_SECONDS)


@asynccontextmanager
async def running(
    client: str,
    hub: RunningHub,
    issued: Issued,
    *flags: str,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Peer]:
    """A client of a node of the hub; it is ended with the block."""
    process = await asyncio.create_subprocess_exec(
        program(client, client),
        *("--hub", f"localhost:{hub.connector.app.quic_port}", "--ca", str(hub.authority.certificate)),
        *("--cert", str(issued.certificate), "--key", str(issued.key)),
        *("--node", "edge-1", "--project", PROJECT, *flags),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield Peer(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _delivers(hub: RunningHub, peer: Peer, version: int) -> None:
    await hub.accept(request("edge-1", name="cm1", version=version))
    assert await peer.until("received") == f"received update default/configmap/cm1 {version}"
    async with asyncio.timeout(_WAIT_SECONDS):
        while True:
            explained = await hub.until_state("edge-1", "uid-cm1", ACKNOWLEDGED, _WAIT_SECONDS)
            if explained.object.acknowledged_version == str(version):
                return


def _transport(hub: RunningHub) -> QuicEdgeConnection:
    (link,) = hub.connector.app.links.admitted()
    assert isinstance(link.transport, QuicEdgeConnection)
    return link.transport


async def _moves(hub: RunningHub, peer: Peer) -> None:
    """The client goes on from another address, over the same connection."""
    transport = _transport(hub)
    assert transport.peer_address.startswith("127.0.0.1:")
    peer.tell("migrate 127.0.0.2")
    await peer.until("migrated 127.0.0.2")
    peer.tell("say 1")
    await eventually(lambda: transport.peer_address.startswith("127.0.0.2:"), _WAIT_SECONDS)


async def _changes_keys(hub: RunningHub, peer: Peer) -> None:
    """Both directions have new keys: the hub follows the client."""
    keys = _transport(hub)._quic._cryptos[Epoch.ONE_RTT]
    received, sent = keys.recv.key_phase, keys.send.key_phase
    peer.tell(f"rekey {_PACKETS}")
    await eventually(lambda: keys.recv.key_phase != received and keys.send.key_phase != sent, _WAIT_SECONDS)
    await peer.until("rekeyed")


@clients
async def test_a_client_of_another_stack_has_a_link_and_all_it_carries(
    tmp_path: Path, authority: TestAuthority, client: str
) -> None:
    """Open, publish down, acknowledge, upload, migrate, change keys, be evicted."""
    async with (
        running_hub(tmp_path, authority) as hub,
        hub.subscriber("router") as router,
        running(client, hub, authority.node("edge-1")) as peer,
    ):
        await peer.until("open")
        await _delivers(hub, peer, 1)
        peer.tell('upload {"reading": 1}')
        (delivery,) = await router.take(1)
        await router.acknowledge(delivery)
        assert await peer.until("answered") == 'answered response "OK"'
        epoch = (await hub.session("edge-1")).epoch
        await _moves(hub, peer)
        await _delivers(hub, peer, 2)
        await _changes_keys(hub, peer)
        await _delivers(hub, peer, 3)
        assert (await hub.session("edge-1")).epoch == epoch
        await hub.sessions_admin.EvictSession(sessions_pb2.EvictSessionRequest(node_id="edge-1"))
        assert (await peer.until("closed")).startswith("closed 4002 evicted by an operator")
        assert await peer.exit_code() == 0


@clients
async def test_a_client_of_another_stack_is_drained(
    tmp_path: Path, authority: TestAuthority, client: str
) -> None:
    """C11."""
    async with (
        running_hub(tmp_path, authority) as hub,
        running(client, hub, authority.node("edge-1")) as peer,
    ):
        await peer.until("open")
        await hub.connector_admin.Drain(connector_pb2.DrainRequest(links_per_second=1000))
        assert (await peer.until("closed")).startswith("closed 1012 the connector drains, reconnect")


@clients
async def test_a_client_of_another_stack_leaves(
    tmp_path: Path, authority: TestAuthority, client: str
) -> None:
    """Its session ends with the close, not with a time-out."""
    async with (
        running_hub(tmp_path, authority) as hub,
        running(client, hub, authority.node("edge-1")) as peer,
    ):
        await peer.until("open")
        peer.tell("leave")
        assert await peer.until("closed") == "closed 1000 leaving"
        assert await peer.exit_code() == 0
        await hub.until_session(
            "edge-1", lambda session: session.state == sessions_pb2.SESSION_STATE_CLOSED, _WAIT_SECONDS
        )


@clients
async def test_a_client_of_another_stack_is_told_why_it_is_refused(
    tmp_path: Path, authority: TestAuthority, client: str
) -> None:
    """Its handshake succeeds: only the answer to its request says that it is not let in."""
    async with (
        running_hub(tmp_path, authority) as hub,
        running(client, hub, authority.node("edge-1"), "--node", "edge-2") as peer,
    ):
        told = await peer.until("failed")
        # A busy client may see the close, whose code is the status too, before it has read the answer.
        assert "403" in told or "0x193" in told
        assert await peer.exit_code() == 1
        assert hub.connector.app.links.admitted() == []


@go_alone
async def test_go_in_fips_mode_connects_with_its_defaults(
    tmp_path: Path, authority: TestAuthority, client: str
) -> None:
    """Its first ClientHello has no key share of the hub's groups."""
    environment = {"GODEBUG": "fips140=on"}
    async with (
        running_hub(tmp_path, authority) as hub,
        running(client, hub, authority.node("edge-1"), environment=environment) as peer,
    ):
        await peer.until("open")
        await _delivers(hub, peer, 1)


@go_alone
async def test_go_without_connection_ids_may_migrate(
    tmp_path: Path, authority: TestAuthority, client: str
) -> None:
    """`quic.DialAddr` dials so: the path it tries is answered."""
    async with (
        running_hub(tmp_path, authority) as hub,
        running(client, hub, authority.node("edge-1"), "--without-ids") as peer,
    ):
        await peer.until("open")
        await _moves(hub, peer)
        await _delivers(hub, peer, 1)


@go_alone
async def test_a_key_of_a_kind_that_the_hub_does_not_list_is_not_shown(
    tmp_path: Path, authority: TestAuthority, client: str
) -> None:
    """Go's TLS then sends no certificate at all, and that is what the hub tells."""
    issued = authority.issue("system:node:edge-1", key=ec.generate_private_key(ec.SECP521R1()), file="p521")
    async with running_hub(tmp_path, authority) as hub, running(client, hub, issued) as peer:
        assert "0x174" in await peer.until("failed")  # certificate_required
        failures = hub.metric("connector", "handshake_failures_total", reason="certificate_missing")
        assert failures == 1
