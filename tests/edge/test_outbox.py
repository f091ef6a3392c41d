"""Uploads: in order, bounded in flight, repeated until confirmed."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from edge.outbox import Upload, UploadWindow


def upload(number: int) -> Upload:
    return Upload("edge-1", number, f"m-{number}", "telemetry", b"{}", 0)


def window(count: int, most_in_flight: int = 3, repeat_seconds: float = 5.0) -> UploadWindow:
    made = UploadWindow(most_in_flight, repeat_seconds, most_repeat_seconds=15.0)
    for number in range(1, count + 1):
        made.add(upload(number))
    return made


def numbers(uploads: list[Upload]) -> list[int]:
    return [one.number for one in uploads]


def test_they_go_out_in_order_and_no_more_than_the_window() -> None:
    uploads = window(5)
    assert numbers(uploads.take(0.0)) == [1, 2, 3]
    assert numbers(uploads.take(0.1)) == []
    assert uploads.in_flight == 3


def test_a_confirmation_makes_room_for_the_next() -> None:
    uploads = window(5)
    uploads.take(0.0)
    confirmed = uploads.confirm("m-2", 1.0)
    assert confirmed == upload(2)
    assert numbers(uploads.take(1.0)) == [4]
    assert len(uploads) == 4


def test_a_second_or_strange_confirmation_changes_nothing() -> None:
    uploads = window(2)
    uploads.take(0.0)
    uploads.confirm("m-1", 0.0)
    assert uploads.confirm("m-1", 0.0) is None
    assert uploads.confirm("m-9", 0.0) is None
    assert uploads.in_flight == 1


def test_without_an_answer_everything_in_flight_is_repeated_in_order() -> None:
    """C31: the numbers of a node reach the hub in order, also after some were lost."""
    uploads = window(4)
    uploads.take(0.0)
    uploads.confirm("m-2", 1.0)
    uploads.take(1.0)
    assert numbers(uploads.take(5.9)) == []
    assert numbers(uploads.take(6.0)) == [1, 3, 4]


def test_repeats_come_ever_later_until_an_answer() -> None:
    uploads = window(1)
    uploads.take(0.0)
    assert numbers(uploads.take(5.0)) == [1]
    assert numbers(uploads.take(14.9)) == []
    assert numbers(uploads.take(15.0)) == [1]
    assert numbers(uploads.take(29.9)) == []
    assert numbers(uploads.take(30.0)) == [1]
    uploads.add(upload(2))
    uploads.take(30.0)
    uploads.confirm("m-1", 31.0)
    assert numbers(uploads.take(36.0)) == [2]


def test_a_new_link_starts_over() -> None:
    uploads = window(4)
    uploads.take(0.0)
    uploads.confirm("m-1", 0.0)
    uploads.start_over()
    assert numbers(uploads.take(0.1)) == [2, 3, 4]


def test_a_confirmation_from_before_the_new_link_counts() -> None:
    uploads = window(4)
    uploads.take(0.0)
    uploads.start_over()
    assert uploads.confirm("m-3", 0.0) == upload(3)
    assert uploads.in_flight == 0
    assert numbers(uploads.take(0.1)) == [1, 2, 4]


def test_what_waits_can_be_asked() -> None:
    uploads = window(2)
    assert "m-1" in uploads
    assert "m-3" not in uploads
    assert numbers(list(uploads)) == [1, 2]


class Uploading(RuleBasedStateMachine):
    """Any order of adds, sends, answers and new links keeps the window's promises."""

    known = Bundle("known")

    def __init__(self) -> None:
        super().__init__()
        self.window = UploadWindow(4, 5.0)
        self.now = 0.0
        self.last = 0
        self.confirmed: set[int] = set()
        self.sent_on_link: list[int] = []

    @rule(target=known)
    def add(self) -> int:
        self.last += 1
        self.window.add(upload(self.last))
        return self.last

    @rule(seconds=st.floats(0, 4))
    def take(self, seconds: float) -> None:
        self.now += seconds
        taken = numbers(self.window.take(self.now))
        assert taken == sorted(taken)
        assert not self.confirmed.intersection(taken)
        self.sent_on_link += taken

    @rule(number=known)
    def confirm(self, number: int) -> None:
        found = self.window.confirm(f"m-{number}", self.now)
        assert (found is None) == (number in self.confirmed)
        self.confirmed.add(number)

    @rule()
    def new_link(self) -> None:
        self.window.start_over()
        self.sent_on_link = []

    @invariant()
    def first_appearances_on_a_link_are_in_order(self) -> None:
        first = list(dict.fromkeys(self.sent_on_link))
        assert first == sorted(first)

    @invariant()
    def nothing_is_forgotten_and_little_in_flight(self) -> None:
        assert {one.number for one in self.window} == set(range(1, self.last + 1)) - self.confirmed
        assert 0 <= self.window.in_flight <= min(4, len(self.window))


TestUploading = Uploading.TestCase


@given(st.lists(st.integers(1, 20), max_size=40), st.integers(1, 5))
def test_everything_is_confirmed_in_the_end(lost: list[int], most_in_flight: int) -> None:
    uploads = window(20, most_in_flight)
    losses = list(lost)
    now = 0.0
    for _ in range(200):
        for one in uploads.take(now):
            if one.number in losses:
                losses.remove(one.number)
            else:
                uploads.confirm(one.msg_id, now)
        now += 1.0
        if not len(uploads):
            return
        if now > 150:
            uploads.start_over()
    raise AssertionError(f"{len(uploads)} uploads are left")


def test_an_upload_that_is_alone_in_flight_at_a_second_objection_is_the_culprit() -> None:
    """C43: those sent with it are not taken for it."""
    uploads = window(5)
    assert numbers(uploads.take(0.0)) == [1, 2, 3]
    assert uploads.objected() is None
    uploads.start_over()
    assert numbers(uploads.take(1.0)) == [1]
    uploads.confirm("m-1", 1.0)
    assert numbers(uploads.take(1.0)) == [2]
    assert uploads.sent() == [upload(2)]
    assert uploads.objected() == upload(2)
    uploads.start_over()
    assert numbers(uploads.take(2.0)) == [3]
    uploads.confirm("m-3", 2.0)
    assert numbers(uploads.take(2.0)) == [4, 5]


def test_an_objection_with_no_upload_in_flight_is_over_something_else() -> None:
    """C43."""
    uploads = window(2)
    assert uploads.objected() is None
    assert numbers(uploads.take(0.0)) == [1, 2]


def test_one_objection_alone_sets_nothing_aside() -> None:
    """C43: it may have been over a report."""
    uploads = window(1)
    uploads.take(0.0)
    assert uploads.objected() is None
    uploads.start_over()
    assert numbers(uploads.take(1.0)) == [1]
    uploads.confirm("m-1", 1.0)
    uploads.add(upload(2))
    uploads.add(upload(3))
    assert numbers(uploads.take(1.0)) == [2, 3]
