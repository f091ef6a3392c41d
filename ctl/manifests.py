"""Kubernetes manifests as messages. Pure, but for `read_manifests`."""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloudhub.v1.dispatcher_pb2 import ACK_MODE_ACK, PublishRequest
from cloudhub.v1.message_pb2 import Message
from ctl.yaml_text import MAX_TEXT_BYTES, YamlFault, documents, json_bytes

STDIN = Path("-")
CLUSTER = "null"
"""Stands for the namespace of objects that have none (docs/protocol.md)."""

# The kinds of Kubernetes and KubeEdge whose objects have no namespace.
_CLUSTER_SCOPED = frozenset(
    (group, kind)
    for group, kinds in {
        "": "ComponentStatus Namespace Node PersistentVolume",
        "admissionregistration.k8s.io": "MutatingWebhookConfiguration ValidatingAdmissionPolicy "
        "ValidatingAdmissionPolicyBinding ValidatingWebhookConfiguration",
        "apiextensions.k8s.io": "CustomResourceDefinition",
        "apiregistration.k8s.io": "APIService",
        "apps.kubeedge.io": "NodeGroup",
        "certificates.k8s.io": "CertificateSigningRequest ClusterTrustBundle",
        "flowcontrol.apiserver.k8s.io": "FlowSchema PriorityLevelConfiguration",
        "networking.k8s.io": "IngressClass IPAddress ServiceCIDR",
        "node.k8s.io": "RuntimeClass",
        "operations.kubeedge.io": "ConfigUpdateJob ImagePrePullJob NodeUpgradeJob",
        "rbac.authorization.k8s.io": "ClusterRole ClusterRoleBinding",
        "reliablesyncs.kubeedge.io": "ClusterObjectSync",
        "resource.k8s.io": "DeviceClass ResourceSlice",
        "scheduling.k8s.io": "PriorityClass",
        "storage.k8s.io": "CSIDriver CSINode StorageClass VolumeAttachment VolumeAttributesClass",
    }.items()
    for kind in kinds.split()
)


class ManifestFault(Exception):
    """A manifest that cannot be published; the text names the file and what would be right."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object as it was written."""

    kind: str
    namespace: str
    name: str
    body: dict[str, Any]
    where: str = ""
    """File and number of the document."""
    group: str = ""
    """Of the API; that of pods and the like has no name."""

    @property
    def resource(self) -> str:
        """`<namespace>/<type>/<name>` (docs/protocol.md); the type of a kind that is not core has its group,
        as kubectl writes it: `deployment.apps`."""
        kind = self.kind.lower()
        return f"{self.namespace}/{f'{kind}.{self.group}' if self.group else kind}/{self.name}"

    @property
    def version(self) -> str:
        """Its `metadata.resourceVersion`; empty without one."""
        return str(self.body["metadata"].get("resourceVersion", ""))

    def content(self, version: str, **metadata: Any) -> bytes:
        """The object as JSON, in this version, with further metadata."""
        place = {} if self.namespace == CLUSTER else {"namespace": self.namespace}
        merged = {**self.body["metadata"], **place, "resourceVersion": version, **metadata}
        return json_bytes({**self.body, "metadata": merged})


def version_by_clock(now_us: int | None = None) -> str:
    """A version above those of all earlier times: microseconds since the Unix epoch."""
    return str(time.time_ns() // 1000 if now_us is None else now_us)


def _namespace(where: str, group: str, kind: str, metadata: dict[str, Any]) -> str:
    given = metadata.get("namespace", "")
    if (group, kind) in _CLUSTER_SCOPED:
        if given:
            raise ManifestFault(f"{where}: a {kind} has no namespace; leave metadata.namespace out")
        return CLUSTER
    if "namespace" not in metadata:
        return "default"
    if not (isinstance(given, str) and given):
        raise ManifestFault(
            f"{where}: metadata.namespace is empty or no text; name one, or leave it out, which means default"
        )
    return given


def _group(where: str, body: dict[str, Any]) -> str:
    version = body.get("apiVersion", "v1")
    if not (isinstance(version, str) and version.count("/") <= 1):
        raise ManifestFault(f"{where}: should have an apiVersion such as v1 or apps/v1")
    return version.rpartition("/")[0]


def _parsed(where: str, body: Any) -> Manifest:
    if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
        raise ManifestFault(f"{where}: should be an object with kind and metadata")
    metadata = body["metadata"]
    kind, name = body.get("kind"), metadata.get("name")
    if not (isinstance(kind, str) and kind and isinstance(name, str) and name):
        raise ManifestFault(f"{where}: should have a kind and a metadata.name, both text")
    group = _group(where, body)
    namespace = _namespace(where, group, kind, metadata)
    for what, text in (("kind", kind), ("metadata.name", name), ("metadata.namespace", namespace)):
        if "/" in text:
            raise ManifestFault(f"{where}: {what} has a slash, which parts the path of an object")
    try:
        json_bytes(body)
    except YamlFault as error:
        raise ManifestFault(f"{where}: {error}") from error
    return Manifest(kind, namespace, name, body, where, group)


def _is_list(body: Any) -> bool:
    """`kind: List`, or a list of one kind (`PodList`), as kubectl writes them."""
    return isinstance(body, dict) and str(body.get("kind", "")).endswith("List") and "items" in body


def _objects(where: str, body: Any) -> Iterator[tuple[str, Any]]:
    """The object of a document, or those of a list, each with its place."""
    if not _is_list(body):
        yield where, body
        return
    items = body["items"]
    if not isinstance(items, list):
        raise ManifestFault(f"{where}: items should be a list of objects")
    for number, item in enumerate(items, 1):
        if _is_list(item):
            raise ManifestFault(f"{where}, item {number}: is a list in a list; give its items")
        yield f"{where}, item {number}", item


def parse_manifests(source: str, text: str) -> Iterator[Manifest]:
    """Every document of a YAML text; `source` names it. A list is taken apart. Raises ManifestFault."""
    try:
        for number, body in enumerate(documents(text), 1):
            if body is not None:
                for where, one in _objects(f"{source}, document {number}", body):
                    yield _parsed(where, one)
    except YamlFault as error:
        raise ManifestFault(f"{source}{_behind(str(error))}") from error


def _behind(sentence: str) -> str:
    return f", {sentence}" if sentence.startswith("document ") else f" {sentence}"


def _text(source: str, data: bytes) -> tuple[str, str]:
    if len(data) > MAX_TEXT_BYTES:
        raise ManifestFault(f"{source} has more than {MAX_TEXT_BYTES} bytes; split it")
    try:
        return source, data.decode()
    except UnicodeDecodeError as error:
        raise ManifestFault(f"{source} is no YAML: {error}") from error


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path == STDIN:
        yield _text("standard input", sys.stdin.buffer.read(MAX_TEXT_BYTES + 1))
        return
    files = sorted((*path.glob("*.yaml"), *path.glob("*.yml"))) if path.is_dir() else [path]
    for file in files:
        try:
            with file.open("rb") as opened:
                data = opened.read(MAX_TEXT_BYTES + 1)
        except OSError as error:
            raise ManifestFault(f"{file} cannot be read: {error.strerror}") from error
        yield _text(str(file), data)


def read_manifests(paths: Iterable[Path]) -> list[Manifest]:
    """Every document of every file; a folder stands for its `*.yaml` and `*.yml`, `-` for the standard input.

    Raises ManifestFault, also for an object that comes twice and if there is none at all.
    """
    paths = list(paths)
    found: dict[str, Manifest] = {}
    for path in paths:
        for source, text in _texts(path):
            for manifest in parse_manifests(source, text):
                if manifest.resource in found:
                    raise ManifestFault(f"{manifest.where}: {manifest.resource} is there already")
                found[manifest.resource] = manifest
    if not found:
        raise ManifestFault(f"{', '.join(map(str, paths))} holds no manifests (*.yaml)")
    return list(found.values())


def publish_request(
    manifest: Manifest, operation: str, version: str, node_ids: Iterable[str], content: bytes
) -> PublishRequest:
    """A request to publish one version of an object to nodes, with acknowledgement."""
    return PublishRequest(
        message=Message(
            resource_version=version,
            source="edgecontroller",
            group="resource",
            operation=operation,
            resource=manifest.resource,
            content=content,
        ),
        node_ids=list(node_ids),
        ack_mode=ACK_MODE_ACK,
    )
