"""Who asks for a link: certificate, path and headers must agree on node and project (docs/protocol.md).

A disagreement is a refusal, never a guess. Everything here is decided before the dispatcher is asked.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from services.runtime.names import check_node_id, check_project_id

ORGANIZATION = "system:nodes"
NAME_PREFIX = "system:node:"
MOST_SHOWN_CHARS = 256
MAX_WINDOW_MESSAGES = 65_536


@dataclass(frozen=True, slots=True)
class CertificateNames:
    """The subject of a verified client certificate, as far as it says who the peer is."""

    organizations: tuple[str, ...] = ()
    common_names: tuple[str, ...] = ()
    serial: str = ""
    """The certificate's number: lowercase hexadecimal without leading zeros."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A peer that proved who it is."""

    node_id: str
    project_id: str
    certificate_serial: str = ""
    max_window_messages: int = 0
    """How many messages the peer takes at a time, as it says; 0: it does not say."""


@dataclass(frozen=True, slots=True)
class HttpRefusal:
    """An answer to the upgrade request. `reason` is the metric label, `text` the response's body."""

    status: int
    reason: str
    text: str
    retry_after_seconds: float = 0.0


def check_identity(
    certificate: CertificateNames, path: str | None, headers: Iterable[tuple[str, str]]
) -> Identity | HttpRefusal:
    """The peer's identity, or why it may not open a link. Where there is no path, the headers claim it."""
    found: dict[str, list[str]] = {}
    for name, value in headers:
        found.setdefault(name.lower(), []).append(value)
    if path is None:
        missing = _missing_header(found)
        if missing:
            return missing
        where, project_id, node_id = "header", found["project_id"][0], found["node_id"][0]
    else:
        parts = path.split("/")
        if len(parts) != 4 or parts[0] or parts[3] != "events":
            return HttpRefusal(404, "path", "the path should be /<project_id>/<node_id>/events")
        where, project_id, node_id = "path", parts[1], parts[2]
    for what, complaint in (("node", check_node_id(node_id)), ("project", check_project_id(project_id))):
        if complaint:
            return HttpRefusal(403, f"{what}_id_malformed", f"{what} id in the {where}: {complaint}")
    refusal = _check_certificate(certificate, node_id, where) or _check_headers(
        found, node_id, project_id, where
    )
    return refusal or Identity(node_id, project_id, certificate.serial, _window(found))


def _window(found: dict[str, list[str]]) -> int:
    """What the header Cloudhub-Window says; one that says no number says nothing."""
    text = found.get("cloudhub-window", [""])[0].strip()
    return min(int(text), MAX_WINDOW_MESSAGES) if text.isascii() and text.isdigit() and len(text) < 10 else 0


def _shown(values: Iterable[str]) -> str:
    """What a peer said of itself, fit for a line of a log: it may be long, and may be no text."""
    text = ", ".join(values) or "missing"
    text = text if len(text) <= MOST_SHOWN_CHARS else text[:MOST_SHOWN_CHARS] + "..."
    return text if text.isprintable() else repr(text)


def _check_certificate(certificate: CertificateNames, node_id: str, where: str) -> HttpRefusal | None:
    if ORGANIZATION not in certificate.organizations:
        return HttpRefusal(
            403,
            "certificate_organization",
            f"the certificate's organization should be {ORGANIZATION}, "
            f"it is {_shown(certificate.organizations)}",
        )
    names = certificate.common_names
    if len(names) != 1 or not names[0].startswith(NAME_PREFIX):
        return HttpRefusal(
            403,
            "certificate_name",
            f"the certificate's common name should be {NAME_PREFIX}<node_id>, it is {_shown(names)}",
        )
    certified = names[0].removeprefix(NAME_PREFIX)
    if certified != node_id:
        return HttpRefusal(
            403,
            "certificate_node",
            f"the certificate is of node {_shown([certified])}, the {where} says {node_id}",
        )
    return None


_REQUIRED = (("Node_id", "node"), ("Project_id", "project"))


def _missing_header(found: dict[str, list[str]]) -> HttpRefusal | None:
    for name, label in _REQUIRED:
        if not found.get(name.lower()):
            return HttpRefusal(403, f"header_{label}_missing", f"the header {name} is missing")
    return None


def _check_headers(
    found: dict[str, list[str]], node_id: str, project_id: str, where: str
) -> HttpRefusal | None:
    missing = _missing_header(found)
    if missing:
        return missing
    for (name, label), expected in zip(_REQUIRED, (node_id, project_id), strict=True):
        values = found[name.lower()]
        if values != [expected]:
            return HttpRefusal(
                403,
                f"header_{label}",
                f"the header {name} says {_shown(values)}, the {where} says {expected}",
            )
    # Each further dial of a stock edge has it once more (docs/protocol.md), and a proxy may write those
    # as one (RFC 9110, 5.3): how often it is there says nothing.
    uses = {use.strip(" \t") for value in found.get("connectionuse", ()) for use in value.split(",")}
    if uses - {"msg"}:
        return HttpRefusal(
            403, "header_use", f"the header Connectionuse should be msg, it is {_shown(sorted(uses))}"
        )
    return None
