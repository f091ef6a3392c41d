"""The files of deploy/, read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from scripts.document_settings import SERVICES
from services.runtime.settings import ServiceSettings, split_address

ROOT = Path(__file__).resolve().parent.parent.parent
DOCKER = ROOT / "deploy" / "docker"
KUBERNETES = ROOT / "deploy" / "kubernetes"
MONITORING = KUBERNETES / "components" / "monitoring"
OVERLAYS = ("embedded", "production", "observed")

Manifest = dict[str, Any]


def documents(text: str) -> list[Manifest]:
    """The objects of a YAML stream."""
    # The loader in C: the pure one takes as long as all the tests of the manifests.
    return [found for found in yaml.load_all(text, yaml.CSafeLoader) if found]


def sources() -> Iterator[tuple[str, Manifest]]:
    """Every object and patch below deploy/kubernetes with its file."""
    for path in sorted(KUBERNETES.rglob("*.yaml")):
        for found in documents(path.read_text()):
            if isinstance(found, dict) and "metadata" in found:
                yield str(path.relative_to(KUBERNETES)), found


def base(kind: str, name: str) -> Manifest:
    """One object of the base."""
    (found,) = (
        one
        for path, one in sources()
        if path.startswith("base/") and (one["kind"], one["metadata"]["name"]) == (kind, name)
    )
    return found


def pod_of(workload: Manifest) -> Manifest:
    """The pod that a Deployment makes."""
    pod: Manifest = workload["spec"]["template"]["spec"]
    return pod


def containers(pod: Manifest) -> Iterator[Manifest]:
    """Of a pod, those that initialize it too; a patch may name none."""
    yield from pod.get("initContainers", ())
    yield from pod.get("containers", ())


def variables(container: Manifest) -> dict[str, str | None]:
    """Name and value; None for what comes from elsewhere."""
    return {one["name"]: one.get("value") for one in container.get("env", ())}


def default_ports(service: str) -> set[int]:
    """Where a service listens when it is not told."""
    fields = SERVICES[service].model_fields
    listens = [fields[name].default for name in fields if name.endswith("listen")]
    return {split_address(address)[1] for address in listens if address is not None}


def settings_of(service: str, given: dict[str, str | None]) -> ServiceSettings:
    """A service's settings by its environment. Raises ValidationError for a bad value, KeyError for a
    variable that it does not have."""
    kind = SERVICES[service]
    prefix = str(kind.model_config.get("env_prefix", ""))
    fields = {(prefix + name).upper(): name for name in kind.model_fields}
    own = {fields[name]: value for name, value in given.items() if name.startswith("CLOUDHUB_")}
    # What comes from elsewhere is a secret: there is no value to look at.
    known = {name: value.replace("$(POD_IP)", "10.0.0.1") for name, value in own.items() if value is not None}
    return kind.model_validate(known)


def dashboard_expressions() -> list[str]:
    """Every query of the dashboard."""
    board = json.loads((MONITORING / "cloudhub.json").read_text())
    return [target["expr"] for panel in board["panels"] for target in panel["targets"]]


def rules() -> list[Manifest]:
    """Every alert."""
    (rule,) = documents((MONITORING / "alerts.yaml").read_text())
    return [alert for group in rule["spec"]["groups"] for alert in group["rules"]]
