"""Which messages want an acknowledgement, and which get one (docs/protocol.md)."""

import re

# What stock edges acknowledge: of this group these operations, `update` from these sources.
ACKNOWLEDGED_GROUP = "resource"
ACKNOWLEDGED_OPERATIONS = frozenset({"insert", "update", "delete"})
UPDATE_SOURCE = "edgecontroller"
UPDATE_SOURCES = frozenset({UPDATE_SOURCE, "dynamiccontroller", "devicecontroller", "policycontroller"})

_marked = re.compile(r"podlist|membership|twin/cloud_updated|serviceaccounttoken|k8s/ca\.crt").search
_OPERATIONS = frozenset(
    {
        "createvolume",
        "deletevolume",
        "controllerpublishvolume",
        "controllerunpublishvolume",
        "applicationResponse",
    }
)
_SOURCES = frozenset({"taskmanager", "nodeupgradejobcontroller"})
_EDGE_CONTROLLER_TYPES = frozenset(
    {"lease", "nodepatch", "podpatch", "podstatus", "certificatesigningrequest"}
)


def resource_type(resource: str) -> str:
    """The type of `<namespace>/<type>[/<name>]`, or an empty string."""
    parts = resource.split("/", 2)
    return parts[1] if len(parts) > 1 else ""


def _is_ok_or_error(content: bytes) -> bool:
    text = content.strip()
    return text == b'"OK"' or text[:6].lower() == b'"error'


def wants_acknowledgement(
    source: str, group: str, operation: str, resource: str, content: bytes, *, has_parent: bool
) -> bool:
    """True for ACK mode. `resource` is the message's, without its node prefix."""
    if group == "user" or operation in _OPERATIONS or source in _SOURCES:
        return False
    if _marked(resource):
        return False
    if operation == "response" and _is_ok_or_error(content):
        return False
    if operation == "error" and has_parent:
        return False  # the error answer to a request: the other half of the rule for `response`
    if source == "edgecontroller":
        kind = resource_type(resource)
        if kind in _EDGE_CONTROLLER_TYPES:
            return False
        if kind == "node":
            return operation == "update"
        if kind == "pod":
            return operation != "response"
    return True
