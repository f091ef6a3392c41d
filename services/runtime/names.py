"""The form of names that several services check: node ids, project ids, instance ids."""

import re

MOST_NODE_ID_CHARS = 253
_NODE_ID = re.compile(r"[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_PROJECT_ID = re.compile(r"[A-Za-z0-9_-]{1,63}")
_INSTANCE_ID = re.compile(r"[!-~]{1,128}")


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
