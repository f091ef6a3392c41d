"""Which status reports may take the place of an earlier one that still waits. No I/O."""

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.routing import wants_answer

# An edge waits for the answer to each of these, though an `error` would be none.
_ANSWERED_TYPES = frozenset({"lease", "certificatesigningrequest"})


def merge_key(message: Message) -> str:
    """The resource a report may be merged under; empty if it may not be merged.

    Only an `update` of a named resource carries that resource's whole state: its path has the form
    `<namespace>/<type>/<name>`. Without a name it is a list; `...patch` and `...list` types are parts. What
    the edge waits for an answer to is no report.
    """
    if message.operation != "update" or wants_answer(message):
        return ""
    resource = message.resource
    parts = resource.split("/")
    if len(parts) != 3 or not all(parts) or parts[1].endswith(("patch", "list")):
        return ""
    if parts[1] in _ANSWERED_TYPES:
        return ""
    return resource
