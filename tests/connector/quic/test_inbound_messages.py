"""How much an edge may send: with messages of any size, taken at any time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.connector.quic.framing import FramingError, frame_header
from services.connector.quic.inbound_messages import InboundMessages

WINDOW, MOST = 100, 500


@given(st.lists(st.integers(0, MOST), max_size=12), st.lists(st.tuples(st.integers(1, 90), st.booleans())))
def test_every_message_comes_through_and_what_is_kept_is_bounded(
    sizes: list[int], steps: list[tuple[int, bool]]
) -> None:
    """C33: a peer that sends all it may never waits for a frame that it may not finish."""
    stream = b"msg" + b"".join(frame_header(size) + bytes(size) for size in sizes)
    inbound = InboundMessages(MOST, WINDOW)
    allowed, sent = WINDOW, 0
    taken: list[int] = []
    for size, take in [*steps, *[(MOST, True)] * (2 * len(sizes) + 2 * len(stream) // WINDOW + 2)]:
        part = stream[sent : min(sent + size, allowed)]
        sent += len(part)
        inbound.receive(part, ended=False)
        if not take:
            continue
        while (payload := inbound.next_message()) is not None:
            taken.append(len(payload))
        through = inbound.let_in()
        if through is not None:
            assert through > allowed
            allowed = through
        assert allowed - sent <= max(WINDOW, MOST + 10)
    assert taken == sizes
    assert not inbound.waiting


def test_limits_are_not_told_for_every_message() -> None:
    inbound = InboundMessages(MOST, WINDOW)
    inbound.receive(b"msg" + frame_header(20) + bytes(20), ended=False)
    assert inbound.next_message() == bytes(20)
    assert inbound.let_in() is None


def test_the_end_is_told_when_all_is_taken_and_a_cut_frame_is_a_fault() -> None:
    whole, cut = InboundMessages(MOST, WINDOW), InboundMessages(MOST, WINDOW)
    whole.receive(b"msg" + frame_header(1) + b"x", ended=True)
    assert whole.next_message() == b"x"
    assert whole.over()
    cut.receive(b"msg" + frame_header(2) + b"x", ended=True)
    assert cut.next_message() is None
    with pytest.raises(FramingError):
        cut.over()
