"""Manifests are read from files, folders and the standard input; a bad one is named with its place."""

import io
import json
import tracemalloc
from pathlib import Path

import pytest
import yaml

from ctl.manifests import (
    STDIN,
    Manifest,
    ManifestFault,
    parse_manifests,
    publish_request,
    read_manifests,
    version_by_clock,
)
from ctl.yaml_text import MAX_CONTENT_BYTES

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
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(PRICES.encode())))

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


def one(text: str) -> Manifest:
    [manifest] = parse_manifests("x", text)
    return manifest


def test_a_list_is_taken_apart() -> None:
    """`kind: List` is what `kubectl get -o yaml` writes."""
    items = [yaml.safe_load(PRICES), yaml.safe_load(POD)]
    text = yaml.safe_dump({"kind": "List", "apiVersion": "v1", "items": items})
    pods = yaml.safe_dump({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items[1:]})

    found = list(parse_manifests("x", f"{text}---\n{pods}"))

    assert [(each.resource, each.where) for each in found] == [
        ("shop/configmap/prices", "x, document 1, item 1"),
        ("default/pod/till", "x, document 1, item 2"),
        ("default/pod/till", "x, document 2, item 1"),
    ]


@pytest.mark.parametrize(
    ("head", "resource"),
    [
        ("apiVersion: v1\nkind: Service", "default/service/a"),
        ("apiVersion: serving.knative.dev/v1\nkind: Service", "default/service.serving.knative.dev/a"),
        ("apiVersion: apps/v1\nkind: Deployment", "default/deployment.apps/a"),
        ("apiVersion: v1\nkind: Node", "null/node/a"),
        (
            "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole",
            "null/clusterrole.rbac.authorization.k8s.io/a",
        ),
        ("apiVersion: example.com/v1\nkind: Node", "default/node.example.com/a"),
    ],
)
def test_a_path_tells_kinds_of_different_groups_apart(head: str, resource: str) -> None:
    """A node has one object per path: two kinds of one name must not take each other's place."""
    assert one(f"{head}\nmetadata: {{name: a}}\n").resource == resource


def test_an_object_of_the_cluster_gets_no_namespace() -> None:
    role = one("apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: a}\n")

    assert json.loads(role.content("1"))["metadata"] == {"name": "a", "resourceVersion": "1"}


def test_every_character_stays_as_long_as_it_is() -> None:
    """85 000 emoji have 340 kB, and had a megabyte as escapes: more than a message may have."""
    text = "\N{RED APPLE}" * 85_000
    content = one(f"kind: ConfigMap\nmetadata: {{name: a}}\ndata: {{fruit: '{text}'}}\n").content("1")

    assert len(content) < 341_000
    assert json.loads(content)["data"]["fruit"] == text


def test_what_anchors_repeat_is_written_out_within_the_bound() -> None:
    """The bound is reached, and a manifest below it is not affected by one above it."""
    item = "x" * 64 * 1024
    text = "kind: ConfigMap\nmetadata: {{name: a}}\ndata: {{a: &a '{}', b: [{}]}}\n"

    assert len(one(text.format(item, ", ".join(["*a"] * 62))).content("1")) < MAX_CONTENT_BYTES
    with pytest.raises(ManifestFault, match="comes to more than 4194304 bytes"):
        one(text.format(item, ", ".join(["*a"] * 64)))


_LAUGHS = "".join(f"  a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 10)}]\n" for n in range(9))
_MERGES = "".join(f"  m{n + 1}: &m{n + 1} {{<<: [{', '.join([f'*m{n}'] * 50)}]}}\n" for n in range(9))


@pytest.mark.parametrize(
    ("rest", "told"),
    [
        ("data: &a {b: *a}", "x, document 1: contains itself, by an anchor"),
        ("data: &a [*a, *a]", "x, document 1: contains itself, by an anchor"),
        (f"data:\n  a0: &a0 x\n{_LAUGHS}", "x, document 1: comes to more than 4194304 bytes"),
        (f"data:\n  m0: &m0 {{a: b}}\n{_MERGES}", "merges come to more than 100000 fields"),
        (f"data: {'[' * 102}{']' * 102}", "x, document 1: is nested deeper than 100 levels"),
        (f"data: {'[' * 400}{']' * 400}", "x, document 1: is nested deeper than 100 levels"),
        (f"data: {'7' * 5000}", "7' is no int, or one too long; quote it if it is text (line 3, column 7)"),
        (f"data: 0x{'f' * 5000}", "x, document 1: has a value that JSON cannot say"),
        ("data: 2026-13-45", "x is no YAML: '2026-13-45' is no timestamp, or one too long; quote it"),
        ("data: .inf", "x, document 1: has a value that JSON cannot say"),
        ("data: !!int ''", "'' is no int"),
        ("data: !!timestamp 'never'", "'never' is no timestamp"),
        ('data: "\\uD83C"', "x, document 1: has half of a surrogate pair"),
        ("? [a]\n: b", "x is no YAML: found unhashable key (line 3, column 3)"),
    ],
)
def test_what_is_no_content_is_one_sentence(rest: str, told: str) -> None:
    """Also what is written to take all memory or time."""
    with pytest.raises(ManifestFault) as raised:
        list(parse_manifests("x", f"kind: ConfigMap\nmetadata: {{name: a}}\n{rest}\n"))

    assert told in str(raised.value)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("bomb", [f"  a0: &a0 x\n{_LAUGHS}", f"  m0: &m0 {{a: b}}\n{_MERGES}"])
def test_anchors_take_no_memory_for_what_they_repeat(bomb: str) -> None:
    """It is refused before it is written out: a thousand million values each."""
    tracemalloc.start()
    try:
        with pytest.raises(ManifestFault):
            list(parse_manifests("x", f"kind: ConfigMap\nmetadata: {{name: a}}\ndata:\n{bomb}\n"))
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert most_bytes < 32 * 1024 * 1024


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        ("{name: a, namespace: null}", "metadata.namespace is empty or no text; name one, or leave it out"),
        ("{name: a, namespace: ''}", "metadata.namespace is empty or no text"),
        ("{name: a, namespace: 7}", "metadata.namespace is empty or no text"),
        ("{name: a/b}", "metadata.name has a slash"),
        ("{name: a, namespace: a/b}", "metadata.namespace has a slash"),
    ],
)
def test_a_place_that_is_none_is_told(metadata: str, told: str) -> None:
    with pytest.raises(ManifestFault, match=told):
        one(f"kind: ConfigMap\nmetadata: {metadata}\n")
    with pytest.raises(ManifestFault, match="a Node has no namespace"):
        one("kind: Node\nmetadata: {name: a, namespace: shop}\n")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("apiVersion: [v1]\nkind: Pod\nmetadata: {name: a}\n", "should have an apiVersion such as"),
        ("kind: List\nitems: 7\n", r"bad\.yaml, document 1: items should be a list"),
        ("kind: List\nitems: [{kind: List, items: []}]\n", "document 1, item 1: is a list in a list"),
        ("kind: List\nitems: [7]\n", "document 1, item 1: should be an object"),
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


def test_a_file_is_read_up_to_a_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.manifests.MAX_TEXT_BYTES", len(PRICES))
    (tmp_path / "fits.yaml").write_text(PRICES)
    (tmp_path / "large.yaml").write_text(f"{PRICES}#")

    assert len(read_manifests([tmp_path / "fits.yaml"])) == 1
    with pytest.raises(ManifestFault, match=rf"large\.yaml has more than {len(PRICES)} bytes; split it"):
        read_manifests([tmp_path / "large.yaml"])


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\xff")

    with pytest.raises(ManifestFault, match=r"gone\.yaml cannot be read: No such file"):
        read_manifests([tmp_path / "gone.yaml"])
    with pytest.raises(ManifestFault, match=r"bytes\.yaml is no YAML"):
        read_manifests([tmp_path / "bytes.yaml"])


def test_versions_by_the_clock_grow() -> None:
    assert int(version_by_clock()) < int(version_by_clock(2**62))
    assert version_by_clock(5) == "5"
