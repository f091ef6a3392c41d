"""Manifests as messages."""

import json
from pathlib import Path

import pytest

from demo.manifests import ManifestFault, Versions, load_manifests, publish_request
from demo.settings import DemoSettings


def test_the_examples_load_under_distinct_names() -> None:
    manifests = load_manifests(DemoSettings().manifests)

    assert len(manifests) >= 15
    assert len({manifest.uid for manifest in manifests}) == len(manifests)


def test_an_object_has_the_same_uid_at_every_start(tmp_path: Path) -> None:
    text = "kind: ConfigMap\nmetadata: {name: prices, namespace: shop}\ndata: {milk: '1.29'}\n"
    (tmp_path / "prices.yaml").write_text(text)

    [first], [second] = load_manifests(tmp_path), load_manifests(tmp_path)

    assert first.uid == second.uid
    assert first.resource == "shop/configmap/prices"


def test_a_request_carries_the_object_with_uid_version_and_annotations(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text("kind: Pod\nmetadata: {name: till}\nspec: {}\n")
    [manifest] = load_manifests(tmp_path)

    request = publish_request(manifest, "update", 17, ["edge-1"], {"revision": "3"})

    content = json.loads(request.message.content)
    assert request.message.resource == "default/pod/till"
    assert request.message.resource_version == content["metadata"]["resourceVersion"] == "17"
    assert content["metadata"]["uid"] == manifest.uid
    assert content["metadata"]["annotations"] == {"revision": "3"}
    assert "annotations" not in manifest.body["metadata"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: [", "is no YAML"),
        ("- 1\n", "should be an object with kind and metadata"),
        ("kind: Pod\nmetadata: {}\n", "metadata.name"),
        ("kind: Pod\nmetadata: {name: a}\nfrom: 2026-03-02\n", "JSON cannot say"),
        ("kind: Pod\nmetadata: {name: a}\n---\nkind: Pod\nmetadata: {name: a}\n", "is there already"),
        ("", "holds no manifests"),
    ],
)
def test_a_bad_manifest_is_named_with_its_file(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)

    with pytest.raises(ManifestFault, match=told) as raised:
        load_manifests(tmp_path)

    assert str(tmp_path) in str(raised.value)


def test_versions_grow_though_the_clock_stands_or_steps_back() -> None:
    times = iter([100, 100, 50, 200])
    versions = Versions(lambda: next(times))

    assert [versions.next() for _ in range(4)] == [100, 101, 102, 200]
