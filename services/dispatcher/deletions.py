"""What a delete has to say of its object, so that edges forget it. Pure.

Stock edges keep an object twice: one store deletes by path, the other by apiVersion, kind, namespace and name
in the content. A delete without them is acknowledged, and the object stays readable at the edge.
"""

from typing import Any

import msgspec

# Kinds of the API group "", which have one version, by their type in a path (their name in lower case).
CORE_KINDS = {
    kind.lower(): kind
    for kind in (
        *("ConfigMap", "Endpoints", "Event", "LimitRange", "Namespace", "Node", "PersistentVolume"),
        *("PersistentVolumeClaim", "Pod", "PodTemplate", "ReplicationController", "ResourceQuota", "Secret"),
        *("Service", "ServiceAccount"),
    )
}
CORE_VERSION = "v1"
CLUSTER_SCOPE = "null"
_raw_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_encode = msgspec.json.encode


class Incomplete(ValueError):
    """A delete that cannot be completed; the text says what is missing and what would be right."""


def _is_text(raw: msgspec.Raw | None) -> bool:
    return raw is not None and bytes(raw).startswith(b'"') and bytes(raw) != b'""'


def _object(content: bytes | msgspec.Raw, name: str) -> dict[str, msgspec.Raw]:
    """A JSON object with its members as they came, empty for `null`."""
    try:
        return {} if bytes(content).strip() == b"null" else _raw_object.decode(content)
    except msgspec.ValidationError:
        raise Incomplete(f"{name} of a delete must be an object, or null") from None


def completed(content: bytes, resource: str) -> bytes:
    """The content of a delete with apiVersion, kind, metadata.name and metadata.namespace (of what has one).

    What is missing is taken from the resource path, `<namespace>/<type>/<name>`; apiVersion and kind only of
    `CORE_KINDS`, since a path says neither group nor version. Whatever else is in the content stays as it
    came. `content` is checked JSON. Raises Incomplete.
    """
    body = _object(content, "the content")
    metadata = _object(body.get("metadata", b"null"), "metadata")
    namespace, _, rest = resource.partition("/")
    kind, _, name = rest.partition("/")
    found: dict[str, Any] = {}
    core = CORE_KINDS.get(kind)
    if core is not None and _said(body.get("kind")) in ("", core):
        found = {"apiVersion": CORE_VERSION, "kind": core}
    missing = [part for part in ("apiVersion", "kind") if not _is_text(body.get(part)) and part not in found]
    in_path = {"name": name} if name and "/" not in name else {}
    if in_path and namespace != CLUSTER_SCOPE:
        in_path["namespace"] = namespace
    wanted = ("name",) if namespace == CLUSTER_SCOPE else ("name", "namespace")
    missing += [
        f"metadata.{part}" for part in wanted if not _is_text(metadata.get(part)) and not in_path.get(part)
    ]
    if missing:
        raise Incomplete(
            f"a delete needs {', '.join(missing)} in its content, else the object stays readable at the "
            "edge: send the object as it was last published"
        )
    added = {part: value for part, value in found.items() if not _is_text(body.get(part))}
    named = {part: value for part, value in in_path.items() if not _is_text(metadata.get(part))}
    if not added and not named:
        return content
    return _encode({**body, **added, "metadata": {**metadata, **named}})


def _said(raw: msgspec.Raw | None) -> str:
    return msgspec.json.decode(raw, type=str) if raw is not None and _is_text(raw) else ""
