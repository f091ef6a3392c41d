"""What kubectl makes of each overlay, held against Kubernetes' own schemas and its restricted policy."""

import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.deploy.manifests import (
    DOCKER,
    KUBERNETES,
    OVERLAYS,
    Manifest,
    containers,
    default_ports,
    documents,
    pod_of,
)
from tests.deploy.test_page import example

pytestmark = pytest.mark.deploy
kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="make check-deploy installs it")

OLDEST = (1, 30)
VERSIONS = [
    version
    for version in kubernetes_validate.utils.all_versions()
    if tuple(int(part) for part in version.split(".")[:2]) >= OLDEST
]
# Of the Prometheus operator; promtool checks the rules, test_sources.py the names.
FOREIGN = {"ServiceMonitor", "PrometheusRule"}

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def tool(name: str) -> str:
    """A program of deploy/requirements.txt."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is not installed; run make check-deploy"
    return found


@functools.cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    return kustomized(KUBERNETES / "overlays" / overlay)


def kustomized(folder: Path) -> tuple[Manifest, ...]:
    """What kubectl makes of a folder."""
    made = subprocess.run(
        [tool("kubectl"), "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert made.returncode == 0, made.stderr
    return tuple(documents(made.stdout))


def of_kind(overlay: str, kind: str) -> dict[str, Manifest]:
    return {one["metadata"]["name"]: one for one in rendered(overlay) if one["kind"] == kind}


@overlays
@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_is_one_of_kubernetes(overlay: str, version: str) -> None:
    for one in rendered(overlay):
        if one["kind"] not in FOREIGN:
            kubernetes_validate.validate(one, version, strict=True)


def test_a_field_that_kubernetes_does_not_have_is_found() -> None:
    bad = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a"}, "automount": False}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(bad, VERSIONS[0], strict=True)


@overlays
def test_pods_keep_to_the_restricted_policy(overlay: str) -> None:
    """And to more: no token, no writable root."""
    namespace = of_kind(overlay, "Namespace")["cloudhub"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    accounts = of_kind(overlay, "ServiceAccount")
    for deployment in of_kind(overlay, "Deployment").values():
        pod = pod_of(deployment)
        assert accounts[pod["serviceAccountName"]]["automountServiceAccountToken"] is False
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {kind for volume in pod.get("volumes", ()) for kind in volume if kind != "name"} <= {
            "configMap",
            "emptyDir",
            "persistentVolumeClaim",
            "secret",
        }
        for container in containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]["requests"]) == {"cpu", "memory"}
            assert "memory" in container["resources"]["limits"]


@overlays
def test_what_selects_pods_selects_some(overlay: str) -> None:
    pods = [one["spec"]["template"]["metadata"]["labels"] for one in of_kind(overlay, "Deployment").values()]

    def matches(wanted: dict[str, str]) -> bool:
        return any(wanted.items() <= labels.items() for labels in pods)

    for service in of_kind(overlay, "Service").values():
        assert matches(service["spec"]["selector"])
    for budget in of_kind(overlay, "PodDisruptionBudget").values():
        assert matches(budget["spec"]["selector"]["matchLabels"])
    for policy in of_kind(overlay, "NetworkPolicy").values():
        assert matches(policy["spec"]["podSelector"].get("matchLabels", {}))
    for scaler in of_kind(overlay, "HorizontalPodAutoscaler").values():
        target = of_kind(overlay, scaler["spec"]["scaleTargetRef"]["kind"])[
            scaler["spec"]["scaleTargetRef"]["name"]
        ]
        assert "replicas" not in target["spec"], "an apply would undo the autoscaler's work"


def allowed(overlay: str, direction: str, service: str) -> set[int]:
    """Ports that the policies open for a service's pods."""
    labels = of_kind(overlay, "Deployment")[f"cloudhub-{service}"]["spec"]["template"]["metadata"]["labels"]
    found: set[int] = set()
    for policy in of_kind(overlay, "NetworkPolicy").values():
        selector = policy["spec"]["podSelector"]
        chosen = selector.get("matchLabels", {}).items() <= labels.items() and all(
            labels.get(rule["key"]) in rule["values"] for rule in selector.get("matchExpressions", ())
        )
        if chosen:
            found |= {port["port"] for rule in policy["spec"].get(direction, ()) for port in rule["ports"]}
    return found


@pytest.mark.parametrize("service", ["sessions", "dispatcher", "connector", "enrolment"])
def test_the_network_is_closed_but_for_what_is_used(service: str) -> None:
    assert "default-deny" in of_kind("embedded", "NetworkPolicy")
    monitored = {9464}
    inward = {
        "sessions": {50052},
        "dispatcher": {50051},
        "connector": {10000, 10001},
        "enrolment": {10002},
    }[service]
    assert allowed("embedded", "ingress", service) == inward
    assert allowed("observed", "ingress", service) == inward | monitored
    assert inward | monitored <= default_ports(service)
    outward = {
        "sessions": set[int](),
        "dispatcher": {50051, 50052},
        "connector": {50051},
        "enrolment": {50052},
    }[service]
    database = {5432} if service in ("sessions", "dispatcher") else set[int]()
    traces = {4317}
    assert allowed("embedded", "egress", service) == outward | {53}
    assert allowed("production", "egress", service) == outward | database | {53}
    assert allowed("observed", "egress", service) == outward | database | traces | {53}


def test_a_sqlite_file_has_one_process() -> None:
    for service in ("sessions", "dispatcher"):
        deployment = of_kind("embedded", "Deployment")[f"cloudhub-{service}"]
        assert deployment["spec"]["strategy"] == {"type": "Recreate"}
        assert deployment["spec"].get("replicas", 1) == 1
        claim = of_kind("embedded", "PersistentVolumeClaim")[f"cloudhub-{service}"]
        assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    assert of_kind("embedded", "PodDisruptionBudget") == {}, "it would keep a machine from being emptied"


def test_traces_go_to_the_collector_and_on_to_jaeger() -> None:
    for name, deployment in of_kind("observed", "Deployment").items():
        if name.startswith("cloudhub-"):
            (container,) = pod_of(deployment)["containers"]
            values = {one["name"]: one.get("value") for one in container["env"]}
            assert values["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://otel-collector:4317"
    for name in ("otel-collector", "jaeger"):
        assert of_kind("observed", "Service")[name]["spec"]["ports"][0]["port"] == 4317


def test_the_dockerfile_has_no_fault_that_hadolint_knows() -> None:
    found = subprocess.run(
        [tool("hadolint"), str(DOCKER / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (found.returncode, found.stdout) == (0, "")


def test_every_image_has_a_version() -> None:
    images = [
        container["image"]
        for overlay in OVERLAYS
        for deployment in of_kind(overlay, "Deployment").values()
        for container in containers(pod_of(deployment))
    ]
    assert [
        image for image in images if not re.search(r":\d+\.\d+\.\d+(@sha256:[0-9a-f]{64})?$", image)
    ] == []


def test_the_example_of_the_page_leaves_no_image_unreplaced(tmp_path: Path) -> None:
    shown = example()
    shown["resources"] = [os.path.relpath(KUBERNETES / "overlays" / "production", tmp_path.resolve())]
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(shown))
    images = [
        container["image"]
        for one in kustomized(tmp_path)
        if one["kind"] == "Deployment"
        for container in containers(pod_of(one))
    ]
    assert len(images) == 6
    assert [image for image in images if not image.startswith("registry.example.com/cloudhub/")] == []
