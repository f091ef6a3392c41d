"""What the real Prometheus makes of a real hub's metrics, of the alerts and of the dashboard."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from services.runtime.rpc import open_channel
from tests.deploy.manifests import dashboard_expressions, rules
from tests.metrics.declared import declared_metrics
from tests.observability.prometheus import Prometheus, running_prometheus
from tests.tracing.cloud import CloudProgram, answer, receive
from tests.tracing.hub import HubProcesses

pytestmark = [pytest.mark.observability, pytest.mark.asyncio(loop_scope="module")]


@dataclass(frozen=True)
class Watched:
    """A hub and the Prometheus that scrapes it."""

    hub: HubProcesses
    cloud: CloudProgram
    prometheus: Prometheus


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def watched(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Watched]:
    folder = tmp_path_factory.mktemp("prometheus")
    async with (
        HubProcesses(folder, {}, enrolment=True) as hub,
        running_prometheus(folder, hub.metrics_ports) as prometheus,
        open_channel(hub.address("dispatcher")) as dispatcher,
        open_channel(hub.address("sessions")) as sessions,
    ):
        await prometheus.until("sum(up)", lambda found: bool(found) and found[0]["value"][1] == "4")
        yield Watched(hub, CloudProgram(dispatcher, sessions), prometheus)


async def test_it_knows_every_metric_by_its_type(watched: Watched) -> None:
    """As documented (tests/metrics), and nothing else that is the hub's."""
    told = await watched.prometheus.api("metadata", limit="1000")
    found = {name: entries[0]["type"] for name, entries in told.items() if name.startswith("cloudhub_")}
    wanted = {
        name.removesuffix("_total"): metric.kind
        for service in watched.hub.metrics_ports
        for name, metric in declared_metrics(service).items()
    }
    assert {name.removesuffix("_total"): kind for name, kind in found.items()} == wanted


async def test_a_hub_without_a_fault_raises_no_alert(watched: Watched) -> None:
    groups = (await watched.prometheus.api("rules"))["groups"]
    found = [rule for group in groups for rule in group["rules"]]
    assert [rule["name"] for rule in found] == [rule["alert"] for rule in rules()]
    assert [(rule["name"], rule["lastError"]) for rule in found if rule.get("lastError")] == []
    # Those about absent services waited for the first scrape.
    await watched.prometheus.until("ALERTS", lambda found: not found)
    assert (await watched.prometheus.api("alerts"))["alerts"] == []


async def test_the_first_message_that_an_edge_refuses_raises_an_alert(watched: Watched) -> None:
    """C21: also the very first one of a process, whose counter had no value before."""
    async with watched.hub.peers.link("edge-full") as peer:
        await watched.cloud.publish("edge-full")
        await answer(peer, await receive(peer), "error", "no space left on device")
        alert = await watched.prometheus.alert("CloudHubMessagesParked")
    assert alert["labels"] == {
        "alertname": "CloudHubMessagesParked",
        "namespace": "cloudhub",
        "reason": "refused",
        "severity": "warning",
    }
    assert alert["annotations"]["summary"] == "Messages were parked: refused."


@pytest.mark.parametrize("expression", dashboard_expressions())
async def test_every_panel_of_the_dashboard_can_be_drawn(watched: Watched, expression: str) -> None:
    """Asked for as Grafana does; a panel about faults has nothing to show where there are none."""
    for variable, value in {"$__rate_interval": "1m", "$__interval": "15s", "$namespace": "cloudhub"}.items():
        expression = expression.replace(variable, value)
    await watched.prometheus.query(expression)
