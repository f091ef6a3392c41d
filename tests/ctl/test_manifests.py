"""Manifests are read from files, folders and the standard input; a bad one is named with its place."""

import io
import json
from pathlib import Path

import pytest

from ctl.manifests import (
    STDIN,
    ManifestFault,
    parse_manifests,
    publish_request,
    read_manifests,
    version_by_clock,
)

PRICES = "kind: ConfigMap\nmetadata: {name: prices, namespace: shop}\ndata: {milk: '1.29'}\n"
POD = "kind: Pod\nmetadata: {name: till, uid: u-1, resourceVersion: '41'}\n"


def test_every_document_of_files_and_folders_is_read(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.yaml").write_text(f"---\n{PRICES}---\n---\n{POD}")
    (tmp_path / "folder" / "notes.txt").write_text("no manifest")
    (tmp_path / "b.json").write_text(json.dumps({"kind": "Secret", "metadata": {"name": "key"}}))

    found = read_manifests([tmp_path / "folder", tmp_path / "b.json"])

    assert [one.resource for one in found] == [
        "shop/configmap/prices",
        "default/pod/till",
        "default/secret/key",
    ]
    assert [one.version for one in found] == ["", "41", ""]


def test_a_manifest_comes_through_the_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(PRICES))

    assert [one.name for one in read_manifests([STDIN])] == ["prices"]


def test_a_message_carries_the_object_as_written_in_its_version() -> None:
    [manifest] = parse_manifests("x", POD)

    request = publish_request(manifest, "update", "42", ["edge-1"], manifest.content("42"))

    content = json.loads(request.message.content)
    assert content["metadata"] == {
        "name": "till",
        "namespace": "default",
        "uid": "u-1",
        "resourceVersion": "42",
    }
    assert request.message.resource_version == "42"
    assert list(request.node_ids) == ["edge-1"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("kind: [", r"bad\.yaml is no YAML"),
        ("kind: Pod\nmetadata: {name: a}\n---\n- 1\n", r"bad\.yaml, document 2: should be an object"),
        ("kind: Pod\nmetadata: {name: 7}\n", r"metadata\.name, both text"),
        ("kind: Pod\nmetadata: {name: a}\nfrom: 2026-03-02\n", "JSON cannot say"),
        (f"{POD}---\n{POD}", "document 2: default/pod/till is there already"),
        ("", "holds no manifests"),
    ],
)
def test_a_bad_manifest_is_named_with_its_place(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "bad.yaml").write_text(text)

    with pytest.raises(ManifestFault, match=told):
        read_manifests([tmp_path / "bad.yaml"])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")

    with pytest.raises(ManifestFault, match=r"gone\.yaml cannot be read: No such file"):
        read_manifests([tmp_path / "gone.yaml"])
    with pytest.raises(ManifestFault, match=r"bytes\.yaml is no YAML"):
        read_manifests([tmp_path / "bytes.yaml"])


def test_versions_by_the_clock_grow() -> None:
    assert int(version_by_clock()) < int(version_by_clock(2**62))
    assert version_by_clock(5) == "5"
