"""The form of names that several services check: node ids, project ids, instance ids, labels, transports,
releases."""

import re

MOST_NODE_ID_CHARS = 253
MOST_LABEL_CHARS = 253
MAX_VERSION_CHARS = 64
MAX_SHOWN_CHARS = 80
_CUT = "..."
_TRANSPORTS = ("websocket", "quic")
_NODE_ID = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_PROJECT_ID = re.compile(r"[A-Za-z0-9_-]{1,63}")
_INSTANCE_ID = re.compile(r"[!-~]{1,128}")
_NOT_OF_INSTANCE_ID = re.compile(r"[^!-~]")
# RFC 5280 allows 20 octets.
_SERIAL = re.compile(r"(?:[1-9a-f][0-9a-f]{0,39})?")
_MOST_NAME_IN_ID_CHARS = 80


def shown(text: str, max_chars: int = MAX_SHOWN_CHARS) -> str:
    """A text of a caller's as errors repeat it: its beginning, and how much more there is of it."""
    if len(text) <= max_chars:
        return text
    return f"{text[:max_chars]}{_CUT} ({len(text)} characters)"


def cut_bytes(text: str, max_bytes: int) -> str:
    """A text of at most that many bytes as UTF-8: its beginning, where it has more."""
    # What is longer in characters is longer in bytes; a very long one is not encoded as a whole.
    encoded = text[: max_bytes + 1].encode(errors="replace")
    if len(encoded) <= max_bytes:
        return encoded.decode()
    return encoded[: max_bytes - len(_CUT)].decode(errors="ignore") + _CUT


def check_node_id(text: str) -> str | None:
    """What is wrong with a node id, None if nothing: Kubernetes node names (RFC 1123 subdomain)."""
    if not text:
        return "should be a node id, it is empty"
    if len(text) > MOST_NODE_ID_CHARS:
        return f"should be a node id of at most {MOST_NODE_ID_CHARS} characters, it has {len(text)}"
    if not _NODE_ID.fullmatch(text):
        return (
            "should be a node id of lowercase letters, digits, '-' and '.', "
            f"each part beginning and ending with a letter or digit; got {text[:80]!r}"
        )
    return None


def check_project_id(text: str) -> str | None:
    """What is wrong with a project id, None if nothing: 1 to 63 letters, digits, '_' and '-'."""
    if _PROJECT_ID.fullmatch(text):
        return None
    return f"should be a project id of 1 to 63 letters, digits, '_' and '-'; got {text[:80]!r}"


def check_instance_id(text: str) -> str | None:
    """What is wrong with the id of a connector or dispatcher process, None if nothing."""
    if _INSTANCE_ID.fullmatch(text):
        return None
    return (
        f"should be an instance id of 1 to 128 printable ASCII characters without spaces; got {text[:80]!r}"
    )


def check_label(text: str) -> str | None:
    """What is wrong with a text that is kept for people to read (a name, an address), None if nothing."""
    if len(text) > MOST_LABEL_CHARS:
        return f"should have at most {MOST_LABEL_CHARS} characters; it has {len(text)}"
    if not text.isprintable():
        return f"should have no control characters; got {text[:80]!r}"
    return None


def check_version(text: str) -> str | None:
    """What is wrong with the version of a release, None if nothing; empty: it is not told."""
    if len(text) > MAX_VERSION_CHARS:
        return f"should have at most {MAX_VERSION_CHARS} characters; it has {len(text)}"
    return check_label(text)


def check_transport(text: str) -> str | None:
    """What is wrong with the name of a transport, None if nothing."""
    return None if text in _TRANSPORTS else f"should be 'websocket' or 'quic'; got {text[:80]!r}"


def check_certificate_serial(text: str) -> str | None:
    """What is wrong with the serial number of a certificate, None if nothing; an unknown one is empty."""
    if _SERIAL.fullmatch(text):
        return None
    return f"should be up to 40 lowercase hexadecimal digits without leading zeros; got {text[:80]!r}"


def instance_id(name: str, unique: str) -> str:
    """The id of a process that is called `name`, which may be any label: as much of it as an id can hold."""
    return f"{_NOT_OF_INSTANCE_ID.sub('-', name)[:_MOST_NAME_IN_ID_CHARS]}-{unique}"
