"""Requests of every gRPC method, made from the descriptors: plausible and odd values, and mutated bytes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from cloudhub.v1 import connector_pb2, dispatcher_pb2, enrolment_pb2, link_pb2, peer_pb2, sessions_pb2
from fuzz.mutations import ODD_TEXTS, mutated

Values: TypeAlias = dict[str, Any]

_FILES: tuple[FileDescriptor, ...] = (
    connector_pb2.DESCRIPTOR,
    dispatcher_pb2.DESCRIPTOR,
    enrolment_pb2.DESCRIPTOR,
    link_pb2.DESCRIPTOR,
    peer_pb2.DESCRIPTOR,
    sessions_pb2.DESCRIPTOR,
)
METHODS: tuple[MethodDescriptor, ...] = tuple(
    method for file in _FILES for service in file.services_by_name.values() for method in service.methods
)

# What takes a request past its first check, by the name of the field.
_PLAUSIBLE: Mapping[str, Sequence[str]] = {
    "node_id": ("edge-1", "edge-2", "node-3.example"),
    "node_ids": ("edge-1", "edge-2", "node-3.example"),
    "after_node_id": ("edge-1",),
    "node_id_prefix": ("edge-", "n"),
    "project_id": ("p1", "e632aba927ea4ac2b575ec1603d56f10"),
    "connector_id": ("c1", "c2"),
    "dispatcher_id": ("d1", "d2"),
    "event_ids": ("e1", "0b1c7f8e-8a53-4d1f-9a57-1f2e3d4c5b6a"),
    "transport": ("websocket", "quic"),
    "address": ("127.0.0.1:9", "nowhere.invalid:1"),
    "modules": ("edgecontroller", "router"),
    "operation": ("update", "insert", "delete", "response", "error", "upload", "keepalive", "query"),
    "group": ("resource", "user", "twin"),
    "source": ("edgecontroller", "twin", "websocket"),
    "resource": ("default/configmap/cm1", "default/podstatus", "node", "k8s/ca.crt", "node/edge-1"),
    "resource_version": ("1", "42", "18446744073709551615"),
    "version": ("1", "42"),
    "content_json": ('{"metadata":{"uid":"u1"}}', "null", "1"),
    "traceparent": ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",),
    "id": ("m1", "m2"),
    "message_id": ("m1", "m2"),
    "parent_id": ("m1",),
    "object_key": ("u1", "default/configmap/cm1"),
    "serial": ("a1", "0a", "ffffffffffffffffffffffffffffffffffffffff"),
    "former_serial": ("a1",),
    "certificate_serial": ("a1", ""),
    "token": ("a.b.c",),
    "token_id": ("0b1c7f8e-8a53-4d1f-9a57-1f2e3d4c5b6a",),
    "node_pattern": ("edge-*", "?"),
    "page_token": ("ZWRnZS0x", "MQ==", "edge-1/1"),
}
_CONTENTS = (b'{"metadata":{"uid":"u1"}}', b"null", b'"OK"', b"{}")
_TEXTS = st.sampled_from(ODD_TEXTS) | st.text(st.characters(codec="utf-8"), max_size=12)
_BYTES = st.sampled_from(
    [*_CONTENTS, b"", b"\xff", b"[" * 5000, b'{"a":', b'"\\ud800"', b"1e999", b"{} {}"]
) | st.binary(max_size=12)
_FLOATS = (
    st.sampled_from([0.0, 1.0, -1.0, 5e-324, 1e308, float("inf"), float("-inf"), float("nan")]) | st.floats()
)
_MOST_DEPTH = 5


def _integers(bits: int, signed: bool) -> SearchStrategy[int]:
    least, most = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    edges = [
        n
        for n in (-1, 0, 1, 2, 7, 1000, 1001, 2**31 - 1, 2**31, 2**63 - 1, 2**63, most, least)
        if least <= n <= most
    ]
    return st.sampled_from(edges) | st.integers(least, most)


_SCALARS: Mapping[int, SearchStrategy[Any]] = {
    FieldDescriptor.TYPE_BOOL: st.booleans(),
    FieldDescriptor.TYPE_DOUBLE: _FLOATS,
    FieldDescriptor.TYPE_INT32: _integers(32, True),
    FieldDescriptor.TYPE_INT64: _integers(64, True),
    FieldDescriptor.TYPE_UINT32: _integers(32, False),
    FieldDescriptor.TYPE_UINT64: _integers(64, False),
}


def _single(field: FieldDescriptor, depth: int) -> SearchStrategy[Any]:
    """One value of a field, as the constructor of its message takes it."""
    if field.type == FieldDescriptor.TYPE_STRING:
        plausible = _PLAUSIBLE.get(field.name)
        # Most often plausible: one odd value of many is what finds the check that is missing.
        return st.one_of(*[st.sampled_from(plausible)] * 3, _TEXTS) if plausible else _TEXTS
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.one_of(st.sampled_from(_CONTENTS), _BYTES)
    if field.enum_type is not None:
        known = [value.number for value in field.enum_type.values]
        return st.sampled_from([*known, *known, max(known) + 1, -1, 2**31 - 1])
    if field.message_type is not None:
        return _values(field.message_type, depth + 1)
    return _SCALARS[field.type]


def _field(field: FieldDescriptor, depth: int) -> SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        return st.dictionaries(_single(entry["key"], depth), _single(entry["value"], depth), max_size=2)
    if field.is_repeated:
        return st.lists(_single(field, depth), max_size=3)
    return _single(field, depth)


def _values(message: Descriptor, depth: int = 0) -> SearchStrategy[Values]:
    fields = [field for field in message.fields if depth < _MOST_DEPTH or field.message_type is None]
    return st.fixed_dictionaries({}, optional={field.name: _field(field, depth) for field in fields})


def messages_of(message: Descriptor) -> SearchStrategy[Message]:
    """Messages of a type: every field absent, plausible or odd."""
    return _values(message).map(lambda values: GetMessageClass(message)(**values))


@dataclass(frozen=True, slots=True)
class Call:
    """Requests for one method as bytes; more than one only where it takes a stream."""

    method: MethodDescriptor
    requests: tuple[bytes, ...]

    @property
    def path(self) -> str:
        """The method as gRPC names it."""
        return f"/{self.method.containing_service.full_name}/{self.method.name}"

    def __repr__(self) -> str:
        shown = []
        for data in self.requests:
            try:
                parsed = GetMessageClass(self.method.input_type).FromString(data)
                shown.append(f"{{{str(parsed)[:2000]}}}")
            except Exception as error:  # noqa: BLE001  # whatever protobuf has against them; it is only shown
                shown.append(f"{data[:200]!r} ({type(error).__name__})")
        return f"{self.path} {' '.join(shown)}"


def _requests_of(method: MethodDescriptor) -> SearchStrategy[bytes]:
    typed = messages_of(method.input_type).map(lambda message: message.SerializeToString())
    return st.one_of(typed, typed, typed, mutated(typed))


def calls(methods: Sequence[MethodDescriptor] = METHODS) -> SearchStrategy[Call]:
    """A call of one of the methods."""

    def of(method: MethodDescriptor) -> SearchStrategy[Call]:
        most = 3 if method.client_streaming else 1
        least = 0 if method.client_streaming else 1
        return st.lists(_requests_of(method), min_size=least, max_size=most).map(
            lambda requests: Call(method, tuple(requests))
        )

    return st.sampled_from(methods).flatmap(of)
