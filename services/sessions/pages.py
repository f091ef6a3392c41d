"""Page tokens of ListSessions (bound to their filter) and GetLimits: where the page begins. Pure."""

import base64
import binascii
import hashlib

from services.sessions.limits import Place, Scope
from services.sessions.records import Filter

_DIGEST_BYTES = 8


def _digest(wanted: Filter) -> bytes:
    parts = (
        wanted.node_id_prefix,
        wanted.project_id,
        wanted.connector_id,
        wanted.dispatcher_id,
        *(str(int(state)) for state in sorted(wanted.states)),
    )
    return hashlib.sha256("\n".join(parts).encode()).digest()[:_DIGEST_BYTES]


def page_token(wanted: Filter, last_node_id: str) -> str:
    """A token for the page after this node."""
    return base64.urlsafe_b64encode(_digest(wanted) + last_node_id.encode()).decode()


def page_start(wanted: Filter, token: str) -> str | None:
    """The node after which the page begins; empty for the first page, None if the token is not of
    this filter or no token at all."""
    if not token:
        return ""
    try:
        raw = base64.b64decode(token, altchars=b"-_", validate=True)
        last_node_id = raw[_DIGEST_BYTES:].decode("ascii")
    except (binascii.Error, ValueError):
        return None
    return last_node_id if last_node_id and raw[:_DIGEST_BYTES] == _digest(wanted) else None


def place_token(last: Place) -> str:
    """A token for the page of connectors and projects after this one."""
    return base64.urlsafe_b64encode(f"{last[0]}/{last[1]}".encode()).decode()


def place_start(token: str) -> Place | None:
    """The connector or project after which the page begins; None if the token is none."""
    try:
        scope, _, key = base64.b64decode(token, altchars=b"-_", validate=True).decode("ascii").partition("/")
        return (Scope(scope), key) if key.isprintable() else None
    except (binascii.Error, ValueError):
        return None
