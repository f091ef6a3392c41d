"""A whole hub and our own agents over QUIC."""

import asyncio
import socket
from pathlib import Path

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.link_pb2 import CLOSE_REASON_EDGE_CLOSED, CLOSE_REASON_KEEPALIVE_TIMEOUT
from edge.quic_link import QuicLink
from services.runtime import tls_files
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, request, running_hub
from tests.support.processes import eventually

ACTIVE, CLOSED = sessions_pb2.SESSION_STATE_ACTIVE, sessions_pb2.SESSION_STATE_CLOSED
ACKNOWLEDGED = pb.DELIVERY_STATE_ACKNOWLEDGED


async def _delivers(hub: RunningHub, node_id: str, version: int) -> None:
    await hub.accept(request(node_id, name="probe", version=version))
    await hub.until_state(node_id, "uid-probe", ACKNOWLEDGED)


async def test_messages_uploads_and_requests_pass_over_quic(tmp_path: Path, authority: TestAuthority) -> None:
    async with running_hub(tmp_path, authority) as hub, hub.subscriber("router") as router:
        async with hub.fleet("edge-1", "edge-2", transport="quic") as fleet:
            assert {link.transport for link in await hub.links()} == {"quic"}
            for version in range(1, 6):
                await hub.accept(
                    *(request(f"edge-{n}", name=f"cm{k}", version=version) for n in (1, 2) for k in range(40))
                )
            await hub.accept(request("edge-1", name="large", size_bytes=700_000))
            for node_id in ("edge-1", "edge-2"):
                for k in range(40):
                    await hub.until_state(node_id, f"uid-cm{k}", ACKNOWLEDGED)
            await hub.until_state("edge-1", "uid-large", ACKNOWLEDGED)
            await fleet["edge-1"].upload(b'{"reading": 1}')
            (delivery,) = await router.take(1)
            await router.acknowledge(delivery)
            await eventually(lambda: fleet["edge-1"].counters.uploads_confirmed == 1)
            assert fleet.total("links_opened") == 2
        await eventually(lambda: len(hub.connector.app.links) == 0)
        session = await hub.until_session("edge-1", lambda session: session.state == CLOSED)
        assert session.close_reason == CLOSE_REASON_EDGE_CLOSED


async def test_an_agent_that_is_cut_comes_back_and_takes_its_session_over(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C1 over QUIC: the hub is told nothing of the cut."""
    async with running_hub(tmp_path, authority) as hub, hub.fleet("edge-1", transport="quic") as fleet:
        for version in range(1, 5):
            before = (await hub.session("edge-1")).epoch
            fleet["edge-1"].cut()
            await hub.until_session("edge-1", lambda session, b=before: session.epoch > b)  # type: ignore[misc]
            await _delivers(hub, "edge-1", version)
        await eventually(lambda: len(hub.connector.app.links) == 1)


async def test_a_silent_agent_is_found_and_comes_back(tmp_path: Path, authority: TestAuthority) -> None:
    """C4, C9 over QUIC: packets are swallowed both ways."""
    async with (
        running_hub(tmp_path, authority, dispatcher={"keepalive_seconds": 1.0}) as hub,
        hub.fleet("edge-1", transport="quic", keepalive_seconds=0.3, silence_seconds=1.5) as fleet,
    ):
        first = await hub.session("edge-1")
        await asyncio.sleep(1.5)  # keepalives keep it
        assert (await hub.session("edge-1")).epoch == first.epoch
        fleet["edge-1"].block(3.0)
        ended = await hub.until_session("edge-1", lambda session: session.state == CLOSED)
        assert ended.close_reason == CLOSE_REASON_KEEPALIVE_TIMEOUT
        await hub.until_session("edge-1", lambda session: session.state == ACTIVE, 15)
        await _delivers(hub, "edge-1", 1)


async def test_a_connector_that_died_is_noticed_by_its_first_answer(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C35: no word of it comes, but a reset from the process that follows it on the same port."""
    with socket.socket(type=socket.SOCK_DGRAM) as bound:
        bound.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{bound.getsockname()[1]}"
    server = authority.issue("localhost", None, file="lasting")
    same = {"quic_listen": address, "certificate": server.certificate, "private_key": server.key}
    async with (
        running_hub(tmp_path, authority, connector=same) as hub,
        hub.fleet("edge-1", transport="quic", keepalive_seconds=0.3) as fleet,
    ):
        assert hub.connector.app.quic
        hub.connector.app.quic.send = lambda *_: None  # type: ignore[method-assign]
        await hub.connector.stop()
        opened = fleet["edge-1"].counters.links_opened
        await hub.connector.start()
        await eventually(lambda: fleet["edge-1"].counters.links_opened > opened, 15)
        await _delivers(hub, "edge-1", 1)


async def test_auto_goes_by_websocket_where_udp_is_blocked(
    tmp_path: Path, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.settings._QUIC_TRY_SECONDS", 0.3)
    with socket.socket(type=socket.SOCK_DGRAM) as nobody:
        nobody.bind(("127.0.0.1", 0))
        blocked = f"quic://127.0.0.1:{nobody.getsockname()[1]}"
        async with (
            running_hub(tmp_path, authority) as hub,
            hub.fleet("edge-1", transport="auto", quic_server=blocked) as fleet,
        ):
            assert [link.transport for link in await hub.links()] == ["websocket"]
            fleet["edge-1"].cut()
            await eventually(lambda: fleet["edge-1"].counters.links_opened == 2)
            assert fleet["edge-1"].counters.dials_failed == 1, "QUIC was tried again too soon"
            await _delivers(hub, "edge-1", 1)


async def test_auto_prefers_quic(tmp_path: Path, authority: TestAuthority) -> None:
    async with running_hub(tmp_path, authority) as hub, hub.fleet("edge-1", transport="auto") as fleet:
        assert [link.transport for link in await hub.links()] == ["quic"]
        assert isinstance(fleet["edge-1"]._link, QuicLink)


async def test_the_node_limit_is_one_over_both_transports(tmp_path: Path, authority: TestAuthority) -> None:
    """C7: and a node that is counted may take its own session over, by the other transport."""
    async with (
        running_hub(tmp_path, authority, sessions={"limit_total": 2}) as hub,
        hub.edge("edge-1"),
        hub.fleet("edge-2", transport="quic", first_delay_seconds=30.0, most_delay_seconds=30.0) as fleet,
    ):
        assert len(hub.connector.app.links) == 2
        async with hub.edge("edge-2") as second:
            await hub.until_session("edge-2", lambda session: session.transport == "websocket")
            await eventually(lambda: not fleet["edge-2"].connected)
            await hub.accept(request("edge-2", name="cm", version=1))
            await second.next()
        assert hub.metric("connector", "links_closed_total", transport="quic", reason="superseded") == 1


async def test_new_quic_links_take_newer_certificates_and_open_ones_stay(
    tmp_path: Path, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_files, "LOOK_SECONDS", 0.05)
    async with running_hub(tmp_path, authority) as hub, hub.fleet("edge-1", transport="quic") as fleet:
        quic = hub.connector.app.quic
        assert quic is not None
        former = quic.configuration.certificate
        authority.issue("localhost", None, file="server")
        await eventually(lambda: quic.configuration.certificate != former)
        later = tmp_path / "later.db"
        async with hub.fleet("edge-2", transport="quic", database=later):
            await _delivers(hub, "edge-2", 1)
            await _delivers(hub, "edge-1", 1)
        assert fleet["edge-1"].counters.links_opened == 1
