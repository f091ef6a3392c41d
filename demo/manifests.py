"""Kubernetes manifests as messages. Pure, but for `load_manifests`."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cloudhub.v1.dispatcher_pb2 import ACK_MODE_ACK, PublishRequest
from cloudhub.v1.message_pb2 import Message

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "demo.cloudhub")


class ManifestFault(Exception):
    """A manifest that cannot be published; the text names the file and what would be right."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One object as it was written."""

    kind: str
    namespace: str
    name: str
    body: dict[str, Any]

    @property
    def resource(self) -> str:
        """`<namespace>/<type>/<name>` (docs/protocol.md)."""
        return f"{self.namespace}/{self.kind.lower()}/{self.name}"

    @property
    def uid(self) -> str:
        """The same at every start."""
        return str(uuid.uuid5(_NAMESPACE, self.resource))

    def content(self, version: int, annotations: dict[str, str]) -> bytes:
        """The object as JSON, in this version."""
        metadata = {
            **self.body["metadata"],
            "namespace": self.namespace,
            "uid": self.uid,
            "resourceVersion": str(version),
        }
        if annotations:
            metadata["annotations"] = {**metadata.get("annotations", {}), **annotations}
        return json.dumps({**self.body, "metadata": metadata}, separators=(",", ":")).encode()


class Versions:
    """Growing versions, also over restarts: microseconds since the Unix epoch."""

    def __init__(self, now_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._now_us = now_us
        self.last = 0

    def next(self) -> int:
        """A version above all before it."""
        self.last = max(self.last + 1, self._now_us())
        return self.last


def load_manifests(folder: Path) -> list[Manifest]:
    """Every document of every YAML file in the folder. Raises ManifestFault."""
    found: dict[str, Manifest] = {}
    for path in sorted((*folder.glob("*.yaml"), *folder.glob("*.yml"))):
        try:
            documents = list(yaml.safe_load_all(path.read_text()))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ManifestFault(f"{path} is no YAML: {error}") from error
        for number, body in enumerate(documents, 1):
            if body is None:
                continue
            manifest = _manifest(path, number, body)
            if manifest.resource in found:
                raise ManifestFault(f"{path}, document {number}: {manifest.resource} is there already")
            found[manifest.resource] = manifest
    if not found:
        raise ManifestFault(f"{folder} holds no manifests (*.yaml)")
    return list(found.values())


def _manifest(path: Path, number: int, body: Any) -> Manifest:
    where = f"{path}, document {number}"
    if not isinstance(body, dict) or not isinstance(body.get("metadata"), dict):
        raise ManifestFault(f"{where}: should be an object with kind and metadata")
    kind, name = body.get("kind"), body["metadata"].get("name")
    if not (isinstance(kind, str) and kind and isinstance(name, str) and name):
        raise ManifestFault(f"{where}: should have a kind and a metadata.name, both text")
    namespace = body["metadata"].get("namespace", "default")
    try:
        json.dumps(body)
    except TypeError as error:
        raise ManifestFault(f"{where}: has a value that JSON cannot say ({error}); quote it") from error
    return Manifest(kind, str(namespace), name, body)


def publish_request(
    manifest: Manifest, operation: str, version: int, node_ids: list[str], annotations: dict[str, str]
) -> PublishRequest:
    """A request to publish one version of an object to nodes."""
    return PublishRequest(
        message=Message(
            resource_version=str(version),
            source="edgecontroller",
            group="resource",
            operation=operation,
            resource=manifest.resource,
            content=manifest.content(version, annotations),
        ),
        node_ids=node_ids,
        ack_mode=ACK_MODE_ACK,
    )
