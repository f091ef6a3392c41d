"""The table of close codes."""

import pytest

from cloudhub.v1 import link_pb2
from services.connector.close_codes import CLOSE_CODES, FRAME_FAULT_CODES, close_code, reason_name
from services.connector.frames import FrameFault


def test_every_reason_and_every_frame_fault_has_a_code_that_may_be_sent() -> None:
    # A link that moves is not closed.
    closing = set(link_pb2.CloseReason.values()) - {link_pb2.CLOSE_REASON_TRANSFERRED}
    assert set(CLOSE_CODES) == closing
    assert set(FRAME_FAULT_CODES) == set(FrameFault)
    for row in (*CLOSE_CODES.values(), *FRAME_FAULT_CODES.values()):
        # RFC 6455, 7.4: these never appear in a frame.
        assert row.code not in (1004, 1005, 1006, 1015)
        assert 1000 <= row.code <= 1014 or 4000 <= row.code <= 4999


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (link_pb2.CLOSE_REASON_DRAINED, 1012),
        (link_pb2.CLOSE_REASON_DISPATCHER_LOST, 1012),
        (link_pb2.CLOSE_REASON_OVERLOADED, 1013),
        (link_pb2.CLOSE_REASON_PROTOCOL_ERROR, 1008),
        (link_pb2.CLOSE_REASON_SUPERSEDED, 4001),
        (link_pb2.CLOSE_REASON_REVOKED, 4004),
    ],
)
def test_reasons_have_their_codes(reason: link_pb2.CloseReason.ValueType, code: int) -> None:
    assert close_code(reason).code == code


def test_only_links_that_must_not_come_back_are_told_so() -> None:
    staying = {reason_name(reason) for reason, row in CLOSE_CODES.items() if not row.reconnect}
    assert staying == {"superseded", "node_deleted", "revoked"}


def test_the_text_fits_a_control_frame_whatever_the_detail() -> None:
    text = close_code(link_pb2.CLOSE_REASON_EVICTED).with_detail("é" * 200)
    assert len(text.encode()) <= 123
    assert text.startswith("evicted")
    assert close_code(link_pb2.CLOSE_REASON_EVICTED).with_detail("") == "evicted by an operator"


def test_a_reason_of_a_newer_protocol_reads_as_unspecified() -> None:
    newer = 99
    assert close_code(newer).code == 1000  # type: ignore[arg-type]
    assert reason_name(newer) == "unspecified"  # type: ignore[arg-type]
    assert reason_name(link_pb2.CLOSE_REASON_EDGE_CLOSED) == "edge_closed"
