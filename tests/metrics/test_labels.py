"""No label holds what somebody else chose: no fleet, publisher or attacker makes more series than another."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from services.runtime.rpc import open_channel
from tests.metrics.test_metrics import Scraper
from tests.support.certs import TestAuthority
from tests.tracing.cloud import CloudProgram, answer, receive, send
from tests.tracing.hub import SERVICES, HubProcesses

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

# Part of everything that is said to the hub.
FANCY = "zq7"


async def publishers_fancies(cloud: CloudProgram, node_id: str) -> None:
    named = f"{FANCY}-{node_id}"
    await cloud.publish(node_id, named, f"Not A {named}", name=named, operation=named)
    await cloud.publish(node_id, version=named)
    await cloud.publish(node_id, name=named, version="0", content=named.encode())
    await cloud.publish(named, ack_mode=pb.ACK_MODE_NO_ACK)


async def edges_fancies(hub: HubProcesses, cloud: CloudProgram, node_id: str) -> None:
    """Refusals with a text, messages of any kind, an end by a frame that is none."""
    async with hub.peers.link(node_id) as peer:
        await cloud.publish(node_id, name=f"{FANCY}-refused-{node_id}")
        await answer(peer, await receive(peer), "error", f"{FANCY} {node_id}")
        await send(peer, FANCY, FANCY, FANCY, group=FANCY, source=FANCY, parent_id=FANCY)
        await send(peer, FANCY, f"{FANCY}/a/b", {FANCY: FANCY}, source=f"{FANCY}{node_id}", sync=True)
        await send(peer, "upload", FANCY, {FANCY: 1}, group="user", source=FANCY)
        await peer.send(f"{{{FANCY}")
        with pytest.raises(ConnectionClosed):
            while True:
                await peer.recv()


async def strangers_fancies(hub: HubProcesses, node_id: str) -> None:
    """Requests for what is not there, under names that are not theirs, by certificates of another CA."""
    for path in (f"/{FANCY}", f"/{FANCY}/{FANCY}/events", f"/{FANCY}?{FANCY}={FANCY}"):
        with pytest.raises(InvalidStatus):
            await hub.peers.open(node_id, path=path, headers={"Node_id": FANCY, "Project_id": FANCY})
    foreign = TestAuthority(hub.folder / f"foreign-{node_id}", FANCY).issue(FANCY, None)
    with pytest.raises((OSError, InvalidHandshake, ConnectionClosed)):
        await hub.peers.open(node_id, context=hub.peers.context_of(foreign))
    _, writer = await asyncio.open_connection("127.0.0.1", hub.edge_port)
    writer.write(f"{FANCY} / {FANCY}\r\n\r\n".encode())
    await writer.drain()
    writer.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scrapes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    async with (
        HubProcesses(tmp_path_factory.mktemp("hub"), {}) as hub,
        open_channel(hub.address("dispatcher")) as dispatcher,
        open_channel(hub.address("sessions")) as sessions,
    ):
        cloud, scraper = CloudProgram(dispatcher, sessions), Scraper(hub)
        nodes = [f"{FANCY}-{number}" for number in range(3)]
        for node_id in nodes:
            await edges_fancies(hub, cloud, node_id)
            await publishers_fancies(cloud, node_id)
            await strangers_fancies(hub, node_id)
            evicted = sessions_pb2.EvictSessionRequest(node_id=node_id)
            async with hub.peers.link(node_id) as peer:
                await cloud.sessions.EvictSession(evicted, timeout=20)
                await peer.wait_closed()
        await scraper.until("dispatcher", "cloudhub_dispatcher_parked_total", 3, reason="refused")
        await scraper.until("sessions", "cloudhub_sessions_closes_total", 3, reason="evicted")
        await scraper.until("connector", "cloudhub_connector_frames_refused_total", 3, reason="invalid_json")
        await scraper.until(
            "connector", "cloudhub_connector_handshake_failures_total", 3, reason="certificate_untrusted"
        )
        yield {service: await scraper.text(service) for service in SERVICES}


@pytest.mark.parametrize("service", SERVICES)
async def test_no_label_holds_a_word_of_somebody_else(service: str, scrapes: dict[str, str]) -> None:
    labels = {
        (sample.name, label, value)
        for family in text_string_to_metric_families(scrapes[service])
        for sample in family.samples
        for label, value in sample.labels.items()
    }
    assert labels
    assert [one for one in labels if FANCY in one[2].lower()] == []
