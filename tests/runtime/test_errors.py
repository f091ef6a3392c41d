"""Errors as callers get them: `services.runtime.errors`, `interceptor`, `rpc.error_info`."""

import base64
from urllib.parse import quote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from services.runtime.errors import HubError, InvalidRequest, NotFound, RowDamaged, StoreRefused
from services.runtime.interceptor import status_of
from services.runtime.names import cut_bytes, shown
from services.runtime.rpc import error_info

# What gRPC takes of metadata before it refuses at random.
SOFT_LIMIT_BYTES = 8 * 1024
TEXTS = st.text(max_size=60).flatmap(
    lambda text: st.integers(0, 3000).map(lambda times: (text or "x") * times)
)


def carried_bytes(error: HubError) -> int:
    """What gRPC sends of a status: the sentence percent-encoded, and all of it in base64."""
    status = status_of(error)
    details = b"".join(value for _, value in status.trailing_metadata if isinstance(value, bytes))
    return len(quote(status.details)) + len(base64.b64encode(details)) + 200


@given(TEXTS, TEXTS)
def test_a_status_is_never_larger_than_grpc_carries(name: str, other: str) -> None:
    """C41: whatever callers send comes back in errors, cut."""
    for error in (
        NotFound("MESSAGE_UNKNOWN", f"no message {name}", node_id=other, message_id=name),
        InvalidRequest(name, other),
        StoreRefused(name),
        RowDamaged(name, other),
    ):
        assert carried_bytes(error) < SOFT_LIMIT_BYTES
        assert status_of(error).code is error.status


@given(st.text(max_size=400), st.integers(3, 300))
def test_a_text_is_cut_between_characters(text: str, max_bytes: int) -> None:
    cut = cut_bytes(text, max_bytes)
    assert len(cut.encode()) <= max_bytes
    assert text == cut if len(text.encode()) <= max_bytes else text.startswith(cut.removesuffix("..."))


def test_a_name_is_shown_with_what_is_left_out_of_it() -> None:
    assert shown("a" * 80) == "a" * 80
    assert shown("a" * 81) == "a" * 80 + "... (81 characters)"


def _failed(code: grpc.StatusCode, details: bytes | None) -> grpc.aio.AioRpcError:
    trailing = grpc.aio.Metadata(*([("grpc-status-details-bin", details)] if details is not None else []))
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, "what the transport says")


def _details(code: grpc.StatusCode) -> bytes:
    status = status_pb2.Status(code=code.value[0], message="what the transport says")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="NODE_UNKNOWN"))
    return bytes(status.SerializeToString())


@pytest.mark.parametrize("details", [_details(grpc.StatusCode.NOT_FOUND), b"\xff", b"", None])
def test_a_status_that_belongs_to_another_code_is_one_without_details(details: bytes | None) -> None:
    """C41: the transport may end a call otherwise than the service did."""
    error = _failed(grpc.StatusCode.RESOURCE_EXHAUSTED, details)
    assert error_info(error) == ("RESOURCE_EXHAUSTED", {})


def test_a_status_of_its_own_code_has_its_reason() -> None:
    error = _failed(grpc.StatusCode.NOT_FOUND, _details(grpc.StatusCode.NOT_FOUND))
    assert error_info(error) == ("NODE_UNKNOWN", {})
