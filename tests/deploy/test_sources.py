"""deploy/ says only what the services have: settings, ports, health names, metrics; a stop has its time."""

import inspect
import json
import re
import tomllib
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cloudhub.v1 import connector_pb2, dispatcher_pb2, sessions_pb2
from edge.__main__ import run as run_edge
from scripts import generate_chart
from scripts.document_settings import SERVICES
from services.connector.settings import ConnectorSettings
from services.runtime.serving import LIVE
from services.runtime.settings import split_address
from tests.deploy import manifests
from tests.deploy.manifests import base, containers, pod_of, settings_of, variables
from tests.metrics.declared import declared_metrics

COMPOSE: dict[str, Any] = yaml.safe_load((manifests.DOCKER / "compose.yaml").read_text())["services"]
METRICS = {name: metric for service in SERVICES for name, metric in declared_metrics(service).items()}
# Kept free after the longest clean stop, before the kubelet kills.
RESERVE_SECONDS = 5

services = pytest.mark.parametrize("service", sorted(SERVICES))


def service_of(image: str) -> str:
    """The service of an image of ours, else nothing."""
    return image.removeprefix("cloudhub/").partition(":")[0] if image.startswith("cloudhub/") else ""


def environments() -> list[tuple[str, str, dict[str, str | None]]]:
    """(where, service, environment) of every container of the hub."""
    found = []
    for path, one in manifests.sources():
        if one["kind"] == "Deployment":
            for container in containers(pod_of(one)):
                service = container["name"]
                if service == "migrate":
                    service = service_of(container["image"])
                if service in SERVICES:
                    found.append((f"{path} {container['name']}", service, variables(container)))
    for name, one in COMPOSE.items():
        if service_of(one.get("image", "")) in SERVICES:
            found.append((f"compose {name}", service_of(one["image"]), one["environment"]))
    return found


@pytest.mark.parametrize(
    ("service", "environment"), [pytest.param(*found[1:], id=found[0]) for found in environments()]
)
def test_every_variable_is_a_setting_of_its_service_and_good(
    service: str, environment: dict[str, str | None]
) -> None:
    settings_of(service, environment)


def test_a_variable_that_no_service_has_is_found() -> None:
    with pytest.raises(KeyError, match="CLOUDHUB_SESSIONS_LEASE"):
        settings_of("sessions", {"CLOUDHUB_SESSIONS_LEASE": "15"})
    with pytest.raises(ValidationError, match="lease_seconds"):
        settings_of("sessions", {"CLOUDHUB_SESSIONS_LEASE_SECONDS": "never"})


def test_every_flag_of_an_edge_exists() -> None:
    known = {"--" + name.replace("_", "-") for name in inspect.signature(run_edge).parameters}
    edges = [one["command"] for name, one in COMPOSE.items() if re.fullmatch(r"edge-\d", name)]
    assert len(edges) == 3
    assert {word for command in edges for word in command if word.startswith("--")} - known == set()


@services
def test_ports_are_those_that_the_service_listens_on(service: str) -> None:
    pod = pod_of(base("Deployment", f"cloudhub-{service}"))
    (container,) = pod["containers"]
    ports = {one["name"]: one["containerPort"] for one in container["ports"]}
    # Of its own for the kubelet, which has no certificate: in no Service and in no image.
    health = ports.pop("health")
    assert split_address(settings_of(service, variables(container)).health_listen or "")[1] == health
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[probe]["grpc"]["port"] == health
    assert set(ports.values()) == manifests.default_ports(service)
    told = [
        port
        for path, one in manifests.sources()
        if one["kind"] == "Service"
        and one["spec"]["selector"] == {"app.kubernetes.io/name": f"cloudhub-{service}"}
        for port in one["spec"]["ports"]
    ]
    assert {ports[port["targetPort"]] for port in told} == set(ports.values())
    assert [port for port in told if port["port"] != ports[port["targetPort"]]] == []
    stage = re.search(rf"^FROM run AS {service}\nEXPOSE ([\w/ ]+)\n", dockerfile(), re.MULTILINE)
    assert stage
    assert {int(port.removesuffix("/udp")) for port in stage[1].split()} == set(ports.values())


@services
def test_grpc_has_certificates_of_a_secret_and_no_pod_goes_without(service: str) -> None:
    """In place, so that a renewed secret reaches the running process: a subPath would stay as it was."""
    pod = pod_of(base("Deployment", f"cloudhub-{service}"))
    (container,) = pod["containers"]
    (mount,) = (one for one in container["volumeMounts"] if one["name"] == "service")
    (volume,) = (one for one in pod["volumes"] if one["name"] == "service")
    assert "subPath" not in mount
    assert "items" not in volume["secret"]
    settings = settings_of(service, variables(container))
    assert not settings.grpc_insecure_loopback
    for path, key in (
        (settings.grpc_certificate, "tls.crt"),
        (settings.grpc_private_key, "tls.key"),
        (settings.grpc_ca, "ca.crt"),
    ):
        assert str(path) == f"{mount['mountPath']}/{key}"
    environment = COMPOSE[service]["environment"]
    assert f"CLOUDHUB_{service.upper()}_GRPC_CERTIFICATE" in environment
    assert "certificates:/certs:ro" in COMPOSE[service]["volumes"]


def test_the_key_of_the_edges_ca_is_in_pods_of_enrolment_alone() -> None:
    """Whoever has it can be any node. Sessions has the certificate, and starts without the secret, too."""
    holders = {}
    for service in SERVICES:
        pod = pod_of(base("Deployment", f"cloudhub-{service}"))
        for volume in pod["volumes"]:
            secret = volume.get("secret", {})
            if secret.get("secretName") == "cloudhub-enrolment-ca":
                keys = {item["key"] for item in secret["items"]}
                holders[service] = (keys, secret.get("optional", False))
    assert holders == {"enrolment": ({"tls.crt", "tls.key"}, False), "sessions": ({"tls.crt"}, True)}
    for service, setting in (("sessions", "enrolment_ca"), ("enrolment", "ca_certificate")):
        (container,) = pod_of(base("Deployment", f"cloudhub-{service}"))["containers"]
        (mount,) = (one for one in container["volumeMounts"] if one["name"] == "enrolment-ca")
        path = getattr(settings_of(service, variables(container)), setting)
        assert str(path.parent) == mount["mountPath"]


def test_load_balancers_keep_the_addresses_of_edges() -> None:
    """Enrolment limits rates by them; the connectors' log has them."""
    found = {
        one["metadata"]["name"]: one["spec"].get("externalTrafficPolicy")
        for _, one in manifests.sources()
        if one["kind"] == "Service" and one["spec"].get("type") == "LoadBalancer"
    }
    assert found == {"cloudhub-edge": "Local", "cloudhub-enrolment": "Local"}


def dockerfile() -> str:
    return (manifests.DOCKER / "Dockerfile").read_text()


@services
def test_addresses_of_other_services_are_services_with_that_port(service: str) -> None:
    there = {
        f"{one['metadata']['name']}:{port['port']}"
        for _, one in manifests.sources()
        if one["kind"] == "Service"
        for port in one["spec"]["ports"]
    }
    (container,) = pod_of(base("Deployment", f"cloudhub-{service}"))["containers"]
    values = variables(container).items()
    named = {value for name, value in values if value and name.endswith(("_DISPATCHERS", "_SESSIONS"))}
    assert named <= there
    assert named or service == "sessions"


@services
def test_probes_ask_for_names_that_have_a_health(service: str) -> None:
    known = {LIVE, None} | {
        one.full_name
        for module in (connector_pb2, dispatcher_pb2, sessions_pb2)
        for one in module.DESCRIPTOR.services_by_name.values()
    }
    (container,) = pod_of(base("Deployment", f"cloudhub-{service}"))["containers"]
    assert container["startupProbe"]["grpc"]["service"] == LIVE
    assert container["livenessProbe"]["grpc"]["service"] == LIVE
    assert container["readinessProbe"]["grpc"].get("service") in known - {LIVE}


@services
def test_a_pod_has_time_for_its_stop(service: str) -> None:
    """C11: nothing is killed in the middle of a drain."""
    pod = pod_of(base("Deployment", f"cloudhub-{service}"))
    (container,) = pod["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    settings = settings_of(service, variables(container))
    assert pod["terminationGracePeriodSeconds"] >= before + settings.shutdown_seconds + RESERVE_SECONDS


def test_a_full_connector_drains_at_its_rate() -> None:
    (container,) = pod_of(base("Deployment", "cloudhub-connector"))["containers"]
    settings = settings_of("connector", variables(container))
    assert isinstance(settings, ConnectorSettings)
    assert settings.links_most / settings.drain_links_per_second <= settings.drain_seconds
    # The drain gives streams and telemetry 3 s of the stop, and edges their part of the close.
    assert settings.drain_seconds + 3 <= settings.shutdown_seconds


def expressions() -> list[str]:
    scaling = [
        metric["pods"]["metric"]["name"]
        for _, one in manifests.sources()
        if one["kind"] == "HorizontalPodAutoscaler"
        for metric in one["spec"]["metrics"]
        if metric["type"] == "Pods"
    ]
    return [*(rule["expr"] for rule in manifests.rules()), *manifests.dashboard_expressions(), *scaling]


def test_every_metric_named_exists() -> None:
    named = {name for text in expressions() for name in re.findall(r"\bcloudhub_\w+", text)}
    assert len(named) > 20
    histograms = {
        name + suffix
        for name, one in METRICS.items()
        if one.kind == "histogram"
        for suffix in ("_bucket", "_sum", "_count")
    }
    assert named - set(METRICS) - histograms == set()


def test_every_label_asked_for_exists() -> None:
    for text in expressions():
        for name, matchers in re.findall(r"\b(cloudhub_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)(?==)", matchers)) <= set(METRICS[name].labels), text
        for labels, inner in re.findall(r"by \(([^)]*)\) \((.*)\)", text):
            found = set().union(
                *(METRICS[n].labels for n in re.findall(r"\bcloudhub_\w+", inner) if n in METRICS)
            )
            assert set(re.split(r", ?", labels)) <= found | {"namespace", "pod", "le"}, text


def test_autoscalers_measure_what_the_adapter_gives_them() -> None:
    values = yaml.safe_load((manifests.MONITORING / "adapter-values.yaml").read_text())
    (rule,) = values["rules"]["custom"]
    pattern = re.search(r'__name__=~"([^"]*)"', rule["seriesQuery"])
    assert pattern
    scaled = [text for text in expressions() if re.fullmatch(r"cloudhub_\w+", text)]
    assert len(scaled) == 4
    assert [name for name in scaled if not re.search(pattern[1], name)] == []


def test_prometheus_of_the_compose_file_scrapes_every_service() -> None:
    config = yaml.safe_load((manifests.DOCKER / "prometheus.yaml").read_text())
    targets = {
        job["job_name"]: [target for group in job["static_configs"] for target in group["targets"]]
        for job in config["scrape_configs"]
    }
    assert targets == {service: [f"{service}:9464"] for service in SERVICES}
    assert set(targets) <= set(COMPOSE)


def test_images_carry_what_the_lock_file_names() -> None:
    """The image is built from files that are not ignored, and with the versions of the tests."""
    text = dockerfile()
    assert "--constraint requirements.lock" in text
    copied = {
        name for line in re.findall(r"^COPY (?!--)(.+) \S+$", text, re.MULTILINE) for name in line.split()
    }
    ignored = (manifests.ROOT / ".dockerignore").read_text()
    assert {f"!{name}" for name in copied} == set(re.findall(r"^!.*$", ignored, re.MULTILINE))
    assert [name for name in copied if not (manifests.ROOT / name).exists()] == []


def test_every_alert_is_documented() -> None:
    page = (manifests.ROOT / "docs" / "deployment.md").read_text()
    told = re.findall(r"^\| `(CloudHub\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert told == [(rule["alert"], rule["labels"]["severity"]) for rule in manifests.rules()]


def test_every_alert_leads_to_what_to_do() -> None:
    """Its `runbook_url` is a heading of docs/failures.md, and no heading is of one that is gone."""
    page = (manifests.ROOT / "docs" / "failures.md").read_text()
    headings = re.findall(r"^### (CloudHub\w+)$", page, re.MULTILINE)
    assert headings == [rule["alert"] for rule in manifests.rules()]
    for rule in manifests.rules():
        url, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert url.endswith("/docs/failures.md")
        assert anchor == rule["alert"].lower()


def test_the_service_of_its_own_for_udp_is_what_the_page_shows() -> None:
    """For clouds that refuse both protocols in one: the port that is taken out is put in again."""
    page = (manifests.ROOT / "docs" / "deployment.md").read_text()
    (shown,) = re.findall(
        r"^```yaml\n(apiVersion: v1\nkind: Service.*?)^```$", page, re.MULTILINE | re.DOTALL
    )
    edge, own = base("Service", "cloudhub-edge")["spec"], yaml.safe_load(shown)["spec"]
    (removed,) = re.findall(r"\{op: remove, path: /spec/ports/(\d+)\}", page)
    assert edge["ports"][int(removed)] == own["ports"][0]
    assert {name: edge[name] for name in edge if name != "ports"} == {
        name: own[name] for name in own if name != "ports"
    }


def test_the_chart_is_of_this_release() -> None:
    """And its schema says of each value what it is, with the settings that the services have."""
    chart = yaml.safe_load((generate_chart.CHART / "Chart.yaml").read_text())
    project = tomllib.loads((manifests.ROOT / "pyproject.toml").read_text())["project"]
    assert chart["version"] == chart["appVersion"] == project["version"]
    text = generate_chart.SCHEMA.read_text()
    assert generate_chart.schema(text) == text, "run python -m scripts.generate_chart"


def test_every_value_of_the_chart_is_described_and_has_a_default() -> None:
    schema = json.loads(generate_chart.SCHEMA.read_text())
    values = yaml.safe_load((generate_chart.CHART / "values.yaml").read_text())

    def compare(told: dict[str, Any], given: dict[str, Any], path: str) -> None:
        assert told["additionalProperties"] is False, path
        assert told["properties"].keys() - {"global"} == given.keys(), path
        for name, one in told["properties"].items():
            if "$ref" in one:
                assert given[name] == {}
                continue
            assert one["description"], f"{path}.{name}"
            if given.get(name) and "properties" in one:
                compare(one, given[name], f"{path}.{name}")

    compare(schema, values, "")
