"""Batches to a dispatcher."""

from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1 import link_pb2
from services.connector.frames import parse_frame
from services.connector.outgoing import MOST_BYTES, MOST_ELEMENTS, OutgoingBatches

_FRAME = parse_frame(b'{"header":{"msg_id":"m"}}')


def _outgoing() -> OutgoingBatches:
    return OutgoingBatches(lambda: None)


def test_whatever_is_queued_travels_together() -> None:
    woken: list[bool] = []
    outgoing = OutgoingBatches(lambda: woken.append(True))
    outgoing.announce(link_pb2.LinkAnnouncement(link=1))
    outgoing.upstream(2, 5, 1, _FRAME, 20)
    outgoing.activity(2, 5, 1.5)
    outgoing.end(2, 5, link_pb2.CLOSE_REASON_EDGE_CLOSED, "bye")
    outgoing.heartbeat()
    assert len(woken) == 5
    taken = outgoing.take()
    assert taken is not None
    batch, elements = taken
    assert elements == 5
    assert batch.upstream[0].message.id == "m"
    assert batch.activity[0].idle_seconds == 1.5
    assert batch.ended[0].detail == "bye"
    assert batch.heartbeat
    assert outgoing.take() is None
    assert not outgoing
    assert outgoing.waiting_bytes == 0


def test_a_links_written_reports_are_one_per_batch() -> None:
    outgoing = _outgoing()
    outgoing.written(1, 5, 1, 0)
    outgoing.written(2, 6, 9, 9)
    outgoing.written(1, 5, 4, 2)
    batch = outgoing.take()
    assert batch is not None
    assert [(r.link, r.acknowledged_through, r.direct_through) for r in batch[0].written] == [
        (1, 4, 2),
        (2, 9, 9),
    ]
    outgoing.written(1, 5, 5, 2)
    after = outgoing.take()
    assert after is not None
    assert after[0].written[0].acknowledged_through == 5


def test_a_probes_answer_travels_behind_every_frame_queued_before_it() -> None:
    outgoing = _outgoing()
    for number in range(1, MOST_ELEMENTS + 3):
        outgoing.upstream(1, 5, number, _FRAME, 20)
    outgoing.activity(1, 5, 0.0)
    first, second = outgoing.take(), outgoing.take()
    assert first is not None
    assert second is not None
    assert len(first[0].upstream) == MOST_ELEMENTS
    assert not first[0].activity
    assert [frame.number for frame in second[0].upstream] == [MOST_ELEMENTS + 1, MOST_ELEMENTS + 2]
    assert second[0].activity


@given(st.lists(st.integers(0, 3 * 1024 * 1024), max_size=30), st.data())
def test_batches_keep_order_and_stay_below_their_bounds(sizes: list[int], data: st.DataObject) -> None:
    outgoing = _outgoing()
    numbers: list[int] = []

    def take() -> None:
        taken = outgoing.take()
        if taken:
            numbers.extend(frame.number for frame in taken[0].upstream)
            assert taken[1] == len(taken[0].upstream) <= MOST_ELEMENTS
            if taken[1] > 1:
                assert sum(frame.size_bytes for frame in taken[0].upstream) <= MOST_BYTES

    for number, size in enumerate(sizes, 1):
        outgoing.upstream(1, 5, number, _FRAME, size)
        if data.draw(st.booleans()):
            take()
    while outgoing:
        take()
    assert numbers == list(range(1, len(sizes) + 1))
    assert outgoing.waiting_bytes == 0
