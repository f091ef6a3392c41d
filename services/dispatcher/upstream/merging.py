"""Which status reports may take the place of an earlier one that still waits. No I/O."""

from cloudhub.v1.message_pb2 import Message


def merge_key(message: Message) -> str:
    """The resource a report may be merged under; empty if it may not be merged.

    Only an `update` of a named resource carries that resource's whole state: its path has the form
    `<namespace>/<type>/<name>`. Without a name it is a list; `...patch` and `...list` types are parts.
    """
    if message.operation != "update" or message.sync:
        return ""
    resource = message.resource
    parts = resource.split("/")
    if len(parts) != 3 or not all(parts) or parts[1].endswith(("patch", "list")):
        return ""
    return resource
