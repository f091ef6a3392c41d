"""What a stock edge does with a message, and what it makes of its JSON. Pure."""

import json
from collections.abc import Container
from decimal import Decimal
from typing import Any, NoReturn

import msgspec

from edge.protocol import Kind, MalformedFrame, Message, Step, is_pod, uid_of

GROUP = "resource"
UPDATERS = frozenset({"edgecontroller", "dynamiccontroller", "devicecontroller", "policycontroller"})
"""Sources whose updates are acknowledged; those of others are stored all the same."""
MAX_META_VERSION = 2**63 - 1
"""Larger versions are acknowledged, and never reach the second store."""

_UNASKED = Step(Kind.SWALLOW, reason="unasked_answer")
_ANSWER = Step(Kind.ANSWER)
_ANSWER_ACKNOWLEDGED = Step(Kind.ANSWER, acknowledge=True)
_FOREIGN_GROUP = Step(Kind.SWALLOW, reason="foreign_group")
_UNKNOWN = Step(Kind.SWALLOW, reason="unknown_operation")


def decide(message: Message, waiting: Container[str]) -> Step:
    """What to do with a message; `waiting` holds the ids of its own unanswered requests."""
    route = message.route
    if route.group != GROUP:
        return _FOREIGN_GROUP
    match route.operation:
        case "response" | "error":
            if message.header.parent_msg_id not in waiting:
                return _UNASKED
            wanted = route.operation == "response" and bytes(message.content) != b'"OK"'
            return _ANSWER_ACKNOWLEDGED if wanted else _ANSWER
        case "insert":
            return Step(Kind.STORE, uid_of(message.content), acknowledge=True)
        case "update":
            return Step(Kind.STORE, uid_of(message.content), acknowledge=route.source in UPDATERS)
        case "patch":
            return Step(Kind.STORE, uid_of(message.content))
        case "delete":
            uid = uid_of(message.content)
            return Step(Kind.DELETE, uid, only_uid=bool(uid) and is_pod(route.resource), acknowledge=True)
        case _:
            return _UNKNOWN


def _number(text: str) -> int | float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise MalformedFrame(f"{text[:32]} is beyond a float64")
    if value.is_integer() and abs(value) < 1e21:
        return int(Decimal(repr(value)))  # the shortest digits that name it, then zeros
    return value


def _constant(text: str) -> NoReturn:
    raise MalformedFrame(f"{text} is no JSON")


def reparsed(content: bytes) -> bytes:
    """A JSON value as it is written again after it went through float64: beyond 2^53 integers lose digits.
    Raises MalformedFrame for what breaks the decoder of frames."""
    try:
        value: Any = json.loads(content, parse_int=_number, parse_float=_number, parse_constant=_constant)
    except ValueError as error:
        raise MalformedFrame(str(error)) from None
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


class MetaKey(msgspec.Struct, frozen=True):
    """By what the second store, which serves the programs of the node, knows an object. Deletes find it by
    these fields of their content alone."""

    api_version: str
    kind: str
    namespace: str
    name: str


class _Metadata(msgspec.Struct):
    name: str = ""
    namespace: str = ""


class _Object(msgspec.Struct, rename="camel"):
    api_version: str = ""
    kind: str = ""
    metadata: _Metadata = msgspec.field(default_factory=_Metadata)


_objects = msgspec.json.Decoder(_Object)


def meta_key(content: bytes) -> MetaKey | None:
    """The key of an object; None of what does not say its apiVersion, kind and name."""
    try:
        found = _objects.decode(content)
    except msgspec.DecodeError:
        return None
    if not (found.api_version and found.kind and found.metadata.name):
        return None
    return MetaKey(found.api_version, found.kind, found.metadata.namespace, found.metadata.name)


def reaches_meta_store(version: str) -> bool:
    """Whether an object of this version does."""
    return not version.isdecimal() or int(version) <= MAX_META_VERSION
