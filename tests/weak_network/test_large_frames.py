"""Frames that are larger than any may be."""

import asyncio
import ssl

import psutil
import pytest

from services.connector.quic.framing import frame_header
from tests.lab.peers import Peer
from tests.lab.quic_peers import quic_link
from tests.lab.scenario import TRANSPORT, Scenario
from tests.support.edge_peer import request_bytes
from tests.support.quic_peer import UP
from tests.weak_network.conftest import Stage

pytestmark = [pytest.mark.weak_network, pytest.mark.timeout(600)]

ANNOUNCED_BYTES = 1 << 30
SENT_BYTES = 32 * 1024 * 1024
# More than it lets in, so that all that may come behind the header does.
SENT_OVER_QUIC_BYTES = 1024 * 1024
MOST_GROWTH_BYTES = 24 * 1024 * 1024
PEERS = [f"large-{number}" for number in range(1, 9)]


async def test_a_frame_over_the_limit_takes_no_memory(stage: Stage) -> None:
    """C33, invariants 7 and 10: eight edges announce a frame of 1 GiB and begin to send it. The length alone
    is enough: closed with 1009, the connector does not grow, the others notice nothing."""
    stage.lab.add_site("large")
    async with stage.scenario("frames of 1 GiB", {"others": 15}, misbehaving=PEERS) as scenario:
        await scenario.start()
        connector = psutil.Process(scenario.hub.connectors[0].child.pid)
        before = connector.memory_info().rss
        with scenario.publishing_to(PEERS):
            announce = _announce_over_quic if TRANSPORT == "quic" else _announce
            closes = await asyncio.gather(*(announce(scenario, peer) for peer in PEERS))
        grown = connector.memory_info().rss - before
        scenario.note = f"the connector grew by {max(0, grown) / 1e6:.1f} MB"
        assert closes == [1009] * len(PEERS)
        assert grown < MOST_GROWTH_BYTES
        await scenario.load_for(5)


async def _announce(scenario: Scenario, node_id: str) -> int:
    """The close code that the hub answers with."""
    nodes = scenario.certificates / "nodes"
    context = ssl.create_default_context(cafile=str(scenario.certificates / "ca.crt"))
    context.load_cert_chain(nodes / f"{node_id}.crt", nodes / f"{node_id}.key")
    connection = scenario.site("large").socket()
    connection.setblocking(False)
    address = scenario.lab.cloud_address
    await asyncio.get_running_loop().sock_connect(connection, (address, scenario.hub.ports[0].edges))
    reader, writer = await asyncio.open_connection(sock=connection, ssl=context, server_hostname=address)
    writer.write(request_bytes(node_id))
    assert b" 101 " in await reader.readuntil(b"\r\n\r\n")
    sending = asyncio.create_task(_send(writer), name=f"frame of {node_id}")
    try:
        code = 0
        while not code:
            opcode, content = await _frame(reader)
            code = int.from_bytes(content[:2]) if opcode == 0x8 else 0
        return code
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        writer.transport.abort()


async def _announce_over_quic(scenario: Scenario, node_id: str) -> int:
    """The same, by the header of a frame and as much behind it as the hub lets in."""
    peer = Peer(scenario.site("large"), scenario.lab.cloud_address, scenario.certificates, node_id)
    async with quic_link(peer) as link:
        link.write(UP, frame_header(ANNOUNCED_BYTES) + bytes(SENT_OVER_QUIC_BYTES))
        end = await link.closed()
        assert f"{ANNOUNCED_BYTES} bytes" in end.reason_phrase, end
        return end.error_code


async def _send(writer: asyncio.StreamWriter) -> None:
    writer.write(b"\x81\xff" + ANNOUNCED_BYTES.to_bytes(8) + bytes(4))
    for _ in range(SENT_BYTES // 65536):
        writer.write(bytes(65536))
        await writer.drain()


async def _frame(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """One frame of the hub: (opcode, content)."""
    first, size = await reader.readexactly(2)
    if size == 126:
        size = int.from_bytes(await reader.readexactly(2))
    elif size == 127:
        size = int.from_bytes(await reader.readexactly(8))
    return first & 0xF, await reader.readexactly(size)
