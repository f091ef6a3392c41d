"""What a delete has to say of its object, so that edges forget it. Pure.

Stock edges keep an object twice: one store deletes by path, the other by apiVersion, kind, namespace and name
in the content. A delete without them is acknowledged, and the object stays readable at the edge. A pod stays
without its uid.

A path says name and namespace, and what is stored of an object the rest: its uid, and its apiVersion and kind
(`kept_type`), as it was last published.
"""

from typing import Any, NamedTuple

import msgspec

from services.dispatcher.ack_mode import resource_type

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
POD = "pod"
# Of apiVersion and kind together. Longer ones are not kept: a delete has to say them.
MAX_TYPE_CHARS = 512
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


class Published(NamedTuple):
    """What is known of the object that a delete is about."""

    type_meta: str
    """As `kept_type` made it."""
    uid: str
    """Empty if it was published without one."""


def kept_type(api_version: object, kind: object, resource: str) -> str:
    """What has to be kept of a content's apiVersion and kind, to be given to `completed`: both with a blank
    between, or nothing where the path says as much, or where they are not texts or too long to be kept."""
    if not isinstance(kind, str) or not isinstance(api_version, str) or not kind or not api_version:
        return ""
    if api_version == CORE_VERSION and CORE_KINDS.get(resource_type(resource)) == kind:
        return ""
    kept = f"{api_version} {kind}"
    is_fit = len(kept) <= MAX_TYPE_CHARS and kept.isascii() and kept.isprintable() and kept.count(" ") == 1
    return kept if is_fit else ""


def named(content: bytes, resource: str) -> tuple[bytes, bool]:
    """The content of a delete with metadata.name and metadata.namespace (of what has one), taken from the
    resource path `<namespace>/<type>/<name>` where they are missing; and whether it still needs to be
    `completed`. Content that is there stays as it came. `content` is checked JSON. Raises Incomplete."""
    body, metadata = _parts(content)
    names, lacks = _names(metadata, resource)
    unsaid = _missing_type(body)
    if lacks:
        raise _incomplete([*(() if resource_type(resource) in CORE_KINDS else unsaid), *lacks])
    whole = _with(body, metadata, {}, names)
    return content if whole is None else whole, bool(unsaid) or _lacks_uid(metadata, resource)


def completed(content: bytes, resource: str, published: Published | None) -> bytes:
    """The content of a delete with all that edges need. apiVersion and kind are those of the object as it
    was last `published`, else those of `CORE_KINDS`, since a path says neither group nor version; a pod has
    its uid. Whatever else is in the content stays as it came. Raises Incomplete: what is missing."""
    body, metadata = _parts(content)
    names, missing = _names(metadata, resource)
    unsaid = _missing_type(body)
    found: dict[str, str] = {}
    if unsaid:
        api_version, _, kind = (published.type_meta if published else "").partition(" ")
        if not kind and (core := CORE_KINDS.get(resource_type(resource))):
            api_version, kind = CORE_VERSION, core
        known = {"apiVersion": api_version, "kind": kind}
        if kind and all(_said(body.get(part)) in ("", value) for part, value in known.items()):
            found = {part: known[part] for part in unsaid}
    lacks = [*(part for part in unsaid if part not in found), *missing]
    if _lacks_uid(metadata, resource):
        if published is None:
            lacks.append("metadata.uid")
        elif published.uid:
            names["uid"] = published.uid
    if lacks:
        raise _incomplete(lacks)
    whole = _with(body, metadata, found, names)
    return content if whole is None else whole


def _parts(content: bytes) -> tuple[dict[str, msgspec.Raw], dict[str, msgspec.Raw]]:
    body = _object(content, "the content")
    return body, _object(body.get("metadata", b"null"), "metadata")


def _missing_type(body: dict[str, msgspec.Raw]) -> list[str]:
    return [part for part in ("apiVersion", "kind") if not _is_text(body.get(part))]


def _lacks_uid(metadata: dict[str, msgspec.Raw], resource: str) -> bool:
    return resource_type(resource) == POD and not _is_text(metadata.get("uid"))


def _names(metadata: dict[str, msgspec.Raw], resource: str) -> tuple[dict[str, str], list[str]]:
    """What of name and namespace the content lacks: as the path says it, and what that does not say."""
    namespace, _, rest = resource.partition("/")
    _, _, name = rest.partition("/")
    in_path = {"name": name, "namespace": namespace} if name and "/" not in name else {}
    wanted = ("name",) if namespace == CLUSTER_SCOPE else ("name", "namespace")
    missing = [part for part in wanted if not _is_text(metadata.get(part))]
    names = {part: in_path[part] for part in missing if in_path.get(part)}
    return names, [f"metadata.{part}" for part in missing if part not in names]


def _incomplete(lacks: list[str]) -> Incomplete:
    return Incomplete(
        f"a delete needs {', '.join(lacks)} in its content, else the object stays readable at the "
        "edge: send the object as it was last published"
    )


def _with(
    body: dict[str, msgspec.Raw],
    metadata: dict[str, msgspec.Raw],
    added: dict[str, str],
    names: dict[str, str],
) -> bytes | None:
    """Encoded anew; None if nothing is added."""
    if not added and not names:
        return None
    whole: dict[str, Any] = {**body, **added, "metadata": {**metadata, **names}}
    return _encode(whole)


def _said(raw: msgspec.Raw | None) -> str:
    return msgspec.json.decode(raw, type=str) if raw is not None and _is_text(raw) else ""
