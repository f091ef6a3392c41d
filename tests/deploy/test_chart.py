"""The Helm chart gives the hub that kustomize gives, and takes no wrong value."""

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from scripts.generate_chart import CHART, ROOT
from tests.deploy import page
from tests.deploy.chart import EVERYTHING, NAMESPACE, PROFILES, chart_of, helm, refusal, templated
from tests.deploy.manifests import OVERLAYS, Manifest, containers, pod_of
from tests.deploy.test_rendered import rendered

pytestmark = pytest.mark.deploy
OURS = {"connector", "dispatcher", "enrolment", "sessions"}


def by_name(objects: tuple[Manifest, ...]) -> dict[tuple[str, str], Manifest]:
    found = {(one["kind"], one["metadata"]["name"]): one for one in objects}
    assert len(found) == len(objects)
    return found


def test_generated_files_are_current() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "scripts.generate_chart", "--check"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_it_is_what_kustomize_makes(overlay: str) -> None:
    """Object by object; whoever installs makes the namespace."""
    wanted = {key: one for key, one in by_name(rendered(overlay)).items() if key[0] != "Namespace"}
    found = by_name(chart_of(overlay))
    assert found.keys() == wanted.keys()
    assert len(found) > 20
    for key, one in wanted.items():
        if key[0] == "PersistentVolumeClaim":
            # By helm it outlives the release.
            assert found[key]["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
        assert found[key] == one, key


def test_variables_see_those_before_them() -> None:
    """Kubernetes puts in for $(NAME) what stands before it, and nothing else."""
    pod_ip = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    given = [
        {"name": "ZONE", "value": "a"},
        {"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "zone=$(ZONE)"},
        pod_ip,
    ]
    found = by_name(templated({"pods": {"env": given}}))
    (dispatcher,) = pod_of(found["Deployment", "cloudhub-dispatcher"])["containers"]
    names = [one["name"] for one in dispatcher["env"]]
    assert names[:2] == ["ZONE", "OTEL_RESOURCE_ATTRIBUTES"]
    assert len(set(names)) == len(names)
    for number, one in enumerate(dispatcher["env"]):
        for used in re.findall(r"\$\((\w+)\)", one.get("value", "")):
            assert used in names[:number], one


def test_without_enrolment_nobody_is_told_that_it_is_absent() -> None:
    values = {"enrolment": {"enabled": False}, "monitoring": {"enabled": True}}
    rules = by_name(templated(values))["PrometheusRule", "cloudhub"]["spec"]["groups"]
    alerts = {rule["alert"] for group in rules for rule in group["rules"]}
    assert "CloudHubServiceAbsent" in alerts
    assert [name for name in alerts if name.startswith("CloudHubEnrolment")] == []


def test_helm_finds_no_fault() -> None:
    for values in (*PROFILES.values(), EVERYTHING):
        linted = helm("lint", "--strict", CHART, values=values)
        assert linted.returncode == 0, linted.stdout + linted.stderr
        assert "0 chart(s) failed" in linted.stdout + linted.stderr


def test_every_value_takes_effect() -> None:
    """Each of them differs from its default, and so does what is made of it."""
    found = by_name(templated(EVERYTHING, "elsewhere"))
    spaces = {one["metadata"].get("namespace") for key, one in found.items() if key[0] != "PriorityClass"}
    assert spaces == {"elsewhere"}
    assert found["ConfigMap", "cloudhub-grpc-revoked"]["data"] == {"revoked": "serial: 4F1C9A\n"}
    pods = {service: pod_of(found["Deployment", f"cloudhub-{service}"]) for service in OURS}
    images = {one["image"] for pod in pods.values() for one in containers(pod)}
    assert images == {
        f"registry.example.com/team/hub/connector:0.2.0@sha256:{'a' * 64}",
        *(f"registry.example.com/team/hub/{name}:0.2.0" for name in OURS - {"connector"}),
    }
    for service, pod in pods.items():
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
        assert pod["priorityClassName"] == "hub-first"
        assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
        assert pod["tolerations"] == EVERYTHING["pods"]["tolerations"]
        assert {one["imagePullPolicy"] for one in containers(pod)} == {"Always"}
        annotations = found["Deployment", f"cloudhub-{service}"]["spec"]["template"]["metadata"][
            "annotations"
        ]
        assert annotations["example.com/note"] == "yes"
        assert annotations["kubectl.kubernetes.io/default-container"] == service
    secrets = {
        volume["secret"]["secretName"]
        for pod in pods.values()
        for volume in pod["volumes"]
        if "secret" in volume
    }
    assert secrets == set(EVERYTHING["secrets"].values())
    (connector,) = pods["connector"]["containers"]
    assert connector["resources"] == {"requests": {"cpu": 2, "memory": "768Mi"}, "limits": {"memory": "3Gi"}}
    values = {one["name"]: one.get("value") for one in connector["env"]}
    assert len(values) == len(connector["env"])
    assert values["CLOUDHUB_CONNECTOR_LINKS_MOST"] == "2000000"
    assert values["CLOUDHUB_CONNECTOR_LOG_FORMAT"] == "json"
    assert values["OTEL_TRACES_SAMPLER_ARG"] == "1", "pods.env has the last word"
    (dispatcher,) = pods["dispatcher"]["containers"]
    values = {one["name"]: one.get("value") for one in dispatcher["env"]}
    assert values["CLOUDHUB_DISPATCHER_KEEPALIVE_SECONDS"] == "22.5"
    for service, bounds in (("connector", (4, 5)), ("dispatcher", (2, 2))):
        scaler = found["HorizontalPodAutoscaler", f"cloudhub-{service}"]["spec"]
        assert (scaler["minReplicas"], scaler["maxReplicas"]) == bounds
    assert found["Deployment", "cloudhub-sessions"]["spec"]["replicas"] == 3
    assert found["Deployment", "cloudhub-enrolment"]["spec"]["replicas"] == 1
    (egress,) = found["NetworkPolicy", "database"]["spec"]["egress"]
    assert egress == {
        "ports": [{"protocol": "TCP", "port": 5433}],
        "to": [{"ipBlock": {"cidr": "10.1.2.0/24"}}],
    }
    (ingress,) = found["NetworkPolicy", "metrics"]["spec"]["ingress"]
    assert (
        ingress["from"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] == "observing"
    )
    for kind in ("ServiceMonitor", "PrometheusRule"):
        assert found[kind, "cloudhub"]["metadata"]["labels"]["release"] == "prometheus"


def test_services_for_edges_are_as_the_cloud_wants_them() -> None:
    found = by_name(templated(EVERYTHING))
    edge, quic, nodes = (
        found["Service", name] for name in ("cloudhub-edge", "cloudhub-edge-quic", "cloudhub-enrolment")
    )
    assert [port["name"] for port in edge["spec"]["ports"]] == ["edge"]
    assert [(port["port"], port["protocol"]) for port in quic["spec"]["ports"]] == [(10001, "UDP")]
    for one in (edge, quic):
        assert one["spec"]["selector"] == {"app.kubernetes.io/name": "cloudhub-connector"}
        assert one["spec"]["externalTrafficPolicy"] == "Local"
        assert one["spec"]["loadBalancerClass"] == "example.com/balancer"
        assert one["spec"]["loadBalancerSourceRanges"] == ["10.0.0.0/8"]
    assert edge["metadata"]["annotations"] == {"example.com/kind": "external"}
    assert quic["metadata"]["annotations"] == {"example.com/kind": "udp"}
    assert nodes["spec"]["type"] == "ClusterIP"
    assert "externalTrafficPolicy" not in nodes["spec"]
    closed = by_name(templated({"connector": {"quic": {"exposed": "none"}}}))
    assert [port["name"] for port in closed["Service", "cloudhub-edge"]["spec"]["ports"]] == ["edge"]
    assert ("Service", "cloudhub-edge-quic") not in closed


def test_parts_can_be_left_out() -> None:
    everything = by_name(chart_of("production"))
    without = by_name(
        templated(
            {
                "enrolment": {"enabled": False},
                "networkPolicies": {"enabled": False},
                "priorityClass": {"create": False, "name": ""},
            }
        )
    )
    gone = everything.keys() - without.keys()
    assert {kind for kind, name in gone if not name.startswith("cloudhub-enrolment")} == {
        "NetworkPolicy",
        "PriorityClass",
    }
    assert [key for key in without if "enrolment" in key[1]] == []
    assert "priorityClassName" not in pod_of(without["Deployment", "cloudhub-connector"])
    assert without.keys() < everything.keys()


def test_volumes_of_an_embedded_hub() -> None:
    storage = {"size": "50Gi", "className": "fast"}
    found = by_name(templated({"profile": "embedded", "dispatcher": {"storage": storage}}))
    claim = found["PersistentVolumeClaim", "cloudhub-dispatcher"]["spec"]
    assert claim["storageClassName"] == "fast"
    assert claim["resources"]["requests"] == {"storage": "50Gi"}
    assert "storageClassName" not in found["PersistentVolumeClaim", "cloudhub-sessions"]["spec"]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"profle": "embedded"}, "additional properties 'profle' not allowed"),
        ({"profile": "small"}, "at '/profile': value must be one of 'production', 'embedded'"),
        ({"connector": {"settings": {"links_mots": 5}}}, "additional properties 'links_mots' not allowed"),
        (
            {"connector": {"settings": {"links_most": "many"}}},
            "at '/connector/settings/links_most': got string",
        ),
        ({"dispatcher": {"settings": {"listen": "0.0.0.0:1"}}}, "additional properties 'listen' not allowed"),
        ({"dispatcher": {"maxReplicas": 0}}, "at '/dispatcher/maxReplicas': minimum: got 0, want 1"),
        ({"sessions": {"storage": {"size": "2 GB"}}}, "at '/sessions/storage/size'"),
        ({"image": {"tag": "a b"}}, "at '/image/tag'"),
        (
            {"connector": {"minReplicas": 30}},
            "connector.minReplicas is 30, but maxReplicas is 20: the first must not be the greater one.",
        ),
        (
            {"enrolment": {"service": {"type": "NodePort", "loadBalancerClass": "a"}}},
            "enrolment.service.type is NodePort, but a loadBalancerClass or",
        ),
        (
            {"connector": {"quic": {"annotations": {"a": "b"}}}},
            "there is with connector.quic.exposed: own-service only.",
        ),
        (
            {"priorityClass": {"name": ""}},
            "priorityClass.name is empty: give it a name, or say create: false",
        ),
    ],
)
def test_a_wrong_value_is_refused_with_a_sentence(values: dict[str, Any], told: str) -> None:
    assert told in refusal(values)


def test_notes_name_what_is_wanted() -> None:
    done = helm("install", "cloudhub", CHART, "--dry-run=client", f"--namespace={NAMESPACE}")
    assert done.returncode == 0, done.stderr
    assert (
        "cloudhub-server, cloudhub-service, cloudhub-edge-ca, cloudhub-enrolment-ca, cloudhub-database"
        in done.stdout
    )
    assert "cloudhub-dispatchers.cloudhub" in done.stdout


def test_the_example_of_the_page_is_taken() -> None:
    """And what it says of wrong values is what helm says."""
    (text,) = re.findall(r"^```yaml\n(image:.*?)^```$", page.PAGE.read_text(), re.MULTILINE | re.DOTALL)
    found = by_name(templated(yaml.safe_load(text)))
    images = {one["image"] for one in containers(pod_of(found["Deployment", "cloudhub-connector"]))}
    assert images == {"registry.example.com/cloudhub/connector:0.1.0"}
    told = refusal({"connector": {"settings": {"links_mots": 1}}})
    told += refusal({"connector": {"minReplicas": 30}})
    for sentence in re.findall(r"as in `(.*?)` or\n`(.*?)`", page.PAGE.read_text())[0]:
        assert sentence in told
