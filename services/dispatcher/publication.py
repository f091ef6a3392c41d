"""What a publish request asks for, checked once; content stays opaque from here on. Pure."""

from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from cloudhub.v1.dispatcher_pb2 import ACK_MODE_ACK, ACK_MODE_NO_ACK, ACK_MODE_UNSPECIFIED, PublishRequest
from cloudhub.v1.message_pb2 import Message
from services.dispatcher.ack_mode import (
    ACKNOWLEDGED_GROUP,
    ACKNOWLEDGED_OPERATIONS,
    UPDATE_SOURCE,
    UPDATE_SOURCES,
    wants_acknowledgement,
)
from services.dispatcher.deletions import Incomplete, Published, completed, kept_type, named
from services.dispatcher.sizes import MAX_BESIDE_CONTENT_BYTES
from services.runtime.json_text import JsonFault, NotJson, check_json
from services.runtime.names import shown

MOST_VERSION_DIGITS = 20
# Of a text as UTF-8. Keys, paths and ids stand in indexes beside a node id: PostgreSQL takes 2704 bytes.
MOST_TEXT_BYTES = 1024
MAX_EXTRA_FIELDS = 64
MAX_EXTRA_NAME_BYTES = 256
MOST_PRIORITY = 9
# A duration may hold what no clock and no column does.
MOST_LIFETIME_MS = 100 * 366 * 86_400_000


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a request is refused: a stable reason, the field, and a sentence for people."""

    reason: str
    field: str
    detail: str


class Publication(NamedTuple):
    """A checked message, the same for all its nodes.

    `version` is None for deletes and answers that carry none. `expires_at_ms` is wall clock, 0 for
    never. `message` has its resource without the node prefix and is never changed again; `body` is
    its encoded form, which is what is stored and sent. `size_bytes` is the size of that. `type_meta` is what
    is kept of its content's apiVersion and kind (`deletions.kept_type`). A delete that is `incomplete` gets
    what it lacks from what is stored of its object.
    """

    message: Message
    body: bytes
    acknowledged: bool
    key: str
    uid: str
    version: int | None
    is_delete: bool
    is_answer: bool
    own_id: bool
    priority: int
    expires_at_ms: int
    force: bool
    size_bytes: int
    traceparent: str
    type_meta: str = ""
    incomplete: bool = False


@dataclass(frozen=True, slots=True)
class PublishLimits:
    """What a message may be; `content_most_bytes` must fit the edges' frame limit. `takes_unacknowledged`: no
    acknowledged message is refused for a group, operation or source that stock edges do not acknowledge."""

    content_most_bytes: int = 900 * 1024
    answer_seconds: float = 60.0
    takes_unacknowledged: bool = False

    @property
    def max_message_bytes(self) -> int:
        """Of the encoded message: content, extra fields and names together."""
        return self.content_most_bytes + MAX_BESIDE_CONTENT_BYTES


class _Metadata(msgspec.Struct):
    uid: str = ""


class _Type(msgspec.Struct):
    api_version: Any = msgspec.field(default="", name="apiVersion")
    kind: Any = ""


class _Object(_Type):
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_decode_object = msgspec.json.Decoder(_Object).decode
_decode_type = msgspec.json.Decoder(_Type).decode
_NAMELESS = ("", "", "")


def object_names(content: bytes) -> tuple[str, object, object]:
    """`metadata.uid`, `apiVersion` and `kind` of a JSON object, empty where there is none; a uid that is no
    text is none.

    Raises NotJson, a ValueError, for what no edge is to be sent (`services.runtime.json_text`).
    """
    value = check_json(content)
    if isinstance(value, dict):
        metadata = value.get("metadata")
        uid = metadata.get("uid") if isinstance(metadata, dict) else ""
        return uid if isinstance(uid, str) else "", value.get("apiVersion"), value.get("kind")
    if not isinstance(value, msgspec.Raw):
        return _NAMELESS
    try:
        told = _decode_object(content)
    except msgspec.ValidationError:
        return _type_of(content)  # not an object with string metadata.uid
    return told.metadata.uid, told.api_version, told.kind


def _type_of(content: bytes) -> tuple[str, object, object]:
    try:
        told = _decode_type(content)
    except msgspec.ValidationError:
        return _NAMELESS
    return "", told.api_version, told.kind


def _json_fault(part: str, field: str, fault: NotJson) -> Rejection:
    if fault.fault is JsonFault.NUMBER:
        return Rejection(f"{part}_NUMBER_TOO_LARGE", field, str(fault))
    return Rejection(f"{part}_NOT_JSON", field, f"must be one JSON value: {fault}")


def parse_version(text: str) -> int | None:
    """An unsigned decimal integer of up to 20 digits, else None."""
    if 0 < len(text) <= MOST_VERSION_DIGITS and text.isascii() and text.isdigit():
        return int(text)
    return None


def strip_node_prefix(resource: str) -> str:
    """`<namespace>/<type>/<name>` of a path that may start with `node/<node id>/`."""
    if resource.startswith("node/"):
        parts = resource.split("/", 2)
        if len(parts) == 3 and parts[2]:
            return parts[2]
    return resource


# Of a character, at most.
_UTF8_BYTES = 4
# Names that `Message.extra` must not have: on the link they stand for fields of the message.
_KNOWN_FIELDS = frozenset(
    {
        "content",
        "header",
        "route",
        *(
            f"header.{name}"
            for name in (
                "msg_id",
                "parent_msg_id",
                "resourceversion",
                "sync",
                "timestamp",
                "traceparent",
                "type",
            )
        ),
        *(f"route.{name}" for name in ("destination", "group", "operation", "resource", "source")),
    }
)
# Read in one go: each field of a protobuf message that is read alone costs a call.
_TEXT_FIELDS = ("id", "parent_id", "type", "source", "destination", "group", "operation", "resource")
_texts_of = attrgetter(*_TEXT_FIELDS)


def _text_fault(texts: tuple[str, ...]) -> Rejection | None:
    """What is wrong with the values of `_TEXT_FIELDS`."""
    joined = "".join(texts)
    if len(joined) * _UTF8_BYTES <= MOST_TEXT_BYTES and joined.isprintable():
        return None
    for field, text in zip(_TEXT_FIELDS, texts, strict=True):
        if utf8_bytes(text) > MOST_TEXT_BYTES:
            return Rejection("FIELD_TOO_LONG", f"message.{field}", f"over {MOST_TEXT_BYTES} bytes as UTF-8")
        if not text.isprintable():
            return Rejection("FIELD_NOT_PRINTABLE", f"message.{field}", "has control characters")
    return None


def utf8_bytes(text: str) -> int:
    """The size of a text as databases and links have it."""
    return len(text) if text.isascii() else len(text.encode())


def _extra_fault(message: Message, limits: PublishLimits) -> Rejection | None:
    extra = message.extra
    if len(extra) > MAX_EXTRA_FIELDS:
        return Rejection(
            "EXTRA_TOO_MANY", "message.extra", f"{len(extra)} fields; at most {MAX_EXTRA_FIELDS}"
        )
    size_bytes = len(message.content) + sum(len(name) + len(value) for name, value in extra.items())
    if size_bytes > limits.max_message_bytes:  # before all of it is looked at
        return _too_large("message.extra", size_bytes, limits)
    for name, value in extra.items():
        field = f"message.extra[{shown(name)}]"
        if not name or utf8_bytes(name) > MAX_EXTRA_NAME_BYTES or not name.isprintable():
            return Rejection(
                "EXTRA_NAME_MALFORMED", field, f"must be printable and 1 to {MAX_EXTRA_NAME_BYTES} bytes"
            )
        if name in _KNOWN_FIELDS:
            return Rejection("EXTRA_NAME_KNOWN", field, "is a field of the message itself: set that")
        try:
            check_json(value)
        except NotJson as fault:
            return _json_fault("EXTRA", field, fault)
    return None


def _too_large(field: str, size_bytes: int, limits: PublishLimits) -> Rejection:
    return Rejection(
        "MESSAGE_TOO_LARGE",
        field,
        f"content, extra fields and names have {size_bytes} bytes together; "
        f"at most {limits.max_message_bytes}",
    )


def _unacknowledged(group: str, operation: str, source: str) -> Rejection:
    """What keeps stock edges from acknowledging such a message (docs/protocol.md)."""
    else_no_ack = "or publish it with ack_mode ACK_MODE_NO_ACK"
    if group != ACKNOWLEDGED_GROUP:
        return Rejection(
            "GROUP_NOT_ACKNOWLEDGED",
            "message.group",
            f"edges acknowledge messages of group {ACKNOWLEDGED_GROUP!r} alone, not {shown(group)!r}: "
            f"leave it away, {else_no_ack}",
        )
    if operation not in ACKNOWLEDGED_OPERATIONS:
        return Rejection(
            "OPERATION_NOT_ACKNOWLEDGED",
            "message.operation",
            f"edges acknowledge insert, update and delete, and a response that has a parent_id, "
            f"not {shown(operation)!r}: use one of these, {else_no_ack}",
        )
    return Rejection(
        "SOURCE_NOT_ACKNOWLEDGED",
        "message.source",
        f"edges acknowledge an update from {', '.join(sorted(UPDATE_SOURCES))}, not from {shown(source)!r}: "
        f"leave it away, {else_no_ack}",
    )


def check_request(
    request: PublishRequest, limits: PublishLimits, message_id: str, now_ms: int, traceparent: str
) -> Publication | Rejection:
    """Checks a request and says what it asks for; its message is taken over, not copied. `message_id` is
    used where the request has none."""
    message = request.message
    if request.content_json:
        if message.content:
            return Rejection("CONTENT_TWICE", "content_json", "set content_json or message.content, not both")
        message.content = request.content_json.encode()
    content = message.content
    if not content:
        return Rejection("CONTENT_MISSING", "message.content", "must be one JSON value; `null` for none")
    if len(content) > limits.content_most_bytes:
        return Rejection(
            "CONTENT_TOO_LARGE",
            "message.content",
            f"{len(content)} bytes; at most {limits.content_most_bytes}",
        )
    try:
        uid, api_version, kind = object_names(content)
    except NotJson as not_json:
        return _json_fault("CONTENT", "message.content", not_json)
    texts = _texts_of(message)
    fault = _text_fault(texts) or (_extra_fault(message, limits) if message.extra else None)
    if fault:
        return fault
    if utf8_bytes(uid) > MOST_TEXT_BYTES or not uid.isprintable():
        return Rejection(
            "UID_MALFORMED",
            "message.content",
            f"metadata.uid must be printable and at most {MOST_TEXT_BYTES} bytes as UTF-8",
        )
    own_id, parent_id, _, source, _, group, operation, written_resource = texts
    resource = strip_node_prefix(written_resource)
    if not operation:
        return Rejection("OPERATION_MISSING", "message.operation", "for example insert, update or delete")
    priority, ack_mode, version_text = request.priority, request.ack_mode, message.resource_version
    if priority > MOST_PRIORITY:
        return Rejection("PRIORITY_OUT_OF_RANGE", "priority", f"must be 0 to {MOST_PRIORITY}")
    if ack_mode not in (ACK_MODE_UNSPECIFIED, ACK_MODE_ACK, ACK_MODE_NO_ACK):
        return Rejection("ACK_MODE_UNKNOWN", "ack_mode", f"{ack_mode} is not a known mode")

    # What is left out is filled in before the mode is decided, so that a message that says it all and one
    # that leaves it out are treated alike.
    if not group:
        group = message.group = ACKNOWLEDGED_GROUP
    if not source and group == ACKNOWLEDGED_GROUP:
        source = message.source = UPDATE_SOURCE
    acknowledged = ack_mode == ACK_MODE_ACK or (
        ack_mode == ACK_MODE_UNSPECIFIED
        and wants_acknowledgement(source, group, operation, resource, content, has_parent=bool(parent_id))
    )
    is_answer = bool(parent_id) and operation == "response"
    is_delete = operation == "delete"
    if (
        acknowledged
        and (
            group != ACKNOWLEDGED_GROUP
            or operation not in ACKNOWLEDGED_OPERATIONS
            or (operation == "update" and source not in UPDATE_SOURCES)
        )
        and not is_answer
        and not limits.takes_unacknowledged
    ):
        return _unacknowledged(group, operation, source)
    version: int | None = None
    if version_text:
        version = parse_version(version_text)
        if version is None:
            return Rejection(
                "VERSION_MALFORMED",
                "message.resource_version",
                f"must be an unsigned integer of up to {MOST_VERSION_DIGITS} digits; "
                f"got {version_text[:64]!r}",
            )
    elif acknowledged and not is_delete and not is_answer:
        return Rejection(
            "VERSION_MISSING",
            "message.resource_version",
            "an acknowledged message that is neither a delete nor an answer needs a version",
        )
    incomplete = False
    if is_delete and acknowledged and group == ACKNOWLEDGED_GROUP:
        try:
            if limits.takes_unacknowledged:
                message.content = completed(content, resource, Published("", ""))
            else:
                message.content, incomplete = named(content, resource)
        except Incomplete as lacking:
            if not limits.takes_unacknowledged:
                return object_incomplete(lacking)
    if acknowledged and not uid and not resource:
        return Rejection(
            "OBJECT_UNNAMED", "message.resource", "needs metadata.uid in its content or a resource path"
        )

    expires_at_ms = 0
    if request.HasField("time_to_live"):
        lifetime_ms = request.time_to_live.ToMilliseconds()
        if not 0 < lifetime_ms <= MOST_LIFETIME_MS:
            return Rejection(
                "TIME_TO_LIVE_MALFORMED",
                "time_to_live",
                "must be at least a millisecond and at most 100 years; leave it away for no limit",
            )
        expires_at_ms = now_ms + lifetime_ms
    if is_answer and acknowledged:
        most = now_ms + int(limits.answer_seconds * 1000)
        expires_at_ms = min(expires_at_ms or most, most)

    if not own_id:
        message.id = message_id
    if not message.timestamp_ms:
        message.timestamp_ms = now_ms
    if resource != written_resource:
        message.resource = resource
    if traceparent or message.traceparent:
        message.traceparent = traceparent
    body = message.SerializeToString()
    if len(body) > limits.max_message_bytes:
        return _too_large("message.extra" if message.extra else "message", len(body), limits)
    return Publication(
        message=message,
        body=body,
        acknowledged=acknowledged,
        key=f"answer:{own_id or message_id}" if is_answer else uid or resource,
        uid="" if is_answer else uid,
        version=version,
        is_delete=is_delete,
        is_answer=is_answer,
        own_id=bool(own_id),
        priority=priority,
        expires_at_ms=expires_at_ms,
        force=request.force,
        size_bytes=len(body),
        traceparent=traceparent,
        type_meta="" if is_delete else kept_type(api_version, kind, resource),
        incomplete=incomplete,
    )


def object_incomplete(fault: Incomplete) -> Rejection:
    """Of a delete that would leave its object readable at the edge."""
    return Rejection("OBJECT_INCOMPLETE", "message.content", str(fault))


def complete(publication: Publication, published: Published | None) -> Publication | Rejection:
    """An `incomplete` delete, for one node, with what it lacks from what is stored of its object there."""
    message = Message()
    message.CopyFrom(publication.message)
    try:
        message.content = completed(message.content, message.resource, published)
    except Incomplete as fault:
        return object_incomplete(fault)
    body = message.SerializeToString()
    return publication._replace(message=message, body=body, size_bytes=len(body), incomplete=False)
