"""What Prometheus gets from real processes after a little of everything."""

import asyncio
import urllib.request
from collections.abc import AsyncIterator, Mapping

import pytest
import pytest_asyncio
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from services.runtime.rpc import open_channel
from tests.metrics.declared import declared_metrics
from tests.support.edge_peer import PROJECT
from tests.tracing.cloud import CloudProgram, answer, receive, send
from tests.tracing.hub import SERVICES, HubProcesses

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="module")]

NODES = ("edge-alpha", "edge-beta")
Samples = Mapping[str, Metric]


def parse(text: str) -> dict[str, Metric]:
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(families: Samples, name: str, **labels: str) -> float:
    """The sum over labels that are not named; 0 for labels that have not been used."""
    family = families[name.removesuffix("_total")]
    return sum(
        sample.value
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


class Scraper:
    """Reads the processes' endpoints."""

    def __init__(self, hub: HubProcesses) -> None:
        self._hub = hub

    async def text(self, service: str) -> str:
        def fetch() -> str:
            url = f"http://127.0.0.1:{self._hub.metrics_ports[service]}/metrics"
            with urllib.request.urlopen(url, timeout=10) as response:
                body: bytes = response.read()
                return body.decode()

        return await asyncio.to_thread(fetch)

    async def until(self, service: str, name: str, least: float, **labels: str) -> None:
        """Waits until a counter has reached a value."""
        found = 0.0
        try:
            async with asyncio.timeout(20):
                # Another process's counter can only be polled.
                while (found := value(parse(await self.text(service)), name, **labels)) < least:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise AssertionError(f"{name}{labels} is {found} after 20 s, not {least}") from None


async def a_little_of_everything(hub: HubProcesses, cloud: CloudProgram, scraper: Scraper) -> None:
    first, second = NODES
    async with hub.peers.link(first) as one, hub.peers.link(second) as two:
        # Two acknowledged, one refused, one without acknowledgement, one rejected, one stale.
        await cloud.publish(first, second, name="both", version="2")
        for peer in (one, two):
            await answer(peer, await receive(peer))
        await scraper.until("dispatcher", "cloudhub_dispatcher_acknowledged_total", 2)
        await cloud.publish(first, name="refused")
        await answer(one, await receive(one), "error", "no space left on device")
        await cloud.publish(second, ack_mode=pb.ACK_MODE_NO_ACK)
        await receive(two)
        await cloud.publish(first, version="v1")
        await cloud.publish(first, name="both", version="1")
        await cloud.publish("edge-absent", ack_mode=pb.ACK_MODE_NO_ACK)
        # An acknowledgement of nothing, a status report, a request that nobody serves.
        await send(one, "response", "default/configmap/x", "OK", parent_id="never-sent")
        await send(one, "update", "default/podstatus/p", {})
        await send(two, "get", "membership/detail", None, source="twin", sync=True)
        await receive(two)
        # A false name, a limit, an eviction; the other link ends by itself.
        with pytest.raises(InvalidStatus):
            await hub.peers.open("edge-impostor", path=f"/{PROJECT}/{first}/events")
        await cloud.sessions.SetLimits(sessions_pb2.SetLimitsRequest(total=2), timeout=20)
        with pytest.raises(InvalidStatus):
            await hub.peers.open("edge-gamma")
        await cloud.sessions.EvictSession(sessions_pb2.EvictSessionRequest(node_id=second), timeout=20)
        await two.wait_closed()
    await scraper.until("sessions", "cloudhub_sessions_closes_total", 1, reason="edge_closed")
    await scraper.until("sessions", "cloudhub_sessions_closes_total", 1, reason="evicted")
    await scraper.until("dispatcher", "cloudhub_dispatcher_parked_total", 1, reason="refused")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scrapes(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, str]]:
    """What each endpoint says afterwards."""
    async with (
        HubProcesses(tmp_path_factory.mktemp("hub"), {}) as hub,
        open_channel(hub.address("dispatcher")) as dispatcher,
        open_channel(hub.address("sessions")) as sessions,
    ):
        scraper = Scraper(hub)
        await a_little_of_everything(hub, CloudProgram(dispatcher, sessions), scraper)
        yield {service: await scraper.text(service) for service in SERVICES}


@pytest.mark.parametrize("service", SERVICES)
async def test_every_declared_metric_is_scraped_with_its_type_and_a_help_text(
    service: str, scrapes: dict[str, str]
) -> None:
    families = parse(scrapes[service])
    declared = declared_metrics(service)
    # In the text format the library tells when a counter began as a metric of its own.
    own = {name for name in families if name.startswith("cloudhub_") and not name.endswith("_created")}
    assert own == {name.removesuffix("_total") for name in declared}
    for name, metric in declared.items():
        family = families[name.removesuffix("_total")]
        assert family.type == metric.kind
        assert family.documentation, f"{name} has no help text"
    for family in families.values():
        assert family.documentation, f"{family.name} has no help text"


@pytest.mark.parametrize("service", SERVICES)
async def test_no_label_tells_a_node(service: str, scrapes: dict[str, str]) -> None:
    """A fleet of any size makes no more time series than a single node."""
    for family in parse(scrapes[service]).values():
        for sample in family.samples:
            for label, text in sample.labels.items():
                assert "edge-" not in text, f"{sample.name} has {label}={text!r}"


async def test_the_dispatcher_counts_what_became_of_messages(scrapes: dict[str, str]) -> None:
    families = parse(scrapes["dispatcher"])

    def count(name: str, **labels: str) -> float:
        return value(families, f"cloudhub_dispatcher_{name}_total", **labels)

    assert count("published", outcome="accepted", reason="") == 4
    assert count("published", outcome="rejected", reason="version_malformed") == 1
    assert count("published", outcome="stale", reason="below_floor") == 1
    assert count("published", outcome="no_session", reason="not_connected") == 1
    assert count("dropped", reason="no_session") == 1
    assert count("sent", lane="acknowledged", attempt="first") == 3
    assert count("sent", lane="acknowledged", attempt="again") == 0
    # Beside the message without acknowledgement: an answer, and the word to the evicted node.
    assert count("sent", lane="direct", attempt="first") == 3
    assert count("acknowledged") == 2
    assert count("refused") == 1
    assert count("parked", reason="refused") == 1
    assert count("ignored", reason="unknown_message") == 1
    assert count("links", verdict="admitted") == 2
    assert count("links", verdict="node_limit") == 1
    assert count("sessions_closed", reason="evicted") == 1
    assert count("sessions_closed", reason="edge_closed") == 1
    assert value(families, "cloudhub_dispatcher_sessions") == 0
    assert value(families, "cloudhub_dispatcher_connectors") == 1
    (delivery_seconds,) = (
        sample.value
        for sample in families["cloudhub_dispatcher_delivery_seconds"].samples
        if sample.name.endswith("_count")
    )
    assert delivery_seconds == 2


async def test_the_dispatcher_counts_what_edges_say(scrapes: dict[str, str]) -> None:
    families = parse(scrapes["dispatcher"])

    def count(name: str, **labels: str) -> float:
        return value(families, f"cloudhub_dispatcher_upstream_{name}_total", **labels)

    assert count("received", route="module") == 2
    assert count("answered", answer="no_subscriber") == 1
    assert count("events", kind="connected") == 2
    assert count("events", kind="disconnected") == 2


async def test_sessions_counts_opens_and_their_ends(scrapes: dict[str, str]) -> None:
    families = parse(scrapes["sessions"])
    opens, closes = "cloudhub_sessions_opens_total", "cloudhub_sessions_closes_total"
    assert value(families, opens, outcome="opened") == 2
    assert value(families, opens, outcome="limit_total") == 1
    assert value(families, closes, reason="evicted") == 1
    assert value(families, closes, reason="edge_closed") == 1
    assert value(families, "cloudhub_sessions_store_available") == 1


async def test_the_connector_counts_links_and_refusals(scrapes: dict[str, str]) -> None:
    families = parse(scrapes["connector"])

    def count(name: str, **labels: str) -> float:
        return value(families, f"cloudhub_connector_{name}_total", **labels)

    assert count("links_opened") == 2
    assert count("links_closed", reason="edge_closed") == 1
    assert count("links_closed", reason="evicted") == 1
    assert count("refusals", status="403", reason="certificate_node") == 1
    assert count("refusals", status="429", reason="node_limit") == 1
    assert count("frames_sent") == 6
    assert count("frames_received") == 6
    assert value(families, "cloudhub_connector_links") == 0
    assert value(families, "cloudhub_connector_dispatchers_attached") == 1
