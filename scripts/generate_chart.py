"""Lays what kustomize makes of deploy/kubernetes into the Helm chart, and the services' settings into its
schema; with --check, fails when they are not current.

The chart's templates put values into these objects, so that both ways to install give the same hub. Needs the
kubectl of deploy/requirements.txt (`make check-deploy` installs it).
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from scripts.document_settings import SERVICES

ROOT = Path(__file__).resolve().parent.parent
KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = ROOT / "deploy" / "helm" / "cloudhub"
SCHEMA = CHART / "values.schema.json"
PROFILES = ("embedded", "production")
COMPONENTS = ("jaeger", "monitoring")
# Set by the manifests, which depend on them: ports, certificates, names, the time of a stop.
TUNABLE = {"links_most", "drain_links_per_second"}
_KEPT = ("type", "minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum", "enum", "const", "description")

Object = dict[str, Any]


class ChartFault(Exception):
    """The chart cannot be made; the text says why."""


# -- Objects -------------------------------------------------------------------------------------------


def _kubectl() -> str:
    found = shutil.which("kubectl", path=str(Path(sys.executable).parent)) or shutil.which("kubectl")
    if not found:
        raise ChartFault("kubectl is not installed; make check-deploy installs it")
    return found


def _kustomized(folder: Path) -> list[Object]:
    done = subprocess.run(
        [_kubectl(), "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    if done.returncode:
        raise ChartFault(done.stderr)
    return [found for found in yaml.load_all(done.stdout, yaml.CSafeLoader) if found]


def _identity(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _of_component(name: str, without: list[Object]) -> list[Object]:
    """What a component adds to production. Its patches are the templates' to make."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made).resolve()
        shown = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(KUBERNETES / "overlays" / "production", folder)],
            "components": [os.path.relpath(KUBERNETES / "components" / name, folder)],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(shown))
        known = {_identity(one) for one in without}
        return [one for one in _kustomized(folder) if _identity(one) not in known]


def files() -> dict[str, str]:
    """Name and text of each file of objects. Helm makes the namespace, or whoever installs does."""
    made = {name: _kustomized(KUBERNETES / "overlays" / name) for name in PROFILES}
    made |= {name: _of_component(name, made["production"]) for name in COMPONENTS}
    return {
        f"{name}.yaml": yaml.safe_dump_all(
            [one for one in objects if one["kind"] != "Namespace"], sort_keys=True, width=200
        )
        for name, objects in made.items()
    }


# -- Settings ------------------------------------------------------------------------------------------


def _managed(service: str) -> set[str]:
    """Settings that the manifests or the values of the chart decide."""
    found = {"advertise", "database", "database_url_file", "grpc_insecure_loopback", "name"} | {
        name for name in SERVICES[service].model_fields if name.endswith("listen")
    }
    prefix = f"CLOUDHUB_{service.upper()}_"
    for path in KUBERNETES.rglob(f"{service}.yaml"):
        for one in yaml.safe_load_all(path.read_text()):
            if one and one["kind"] == "Deployment":
                for container in one["spec"]["template"]["spec"].get("containers", ()):
                    found |= {
                        entry["name"].removeprefix(prefix).lower() for entry in container.get("env", ())
                    }
    return found - TUNABLE


def _kept(told: Mapping[str, Any]) -> Object:
    """A setting's schema without what Helm needs not know. None is said by leaving a setting out."""
    shown = {key: told[key] for key in _KEPT if key in told}
    for kind in told.get("anyOf", ()):
        if kind["type"] != "null":
            shown |= {key: kind[key] for key in _KEPT if key in kind}
    return shown


def settings_schema(service: str) -> Object:
    """What may stand below `settings` of a service."""
    told = SERVICES[service].model_json_schema()["properties"]
    managed = _managed(service)
    return {
        "type": "object",
        "description": f"Settings of {service} by name, as docs/operations/settings.md lists them.",
        "additionalProperties": False,
        "properties": {name: _kept(told[name]) for name in sorted(told) if name not in managed},
    }


def schema(old: str) -> str:
    """The chart's schema with the settings made anew."""
    found = json.loads(old)
    for service in SERVICES:
        found["definitions"][f"{service}Settings"] = settings_schema(service)
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


# -- Files ---------------------------------------------------------------------------------------------


def _wanted() -> Iterator[tuple[Path, str]]:
    yield SCHEMA, schema(SCHEMA.read_text())
    for name, text in files().items():
        yield CHART / "files" / name, text


def main() -> None:
    """Writes the chart's generated files, or with --check compares them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing, fail if something would change")
    check = parser.parse_args().check
    try:
        wanted = list(_wanted())
    except ChartFault as fault:
        raise SystemExit(str(fault)) from None
    stale = [path for path, text in wanted if not path.exists() or path.read_text() != text]
    if check and stale:
        names = ", ".join(str(path.relative_to(ROOT)) for path in stale)
        raise SystemExit(f"not current: {names}; run python -m scripts.generate_chart")
    for path, text in wanted:
        if path in stale:
            path.write_text(text)


if __name__ == "__main__":
    main()
