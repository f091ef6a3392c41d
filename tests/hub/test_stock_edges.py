"""Doubles of stock edges (`harness.stock_edge`) on a whole hub."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from edge.certificates.bridge import create_bridge
from edge.settings import EdgeSettings
from edge.store import read_objects
from harness.stock_edge.fleet import StockFleet
from harness.stock_edge.stores import read_meta
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, request, running_hub
from tests.support.processes import eventually

PACE = 20.0  # a rest of half a minute takes 1.5 s


@asynccontextmanager
async def stock_edges(
    hub: RunningHub, *node_ids: str, pace: float = PACE, edged: bool = False
) -> AsyncIterator[StockFleet]:
    """Connected to the first connector."""
    certificates = hub.authority.certificate.parent
    (certificates / "nodes").mkdir(exist_ok=True)
    for node_id in node_ids:
        hub.authority.issue(f"system:node:{node_id}", file=f"nodes/{node_id}")
    folder = hub.folder / "stock"
    folder.mkdir(exist_ok=True)
    settings = EdgeSettings(
        server=f"wss://localhost:{hub.connector.app.edge_port}",
        ca=hub.authority.certificate,
        database=folder / "edges.db",
        certificates=certificates,
        sync="normal",
    )
    async with StockFleet(settings, node_ids, pace=pace, edged=edged) as fleet:
        async with asyncio.timeout(15):
            await fleet.connected()
        yield fleet


def whole(name: str, uid: str = "") -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "default", "uid": uid or f"uid-{name}"},
        "data": {"k": "v"},
    }


async def test_what_is_published_reaches_both_stores_and_is_acknowledged(tmp_path: Path) -> None:
    async with running_hub(tmp_path) as hub, stock_edges(hub, "edge-1", "edge-2") as fleet:
        await hub.accept(request("edge-1", "edge-2", content=whole("cm1")))
        for node_id in ("edge-1", "edge-2"):
            await hub.until_state(node_id, "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        assert fleet.total("acknowledged") == 2
        await hub.accept(request("edge-1", operation="delete", content=whole("cm1")))
        await eventually(lambda: fleet["edge-1"].counters.acknowledged == 2, 10)
    database = tmp_path / "stock" / "edges.db"
    assert [(one.node_id, one.resource) for one in read_objects(database)] == [
        ("edge-2", "default/configmap/cm1")
    ]
    assert [(node_id, key.name) for node_id, key, _ in read_meta(database)] == [("edge-2", "cm1")]


async def test_a_burst_larger_than_its_queue_loses_nothing(tmp_path: Path) -> None:
    """The window keeps within what a stock edge can hold: of 300 messages at once none is dropped."""
    async with running_hub(tmp_path) as hub, stock_edges(hub, "edge-1") as fleet:
        await hub.accept(*(request("edge-1", name=f"cm{n}") for n in range(300)))
        await eventually(lambda: fleet.total("acknowledged") >= 300, 30)
        node = fleet["edge-1"]
        assert (node.inbound.dropped, node.counters.received) == (0, 300)


async def test_a_link_that_the_hub_ends_is_back_after_its_rest(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """It notices with its next keepalive and rests for thirty seconds; both are told in its own pace."""
    async with running_hub(tmp_path, authority) as hub, stock_edges(hub, "edge-1") as fleet:
        loop = asyncio.get_running_loop()
        began = loop.time()
        await hub.connector.stop()
        await hub.connector.start()
        await eventually(lambda: fleet.total("links_opened") == 2, 20)
        away_seconds = (loop.time() - began) * PACE
        assert away_seconds >= 30
        await hub.accept(request("edge-1", name="after"))
        await eventually(lambda: fleet.total("acknowledged") == 1, 10)


async def test_a_round_of_dials_gets_in_with_whichever_dial_finds_the_hub(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """A connector that comes back in the middle of a round is reached by the next dial of it, whatever the
    number of its headers."""
    async with running_hub(tmp_path, authority) as hub, stock_edges(hub, "edge-1") as fleet:
        node = fleet["edge-1"]
        await hub.connector.stop()
        await eventually(lambda: node.counters.dials_failed == 2, 20)
        await hub.connector.start()
        await eventually(lambda: node.counters.links_opened == 2, 20)
        assert 2 <= node.counters.dials_failed <= 4
        assert hub.metric("connector", "refusals_total", reason="header_use") == 0


@pytest.mark.alone
async def test_a_connector_that_was_away_has_its_edges_back_within_a_minute_of_dialling(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Away for 47 s, told in the edges' own pace: they dial from the 30th to the 45th second on, five times a
    round, and whichever dial finds the connector lets them in. Nobody needs a second round, which would begin
    55 s after the first dial."""
    pace, away_seconds = 4.0, 47.0
    node_ids = ["edge-1", "edge-2", "edge-3"]
    async with running_hub(tmp_path, authority) as hub, stock_edges(hub, *node_ids, pace=pace) as fleet:
        began = asyncio.get_running_loop().time()
        await hub.connector.stop()
        await eventually(lambda: any(node.counters.dials_failed for node in fleet), 20)
        await asyncio.sleep(max(0.0, began + away_seconds / pace - asyncio.get_running_loop().time()))
        await hub.connector.start()
        await eventually(lambda: all(node.counters.links_opened == 2 for node in fleet), 30)
        for node in fleet:
            assert node.counters.dials_failed <= 4
            assert node.counters.dialled_seconds <= 60
        assert hub.metric("connector", "refusals_total", reason="header_use") == 0
        await hub.accept(request(*node_ids, name="after"))
        await eventually(lambda: fleet.total("acknowledged") == len(node_ids), 10)


async def test_edges_that_keep_their_first_ca_outlive_it(tmp_path: Path, authority: TestAuthority) -> None:
    """Behind a bridge of two CAs come in a stock edge that never asked for the new one, and edges that know
    the new one alone, over both transports."""
    connector: dict[str, Any] = {"close_seconds": 1.0}
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(running_hub(tmp_path, authority, connector=connector))
        fleet = await stack.enter_async_context(stock_edges(hub, "edge-1"))
        new = tmp_path / "new"
        bridge = await asyncio.to_thread(create_bridge, new, authority.certificate.parent)
        connector |= {"certificate": bridge.chain_path, "private_key": bridge.server.key_path}
        await hub.connector.stop()
        await hub.connector.start()
        await eventually(lambda: fleet.total("links_opened") == 2, 20)
        for transport in ("websocket", "quic"):
            agents = hub.fleet(
                "edge-2", ca=new / "ca.crt", transport=transport, database=tmp_path / f"{transport}.db"
            )
            async with agents:  # returns once it is connected
                pass
        await hub.accept(request("edge-1", name="after"))
        await eventually(lambda: fleet.total("acknowledged") == 1, 10)


async def test_requests_that_nobody_serves_cost_nothing_else(tmp_path: Path) -> None:
    """With its edged: the registration of its node waits for a cloud that is not there; publishes go on."""
    async with running_hub(tmp_path) as hub, stock_edges(hub, "edge-1", edged=True) as fleet:
        for version in range(1, 21):
            await hub.accept(request("edge-1", version=version))
        await eventually(lambda: fleet.total("acknowledged") >= 1, 10)
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        assert fleet.total("links_opened") == 1
