"""The JSON text frame of the edge link, to and from `cloudhub.v1.Message` (docs/protocol.md).

Content is opaque: what comes from an edge is checked to be JSON that every decoder reads (`json_text`), what
goes to one to be JSON, and both are carried as the bytes they came in. Fields the
hub does not know travel in `Message.extra` as JSON text, so that they survive in both directions.
"""

import enum
from typing import Annotated

import msgspec

from cloudhub.v1 import message_pb2
from services.runtime.json_text import JsonFault, NotJson, find_fault
from services.runtime.json_text import check_json as check_text


class FrameFault(enum.Enum):
    """What is wrong with a frame; the value is the metric label."""

    ENCODING = JsonFault.ENCODING.value
    SYNTAX = JsonFault.SYNTAX.value
    DEPTH = JsonFault.DEPTH.value
    NUMBER = JsonFault.NUMBER.value
    SURROGATE = JsonFault.SURROGATE.value
    SHAPE = "wrong_shape"
    PROTOBUF = "invalid_protobuf"


class FrameError(Exception):
    """A frame that cannot be read, or a message that cannot be written as a frame."""

    def __init__(self, fault: FrameFault, detail: str) -> None:
        super().__init__(f"{fault.value}: {detail}")
        self.fault = fault
        self.detail = detail


_NULL = msgspec.Raw(b"null")
# Shorter than any number that is too large, and so is what most frames of an edge hold.
_HARMLESS_BYTES = 4
_Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class _Header(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    msg_id: str | None = None
    parent_msg_id: str | None = None
    timestamp: _Int64 | None = None
    resourceversion: str | None = None
    sync: bool | None = None
    type: str | None = None
    traceparent: str | None = None


class _Route(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    source: str | None = None
    destination: str | None = None
    group: str | None = None
    operation: str | None = None
    resource: str | None = None


class _Frame(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    header: _Header | None = None
    route: _Route | None = None
    content: msgspec.Raw = _NULL


_decode_known = msgspec.json.Decoder(_Frame).decode
_decode_header = msgspec.json.Decoder(_Header).decode
_decode_route = msgspec.json.Decoder(_Route).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw] | None).decode
_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_quote = msgspec.json.Encoder().encode

_HEADER_FIELDS = frozenset(_Header.__struct_fields__)
_ROUTE_FIELDS = frozenset(_Route.__struct_fields__)
_FRAME_FIELDS = frozenset(_Frame.__struct_fields__)
# Each takes more room in a batch than in its frame; without a bound a frame of short names would outgrow it.
MAX_EXTRA_FIELDS = 64
_EMPTY_HEADER = _Header()
_EMPTY_ROUTE = _Route()


def check_extra_count(number: int) -> None:
    """Raises FrameError for more fields than `Message.extra` may have."""
    if number > MAX_EXTRA_FIELDS:
        raise FrameError(FrameFault.SHAPE, f"{number} unknown fields; at most {MAX_EXTRA_FIELDS}")


def check_extra(name: str, value: bytes) -> None:
    """Raises FrameError if a field of `Message.extra` has the name of a known field, or is no JSON."""
    part, _, inner = name.partition(".")
    known = {"header": _HEADER_FIELDS, "route": _ROUTE_FIELDS}.get(part) if inner else None
    if name in _FRAME_FIELDS or (known is not None and inner in known):
        raise FrameError(FrameFault.SHAPE, f"the extra field `{name[:40]}` has the name of a known one")
    check_content(value, f"extra[{name[:40]!r}]")


class ParsedFrame:
    """A frame that was read; `fill` lays it into a message that the caller owns."""

    __slots__ = ("_content", "_extra", "_header", "_route")

    def __init__(
        self, header: _Header, route: _Route, content: bytes, extra: dict[str, bytes] | None
    ) -> None:
        self._header = header
        self._route = route
        self._content = content
        self._extra = extra

    def fill(self, message: message_pb2.Message) -> None:
        """Sets the fields of `message`, which must be empty."""
        header, route = self._header, self._route
        if header.msg_id:
            message.id = header.msg_id
        if header.parent_msg_id:
            message.parent_id = header.parent_msg_id
        if header.timestamp:
            message.timestamp_ms = header.timestamp
        if header.resourceversion:
            message.resource_version = header.resourceversion
        if header.sync:
            message.sync = True
        if header.type:
            message.type = header.type
        if header.traceparent:
            message.traceparent = header.traceparent
        if route.source:
            message.source = route.source
        if route.destination:
            message.destination = route.destination
        if route.group:
            message.group = route.group
        if route.operation:
            message.operation = route.operation
        if route.resource:
            message.resource = route.resource
        message.content = self._content
        if self._extra:
            for name, value in self._extra.items():
                message.extra[name] = value


def parse_frame(data: bytes) -> ParsedFrame:
    """Reads one text frame. Raises FrameError; absent and null fields read as empty ones."""
    # The opaque content is not decoded below, and the WebSocket library does not look at it either.
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError as error:
            raise FrameError(
                FrameFault.ENCODING, f"byte {error.start} is not valid UTF-8: {error.reason}"
            ) from None
    try:
        try:
            frame = _decode_known(data)
        except msgspec.ValidationError:
            return _parse_with_extra(data)
    except msgspec.ValidationError as error:
        raise FrameError(FrameFault.SHAPE, str(error)) from None
    except msgspec.DecodeError as error:
        fault = find_fault(data)
        if fault is not None:
            raise FrameError(FrameFault(fault.fault.value), str(fault)) from None
        raise FrameError(FrameFault.SYNTAX, str(error)) from None
    except RecursionError:
        raise FrameError(FrameFault.DEPTH, "the JSON is nested too deeply") from None
    content = bytes(frame.content)
    if len(content) > _HARMLESS_BYTES:
        check_content(content, "content")
    return ParsedFrame(frame.header or _EMPTY_HEADER, frame.route or _EMPTY_ROUTE, content, None)


def _parse_with_extra(data: bytes) -> ParsedFrame:
    """The slow path: a frame with fields that the hub does not know, or of a wrong type."""
    fields = _decode_fields(data)
    if fields is None:
        raise FrameError(FrameFault.SHAPE, "Expected `object`, got `null`")
    extra: dict[str, bytes] = {}
    header = _decode_header(_known_part(fields, "header", _HEADER_FIELDS, extra))
    route = _decode_route(_known_part(fields, "route", _ROUTE_FIELDS, extra))
    for name, value in fields.items():
        if name in _FRAME_FIELDS:
            continue
        if name.startswith(("header.", "route.")):
            # It would come back as a field of the header or the route.
            raise FrameError(FrameFault.SHAPE, f"the top-level field `{name[:40]}` has an ambiguous name")
        extra[name] = bytes(value)
    check_extra_count(len(extra))
    for name, value in extra.items():
        check_content(value, f"extra[{name[:40]!r}]")
    content = bytes(fields.get("content", _NULL))
    check_content(content, "content")
    return ParsedFrame(header, route, content, extra)


def _known_part(
    fields: dict[str, msgspec.Raw], part: str, known: frozenset[str], extra: dict[str, bytes]
) -> bytes:
    """The JSON of `part` with its unknown fields moved to `extra`."""
    try:
        inner = _decode_fields(fields.get(part, _NULL)) or {}
    except msgspec.ValidationError as error:
        raise FrameError(FrameFault.SHAPE, f"{error} - at `$.{part}`") from None
    for name in [name for name in inner if name not in known]:
        extra[f"{part}.{name}"] = bytes(inner.pop(name))
    return _quote(inner)


def decode_frame(data: bytes) -> message_pb2.Message:
    """One text frame as a message of its own. Raises FrameError."""
    message = message_pb2.Message()
    parse_frame(data).fill(message)
    return message


def encode_frame(message: message_pb2.Message) -> bytes:
    """One message as compact JSON.

    Raises FrameError if the content or an extra field is not one JSON value: an edge drops its link
    over a frame that is not JSON.
    """
    header = b'{"header":{"msg_id":' + _quote(message.id)
    if message.parent_id:
        header += b',"parent_msg_id":' + _quote(message.parent_id)
    header += b',"timestamp":%d' % message.timestamp_ms
    if message.resource_version:
        header += b',"resourceversion":' + _quote(message.resource_version)
    if message.sync:
        header += b',"sync":true'
    if message.type:
        header += b',"type":' + _quote(message.type)
    if message.traceparent:
        header += b',"traceparent":' + _quote(message.traceparent)
    route = b'},"route":{"source":' + _quote(message.source)
    if message.destination:
        route += b',"destination":' + _quote(message.destination)
    route += b',"group":' + _quote(message.group)
    route += b',"operation":' + _quote(message.operation)
    route += b',"resource":' + _quote(message.resource)
    top = b""
    extra = message.extra
    if extra:
        for name in sorted(extra):
            value = b":" + _json_value(extra[name], f"extra[{name!r}]")
            if name.startswith("header."):
                if name[7:] not in _HEADER_FIELDS:
                    header += b"," + _quote(name[7:]) + value
            elif name.startswith("route."):
                if name[6:] not in _ROUTE_FIELDS:
                    route += b"," + _quote(name[6:]) + value
            elif name not in _FRAME_FIELDS:
                top += b"," + _quote(name) + value
    content = message.content
    return b"".join(
        (header, route, b'},"content":', _json_value(content, "content") if content else b"null", top, b"}")
    )


def _json_value(value: bytes, field: str) -> bytes:
    """`value`, checked to be exactly one JSON value in UTF-8."""
    check_json(value, field)
    return value


def check_content(value: bytes, field: str) -> None:
    """Raises FrameError, naming the field, if a value from an edge is not one that every decoder reads."""
    try:
        check_text(value)
    except NotJson as fault:
        raise FrameError(FrameFault(fault.fault.value), f"{field}: {fault}") from None


def check_json(value: bytes, field: str) -> None:
    """Raises FrameError, naming the field, if `value` is not exactly one JSON value in UTF-8."""
    try:
        if not value.isascii():
            value.decode()
        _check_json(value)
    except UnicodeDecodeError as error:
        raise FrameError(FrameFault.ENCODING, f"{field}: byte {error.start} is not valid UTF-8") from None
    except msgspec.DecodeError as error:
        raise FrameError(FrameFault.SYNTAX, f"{field}: {error}") from None
    except RecursionError:
        raise FrameError(FrameFault.DEPTH, f"{field}: nested too deeply") from None
