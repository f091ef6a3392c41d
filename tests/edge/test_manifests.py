"""The example manifests are what the demo expects to load."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

FOLDER = Path(__file__).parent.parent.parent / "examples" / "manifests"
OBJECTS: list[dict[str, Any]] = [
    found for path in sorted(FOLDER.glob("*.yaml")) for found in yaml.safe_load_all(path.read_text())
]


def test_there_are_about_twenty_with_names_of_their_own() -> None:
    names = [(one["kind"], one["metadata"]["namespace"], one["metadata"]["name"]) for one in OBJECTS]
    assert len(names) == len(set(names)) >= 18
    assert {kind for kind, _, _ in names} == {"ConfigMap", "Secret", "Pod"}


@pytest.mark.parametrize("manifest", OBJECTS, ids=lambda one: str(one["metadata"]["name"]))
def test_a_manifest_leaves_identity_to_who_applies_it(manifest: dict[str, Any]) -> None:
    assert manifest["apiVersion"] == "v1"
    assert not {"uid", "resourceVersion", "creationTimestamp"} & set(manifest["metadata"])
    assert 250 <= len(json.dumps(manifest)) <= 3000


@pytest.mark.parametrize(
    "pod", [one for one in OBJECTS if one["kind"] == "Pod"], ids=lambda one: str(one["metadata"]["name"])
)
def test_a_pod_refers_only_to_what_is_there(pod: dict[str, Any]) -> None:
    namespace = pod["metadata"]["namespace"]
    there = {
        (one["kind"], one["metadata"]["name"]) for one in OBJECTS if one["metadata"]["namespace"] == namespace
    }
    volumes = pod["spec"].get("volumes", [])
    for volume in volumes:
        if "configMap" in volume:
            assert ("ConfigMap", volume["configMap"]["name"]) in there
        if "secret" in volume:
            assert ("Secret", volume["secret"]["secretName"]) in there
    mounted = {
        mount["name"]
        for container in (*pod["spec"]["containers"], *pod["spec"].get("initContainers", []))
        for mount in container.get("volumeMounts", [])
    }
    assert mounted == {volume["name"] for volume in volumes}
