"""What docs/deployment.md tells people to do fits together and fits the manifests."""

import re
from pathlib import Path

import yaml
from cryptography import x509

from edge.certificates import SERVICE_NAME
from services.runtime.store_postgresql import POOL_CONNECTIONS
from tests.deploy import manifests, page
from tests.deploy.manifests import Manifest

TEXT = page.PAGE.read_text().replace("\N{MULTIPLICATION SIGN}", "*")
# Kept by PostgreSQL for superusers (superuser_reserved_connections).
RESERVED = 3


def dialled() -> set[str]:
    """The names in the cluster at which the page has programs dial the hub."""
    return set(re.findall(r"`(?:dns:///)?([a-z-]+\.cloudhub):\d+`", TEXT))


def test_the_certificate_of_the_services_has_every_name_that_is_dialled(tmp_path: Path) -> None:
    made = page.secrets(tmp_path)["cloudhub-service"]["tls.crt"]
    names = x509.load_pem_x509_certificate(made).extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert dialled() == {"cloudhub-dispatcher.cloudhub", "cloudhub-dispatchers.cloudhub"}
    assert dialled() <= set(names.value.get_values_for_type(x509.DNSName))


def test_so_has_the_one_of_cert_manager() -> None:
    (written,) = re.findall(r"dnsNames: \[(.*)\]", TEXT)
    assert set(written.split(", ")) == {SERVICE_NAME} | dialled()


def example() -> Manifest:
    """The overlay that the page shows."""
    (text,) = re.findall(r"^```yaml\n(apiVersion: kustomize.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    shown: Manifest = yaml.safe_load(text)
    return shown


def test_the_example_replaces_every_image_of_ours() -> None:
    used = {
        container["image"].partition(":")[0]
        for _, one in manifests.sources()
        if one["kind"] == "Deployment"
        for container in manifests.containers(manifests.pod_of(one))
        if container.get("image", "").startswith("cloudhub/")
    }
    assert len(used) == 4
    replaced = {one["name"]: one["newName"] for one in example()["images"]}
    assert replaced == {name: f"registry.example.com/{name}" for name in used}


def most_pods(service: str) -> int:
    """Of a service in the production overlay, during a rollout."""
    (surge,) = (
        one["spec"]["strategy"]["rollingUpdate"]["maxSurge"]
        for path, one in manifests.sources()
        if path.startswith("base/")
        and one["metadata"]["name"] == f"cloudhub-{service}"
        and one["kind"] == "Deployment"
    )
    replicas = [
        one["spec"].get("maxReplicas") or one["spec"].get("replicas")
        for path, one in manifests.sources()
        if path.startswith("overlays/production/")
        and one["kind"] in ("Deployment", "HorizontalPodAutoscaler")
        and one["metadata"]["name"] == f"cloudhub-{service}"
    ]
    most: int = surge + max(filter(None, replicas))
    return most


def test_max_connections_is_what_pods_and_pools_come_to() -> None:
    sessions, dispatchers = most_pods("sessions"), most_pods("dispatcher")
    together = (sessions + dispatchers) * POOL_CONNECTIONS
    assert f"a pool of at most {POOL_CONNECTIONS} connections" in TEXT
    assert f"(2 + 1 + 10 + 1) * 8 = {together}" in TEXT
    assert f"set at least {together + RESERVED}," in TEXT
    assert f"(2 + 1) * 8 + 3 = {sessions * POOL_CONNECTIONS + RESERVED} for sessions" in TEXT
    assert f"(10 + 1) * 8 + 3 = {dispatchers * POOL_CONNECTIONS + RESERVED} for dispatchers" in TEXT
