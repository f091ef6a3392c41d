"""Messages of the hub as plain values for JSON. Pure.

As the JSON form of protobuf with the fields by their names in the API, but: every field is there, with its
default where nothing was said and null where that is known to be absent; and 64-bit integers are numbers as
far as every reader of JSON has them exactly, up to 2^53, and strings above.
"""

from collections.abc import Callable
from typing import Any, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

MAX_EXACT = 2**53
_WIDE = (FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64)


def as_dict(message: Message) -> dict[str, Any]:
    """A message with all its fields."""
    found = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return _completed(found, cast(Descriptor, message.DESCRIPTOR))


def _completed(found: dict[str, Any], descriptor: Descriptor) -> dict[str, Any]:
    """In the order of the API."""
    return {field.name: _value(found.get(field.name), field) for field in descriptor.fields}


def _value(value: Any, field: FieldDescriptor) -> Any:
    inner = field.message_type
    if inner is not None and inner.GetOptions().map_entry:
        return {key: _value(one, inner.fields_by_name["value"]) for key, one in (value or {}).items()}
    convert = _number if field.cpp_type in _WIDE else _nested(inner)
    if isinstance(value, list):
        return [convert(one) for one in value]
    return None if value is None else convert(value)


def _nested(inner: Descriptor | None) -> Callable[[Any], Any]:
    # Timestamps and others that have a form of their own in JSON are no objects there.
    return lambda value: _completed(value, inner) if inner is not None and isinstance(value, dict) else value


def _number(text: str) -> int | str:
    return int(text) if abs(int(text)) < MAX_EXACT else text
