"""Kubernetes manifests as messages. Pure, but for `read_manifests`."""

import json
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cloudhub.v1.dispatcher_pb2 import ACK_MODE_ACK, PublishRequest
from cloudhub.v1.message_pb2 import Message

STDIN = Path("-")


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

    @property
    def resource(self) -> str:
        """`<namespace>/<type>/<name>` (docs/protocol.md)."""
        return f"{self.namespace}/{self.kind.lower()}/{self.name}"

    @property
    def version(self) -> str:
        """Its `metadata.resourceVersion`; empty without one."""
        return str(self.body["metadata"].get("resourceVersion", ""))

    def content(self, version: str, **metadata: Any) -> bytes:
        """The object as JSON, in this version, with further metadata."""
        merged = {
            **self.body["metadata"],
            "namespace": self.namespace,
            "resourceVersion": version,
            **metadata,
        }
        return json.dumps({**self.body, "metadata": merged}, separators=(",", ":")).encode()


def version_by_clock(now_us: int | None = None) -> str:
    """A version above those of all earlier times: microseconds since the Unix epoch."""
    return str(time.time_ns() // 1000 if now_us is None else now_us)


def _parsed(where: str, body: Any) -> Manifest:
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
    return Manifest(kind, str(namespace), name, body, where)


def parse_manifests(source: str, text: str) -> Iterator[Manifest]:
    """Every document of a YAML text; `source` names it. Raises ManifestFault."""
    try:
        documents = list(yaml.safe_load_all(text))
    except yaml.YAMLError as error:
        raise ManifestFault(f"{source} is no YAML: {error}") from error
    for number, body in enumerate(documents, 1):
        if body is not None:
            yield _parsed(f"{source}, document {number}", body)


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    if path == STDIN:
        yield "standard input", sys.stdin.read()
        return
    files = sorted((*path.glob("*.yaml"), *path.glob("*.yml"))) if path.is_dir() else [path]
    for file in files:
        try:
            yield str(file), file.read_text()
        except UnicodeDecodeError as error:
            raise ManifestFault(f"{file} is no YAML: {error}") from error
        except OSError as error:
            raise ManifestFault(f"{file} cannot be read: {error.strerror}") from error


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
