"""Every container of ours in every overlay is started as it stands: its command line, variables, user and
mounts, the secrets of docs/deployment.md, its neighbours. Nothing but its mounts can be written to."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.deploy import page
from tests.deploy.images import HOME, target_of
from tests.deploy.manifests import OVERLAYS, Manifest, containers, pod_of
from tests.deploy.pods import Cluster, Pod, Secrets, cluster
from tests.deploy.test_rendered import of_kind, rendered
from tests.lab.namespaces import missing
from tests.support.postgres import need_postgres, reachable_folder

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(400)]
# Images of others: they are not here, and are told not to write.
FOREIGN_PODS = {"jaeger", "otel-collector"}
MIGRATION_SECONDS = 60.0
READY_SECONDS = 120.0
"""As long as a startup probe waits (60 failures, 2 s apart)."""
_DATABASE_URL = re.compile(r"postgresql://(\w+):(\w+)@db:5432/(\w+)")


def of_ours(overlay: str) -> list[Manifest]:
    """The Deployments whose containers run images of the Dockerfile."""
    found = []
    for name, deployment in of_kind(overlay, "Deployment").items():
        targets = {bool(target_of(one["image"])) for one in containers(pod_of(deployment))}
        assert len(targets) == 1, f"{name} mixes images of ours with others"
        if targets == {True}:
            found.append(deployment)
    return found


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Secrets:
    return page.secrets(tmp_path_factory.mktemp("page"))


@contextmanager
def hub(overlay: str, secrets: Secrets) -> Iterator[Cluster]:
    """The pods of an overlay, with a database where one is wanted."""
    reason = missing()
    assert not reason, f"{reason}: make check-deploy starts pods in namespaces"
    with reachable_folder() as folder, cluster(folder, rendered(overlay), of_ours(overlay), secrets) as made:
        if overlay != "embedded":
            need_postgres()
            urls = {value.decode() for value in secrets["cloudhub-database"].values()}
            (match,) = (_DATABASE_URL.fullmatch(url) for url in urls)
            assert match, urls
            made.start_database(*match.groups())
        yield made


def start(pod: Pod) -> None:
    """Its init containers one after the other, each to its good end; then the others."""
    for one in pod.spec.get("initContainers", ()):
        started = pod.start(one, target_of(one["image"]))
        assert started.ended(MIGRATION_SECONDS) == 0, f"{started.name}:\n{started.log}"
    for one in pod.spec["containers"]:
        pod.start(one, target_of(one["image"]))


def probes(pod: Pod) -> Iterator[str]:
    """What the kubelet asks for."""
    for container in pod.spec["containers"]:
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            asked = container[name]["grpc"]
            yield f"{pod.address}:{asked['port']}/{asked.get('service', '')}"


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_container_serves_with_nothing_but_its_mounts(overlay: str, secrets: Secrets) -> None:
    """And ends cleanly when it is told to."""
    with hub(overlay, secrets) as made:
        assert of_kind(overlay, "Deployment").keys() - made.pods.keys() <= FOREIGN_PODS
        for pod in made.pods.values():
            start(pod)
        unready = made.unready([probe for pod in made.pods.values() for probe in probes(pod)], READY_SECONDS)
        logs = "\n".join(
            f"--- {one.name}\n{one.log[-2000:]}" for pod in made.pods.values() for one in pod.containers
        )
        assert unready == [], logs
        statuses = made.stop()
        assert set(statuses.values()) == {0}, statuses
        assert statuses.keys() == {
            f"{name}/{one['name']}" for name, pod in made.pods.items() for one in pod.spec["containers"]
        }


_TRY = """
import os
found = []
for folder, names, files in os.walk('/'):
    names[:] = [name for name in names if os.path.join(folder, name) not in ('/proc', '/usr')]
    try:
        with open(os.path.join(folder, 'tried'), 'w'):
            found.append(folder)
    except OSError:
        pass
    names[:] = [] if folder.startswith('/opt') else names
capabilities = [line.split()[1] for line in open('/proc/self/status') if line.startswith('CapEff')]
print(os.getuid(), os.getgid(), os.getgroups(), capabilities, found)
"""


@pytest.mark.parametrize(
    ("service", "writable"), [("connector", ["/tmp"]), ("sessions", ["/tmp", "/var/lib/cloudhub"])]
)
def test_a_container_can_write_to_its_mounts_alone(
    service: str, writable: list[str], secrets: Secrets
) -> None:
    """What the check above relies on."""
    with hub("embedded", secrets) as made:
        pod = made.pods[f"cloudhub-{service}"]
        (container,) = pod.spec["containers"]
        tried = pod.start(container, service, [f"{HOME}/bin/python", "-c", _TRY])
        assert (tried.ended(MIGRATION_SECONDS), tried.log) == (
            0,
            f"65532 65532 [65532] ['0000000000000000'] {writable}\n",
        )
