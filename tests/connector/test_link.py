"""The pure state of a link: lanes, ledger, rate."""

from hypothesis import given
from hypothesis import strategies as st

from services.connector.inbound import InboundLedger
from services.connector.link import Accepted, Link, LinkLimits, Pause
from services.connector.outbound import OutboundLanes, Written
from services.connector.tokens import TokenBucket


def _lanes(most_frames: int = 100, most_bytes: int = 1000) -> OutboundLanes[str]:
    return OutboundLanes(most_frames, most_bytes)


def test_the_direct_lane_goes_before_all_that_is_not_taken() -> None:
    """C26: a NO-ACK message never waits behind ACK messages not yet in the socket."""
    lanes = _lanes()
    for number in (1, 2, 3):
        lanes.queue(number, b"a%d" % number, direct=False)
    assert lanes.take(2) == [b"a1"]
    lanes.queue(1, b"d1", direct=True)
    assert lanes.take(1000) == [b"d1", b"a2", b"a3"]


def test_a_direct_frame_that_does_not_fit_keeps_its_place() -> None:
    lanes = _lanes()
    lanes.queue(1, b"a", direct=False)
    lanes.queue(1, b"dd", direct=True)
    lanes.queue(2, b"dddd", direct=True)
    assert lanes.take(3) == [b"dd"]
    assert lanes.take(5) == [b"dddd", b"a"]


def test_marks_grow_only_by_what_was_taken_and_written() -> None:
    lanes = _lanes()
    lanes.queue(1, b"a", "first", direct=False)
    lanes.queue(2, b"b", "second", direct=False)
    assert lanes.written() == (None, [])
    lanes.take(1)
    assert lanes.written() == (Written(1, 0), ["first"])
    assert lanes.written() == (None, [])
    assert lanes.unwritten_tags() == ["second"]


_OPERATIONS = st.lists(
    st.tuples(st.just("queue"), st.booleans(), st.integers(1, 60))
    | st.tuples(st.just("take"), st.just(False), st.integers(1, 100))
    | st.tuples(st.just("written"), st.just(False), st.just(0)),
    max_size=60,
)


@given(_OPERATIONS)
def test_lanes_keep_order_bounds_and_accounts(operations: list[tuple[str, bool, int]]) -> None:
    lanes = _lanes(most_frames=5, most_bytes=120)
    numbers = {True: 0, False: 0}
    waiting: dict[bool, list[bytes]] = {True: [], False: []}
    taken = {True: 0, False: 0}
    for operation, direct, size in operations:
        if operation == "queue":
            frame = b"%d:%d:" % (direct, numbers[direct] + 1) + b"x" * size
            if lanes.fits(len(frame)):
                numbers[direct] += 1
                assert lanes.is_next(numbers[direct], direct=direct)
                lanes.queue(numbers[direct], frame, direct=direct)
                assert not lanes.is_next(numbers[direct], direct=direct)
                waiting[direct].append(frame)
            else:
                assert len(lanes) >= 5 or lanes.queued_bytes + len(frame) > 120
        elif operation == "take":
            frames = lanes.take(size)
            expected = [*waiting[True], *waiting[False]]
            assert frames == expected[: len(frames)]
            assert bool(frames) == bool(expected)
            assert len(frames) <= 1 or sum(map(len, frames)) <= size
            for frame in frames:
                lane = frame.startswith(b"1:")
                waiting[lane].pop(0)
                taken[lane] += 1
        else:
            marks, _ = lanes.written()
            if marks:
                assert (marks.acknowledged_through, marks.direct_through) == (taken[False], taken[True])
        assert len(lanes) == len(waiting[True]) + len(waiting[False])
        assert lanes.queued_bytes == sum(map(len, waiting[True])) + sum(map(len, waiting[False]))


def test_one_frame_may_always_wait_however_big() -> None:
    lanes = _lanes(most_bytes=10)
    assert lanes.fits(1000)
    lanes.queue(1, b"x" * 1000, direct=False)
    assert not lanes.fits(1)


@given(st.lists(st.integers(1, 50) | st.just(-1), max_size=80), st.integers(0, 100))
def test_the_ledger_forgets_exactly_what_was_receipted(sizes: list[int], unknown: int) -> None:
    ledger = InboundLedger(8, 200)
    held: list[tuple[int, int]] = []
    for size in sizes:
        if size > 0:
            number = ledger.record(b"x" * size)
            assert number == ledger.received
            held.append((number, size))
        elif held:
            through = held[len(held) // 2][0]
            assert ledger.receipt(through)
            held = [entry for entry in held if entry[0] > through]
            assert ledger.receipt(through)
        assert len(ledger) == len(held)
        assert ledger.full == (len(held) >= 8 or sum(size for _, size in held) >= 200)
    assert not ledger.receipt(ledger.received + 1 + unknown)
    assert len(ledger) == len(held)


@given(st.lists(st.floats(0, 0.5), min_size=1, max_size=200))
def test_a_link_that_waits_when_told_never_exceeds_its_rate(gaps: list[float]) -> None:
    rate, burst = 10.0, 5.0
    bucket = TokenBucket(rate, burst, 0.0)
    now = 0.0
    for taken, gap in enumerate(gaps, 1):
        now += gap
        if not bucket.take(now):
            now += bucket.refill_seconds(1.0)
        assert taken <= burst + rate * now + 1e-6


def test_a_clock_that_stands_still_refills_nothing() -> None:
    bucket = TokenBucket(10.0, 2.0, 5.0)
    assert bucket.take(5.0)
    assert not bucket.take(4.0)
    assert bucket.refill_seconds(1.0) == 0.1
    assert bucket.refill_seconds(100.0) == 0.2


def _link(**limits: float) -> Link[str]:
    return Link(7, LinkLimits(**limits), 0.0)  # type: ignore[arg-type]


def test_only_the_sessions_epoch_owns_the_link() -> None:
    link = _link()
    assert link.owns(7)
    assert not link.owns(6)
    assert not link.owns(8)


def test_reading_pauses_at_the_bound_and_goes_on_with_a_receipt() -> None:
    link = _link(unreceipted_most_frames=2)
    assert link.receive(b"1") == 1
    assert link.reading
    assert link.receive(b"2") == 2
    assert link.pauses == Pause.RECEIPTS
    assert link.receipt(1)
    assert link.reading
    assert not link.receipt(5)


def test_reasons_to_pause_are_independent() -> None:
    link = _link(frames_per_second=1.0, frames_burst=2.0)
    link.pause(Pause.DISPATCHER)
    assert link.spend_frame(0.0)
    assert not link.spend_frame(0.0)
    link.resume(Pause.DISPATCHER)
    assert link.pauses == Pause.RATE
    link.resume(Pause.RATE)
    assert link.reading
    assert link.rate_pause_seconds(1.0) == 1.0


def test_repeated_numbers_and_overflow_are_told_apart() -> None:
    link = _link(queued_most_frames=1)
    assert link.send(1, b"a", direct=False) is Accepted.QUEUED
    assert link.send(1, b"a", direct=False) is Accepted.REPEATED
    assert link.send(2, b"b", direct=False) is Accepted.OVERFLOW
    assert link.outbound.take(10) == [b"a"]
    assert link.send(2, b"b", direct=False) is Accepted.QUEUED


_MOVES = st.lists(
    st.tuples(st.just("frame"), st.integers(1, 20))
    | st.tuples(st.just("receipt"), st.integers(0, 8))
    | st.tuples(st.just("move"), st.just(0)),
    max_size=60,
)


@given(_MOVES)
def test_over_any_moves_frames_reach_a_dispatcher_in_order_and_none_is_lost(
    steps: list[tuple[str, int]],
) -> None:
    """C34: each dispatcher gets an unbroken run that begins with the first frame nobody took over."""
    ledger = InboundLedger(1000, 1_000_000)
    came: list[bytes] = []
    handed: list[bytes] = []
    taken_over = 0
    for step, value in steps:
        if step == "frame":
            frame = b"%d:" % len(came) + b"x" * value
            came.append(frame)
            handed.append(frame)
            assert ledger.record(frame) == len(handed)
        elif step == "receipt":
            through = min(value, len(handed))
            assert ledger.receipt(through)
            taken_over = max(taken_over, len(came) - len(handed) + through)
        else:
            handed = ledger.restart()
            assert handed == came[taken_over:]
        assert ledger.received == len(came)
        assert len(ledger) == len(came) - taken_over
        assert not ledger.receipt(len(handed) + 1)


def test_a_move_drops_what_the_new_dispatcher_sends_again_and_keeps_direct_frames() -> None:
    """C26: a direct frame is sent once, by whoever had the link when it came."""
    lanes = _lanes()
    lanes.queue(1, b"taken", "t1", direct=False)
    lanes.take(100)
    lanes.queue(2, b"waits", "t2", direct=False)
    lanes.queue(1, b"direct", "d1", direct=True)
    assert lanes.restart() == ["t2"]
    assert (len(lanes), lanes.queued_bytes) == (1, 6)
    assert lanes.written() == (None, ["t1"]), "marks of the former numbering are told to nobody"
    lanes.queue(1, b"new", "t3", direct=False)
    assert lanes.is_next(1, direct=True)
    lanes.queue(1, b"new direct", "d2", direct=True)
    assert lanes.take(6) == [b"direct"]
    assert lanes.written() == (None, ["d1"])
    assert lanes.take(100) == [b"new direct", b"new"]
    assert lanes.written() == (Written(1, 1), ["d2", "t3"])


def test_a_move_ends_what_the_former_dispatcher_asked_for_and_not_the_links_own_pauses() -> None:
    link = _link(unreceipted_most_frames=1, frames_per_second=1.0, frames_burst=1.0)
    link.receive(b"1")
    link.spend_frame(0.0)
    link.pause(Pause.DISPATCHER)
    link.pause(Pause.STREAM)
    assert link.move(9) == ([b"1"], [])
    assert link.pauses == Pause.RECEIPTS | Pause.RATE
    assert link.owns(9)
    assert link.receipt(1)
    assert link.pauses == Pause.RATE
