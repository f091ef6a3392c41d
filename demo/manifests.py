"""The manifests of the demo as messages. Pure, but for `load_manifests`."""

import time
import uuid
from collections.abc import Callable
from pathlib import Path

from cloudhub.v1.dispatcher_pb2 import PublishRequest
from ctl import manifests
from ctl.manifests import ManifestFault

__all__ = ["Manifest", "ManifestFault", "Versions", "load_manifests", "publish_request"]

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_DNS, "demo.cloudhub")


class Manifest(manifests.Manifest):
    """One object, with a uid of the demo's own."""

    __slots__ = ()

    @property
    def uid(self) -> str:
        """The same at every start."""
        return str(uuid.uuid5(_NAMESPACE, self.resource))


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
    return [
        Manifest(found.kind, found.namespace, found.name, found.body, found.where, found.group)
        for found in manifests.read_manifests([folder])
    ]


def publish_request(
    manifest: Manifest, operation: str, version: int, node_ids: list[str], annotations: dict[str, str]
) -> PublishRequest:
    """A request to publish one version of an object to nodes."""
    metadata: dict[str, object] = {"uid": manifest.uid}
    if annotations:
        metadata["annotations"] = {**manifest.body["metadata"].get("annotations", {}), **annotations}
    content = manifest.content(str(version), **metadata)
    return manifests.publish_request(manifest, operation, str(version), node_ids, content)
