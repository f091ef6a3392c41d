"""Where an upstream message goes, by the rules of docs/protocol.md. No I/O."""

import json
from dataclasses import dataclass

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.ack_mode import resource_type

EVENTS_MODULE = "edgecontroller"
ROUTER = "router"
HUB_MODULES = frozenset({EVENTS_MODULE, ROUTER, "devicecontroller", "dynamiccontroller", "taskmanager"})
"""All that messages of nodes go to."""
CA_RESOURCE = "k8s/ca.crt"
HUB_SOURCE = "cloudhub"
MOST_ID_CHARS = 256
MOST_REFUSAL_CHARS = 1024

# Operations by which an edge reports on the tasks a task program gave it.
_TASK_OPERATIONS = frozenset({"upgrade", "rollback", "backup", "prepull", "UpdateNodeActionStatus"})
_RECEIPTS = frozenset({b'"OK"', b"null", b""})
_ANSWERS = frozenset({"response", "error"})
# What an edge waits to have been created.
_INSERTED_TYPES = frozenset({"node", "lease"})
_CERTIFICATE_TYPE = "certificatesigningrequest"
_LIFECYCLE_OPERATIONS = frozenset({"connected", "disconnected"})


@dataclass(frozen=True, slots=True)
class Keepalive:
    """The edge is alive."""


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """The edge stored the message `parent_id`."""

    parent_id: str


@dataclass(frozen=True, slots=True)
class NegativeAcknowledgement:
    """The edge refuses the message `parent_id`; `text` is what it says about it."""

    parent_id: str
    text: str


@dataclass(frozen=True, slots=True)
class CaRequest:
    """The edge asks for the cluster CA, which the hub answers by itself."""


@dataclass(frozen=True, slots=True)
class ToModule:
    """For the subscribers of a module."""

    module: str


@dataclass(frozen=True, slots=True)
class DurableUpload:
    """User data: stored before it is handed to the subscribers of `module`."""

    module: str = ROUTER


@dataclass(frozen=True, slots=True)
class Noise:
    """Nothing that anybody could handle; `reason` is a metric label."""

    reason: str


Route = Keepalive | Acknowledgement | NegativeAcknowledgement | CaRequest | ToModule | DurableUpload | Noise

_KEEPALIVE = Keepalive()
_CA_REQUEST = CaRequest()
_UPLOAD = DurableUpload()
_TASKS = ToModule("taskmanager")
_BY_SOURCE = {"metaserver": ToModule("dynamiccontroller"), "twin": ToModule("devicecontroller")}
_ALL_ELSE = ToModule("edgecontroller")
_NO_PARENT = Noise("missing_parent")


def classify(message: Message) -> Route:
    """The route of a message. Acknowledgements, by far the most frequent, are looked at first."""
    operation = message.operation
    if operation == "response":
        return Acknowledgement(message.parent_id) if message.parent_id else _NO_PARENT
    if operation == "keepalive":
        return _KEEPALIVE
    if operation == "error":
        if not message.parent_id:
            return _NO_PARENT
        return NegativeAcknowledgement(message.parent_id, refusal_text(message.content))
    return _noise(message) or _request(message, operation)


def _request(message: Message, operation: str) -> Route:
    if operation == "upload" and message.group == "user":
        return _UPLOAD
    if operation in _TASK_OPERATIONS:
        return _TASKS
    if message.resource == CA_RESOURCE:
        return _CA_REQUEST
    return _BY_SOURCE.get(message.source, _ALL_ELSE)


def _noise(message: Message) -> Noise | None:
    if not (message.source or message.group or message.operation or message.resource):
        return Noise("empty_route")
    if not message.id:
        return Noise("missing_id")
    if len(message.id) > MOST_ID_CHARS or "\x00" in message.id:
        return Noise("malformed_id")
    if message.source == HUB_SOURCE and message.operation in _LIFECYCLE_OPERATIONS:
        return Noise("forged_event")
    return None


def is_receipt(content: bytes) -> bool:
    """Whether a `response` with this content says no more than that its parent was stored."""
    return content == b'"OK"' or content.strip() in _RECEIPTS


def answer_route(message: Message) -> Route:
    """Where a `response` or an `error` goes whose parent is no message that waits for an acknowledgement: it
    answers a request of a cloud program."""
    return _noise(message) or _BY_SOURCE.get(message.source, _ALL_ELSE)


def wants_answer(message: Message) -> bool:
    """Whether the edge waits for an answer to this message, its resource as the edge wrote it, and takes an
    `error` for one.

    Stock edges never set `sync`: their requests are known by what they are. An `error` to a request for
    `k8s/ca.crt` or for a certificate would be stored in its place and end the edge: there is none.
    """
    operation, source = message.operation, message.source
    is_insert = operation == "insert" and source == "edged"
    is_request = message.sync or operation == "query" or source == "metaserver"
    if operation in _ANSWERS or not (is_request or is_insert):
        return False
    kind = resource_type(message.resource)
    if kind == _CERTIFICATE_TYPE or message.resource == CA_RESOURCE:
        return False
    return is_request or kind in _INSERTED_TYPES


def refusal_text(content: bytes) -> str:
    """What the content of a negative acknowledgement says: its text if it is a JSON string, else its JSON."""
    text = content.decode(errors="replace").strip()
    if text.startswith('"'):
        try:
            text = str(json.loads(text))
        except ValueError:
            pass
    # A JSON string may hold halves of surrogate pairs, which are no text anywhere else, and NUL, which
    # PostgreSQL takes in no text: the refusal could not be recorded.
    return text[:MOST_REFUSAL_CHARS].encode(errors="replace").decode().replace("\0", "\ufffd")
