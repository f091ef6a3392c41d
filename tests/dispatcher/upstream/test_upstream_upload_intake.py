"""Uploads before they are stored: pauses, their end, and the bounds behind them."""

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.upload_intake import (
    CloseLink,
    IntakeBounds,
    PauseReads,
    Upload,
    UploadIntake,
)

BOUNDS = IntakeBounds(
    30.0,
    pause_messages=4,
    pause_bytes=1000,
    most_messages=6,
    most_bytes=2000,
    total_messages=8,
    total_bytes=3000,
)


class Feeder:
    """An intake and the uploads put into it."""

    def __init__(self) -> None:
        self.intake = UploadIntake(BOUNDS)
        self.place = 0

    def add(self, node: str, now: float = 0.0, *, epoch: int = 1, size: int = 10) -> list[PauseReads]:
        self.place += 1
        return self.intake.add(Upload(node, epoch, self.place, Message(), size), now)

    def store(self, count: int) -> list[PauseReads]:
        return self.intake.stored(self.intake.batch(count, 1 << 40))


def test_a_link_pauses_when_too_much_waits_and_goes_on_at_half() -> None:
    feeder = Feeder()
    assert [feeder.add("a") for _ in range(3)] == [[], [], []]
    assert feeder.add("a") == [PauseReads("a", 1, True)]
    assert feeder.add("a") == [], "paused once"
    assert feeder.store(2) == []
    assert feeder.store(1) == [PauseReads("a", 1, False)]
    assert (feeder.intake.paused, len(feeder.intake)) == (0, 2)


def test_bytes_pause_a_link_as_well() -> None:
    feeder = Feeder()
    assert feeder.add("a", size=1000) == [PauseReads("a", 1, True)]
    assert feeder.add("b", size=999) == []
    assert feeder.store(1) == [PauseReads("a", 1, False)]


def test_trouble_pauses_every_link_that_waits_and_those_that_come() -> None:
    """C31: a store that takes nothing stops the links' reads, it loses nothing."""
    feeder = Feeder()
    feeder.add("a")
    feeder.add("b")
    assert feeder.intake.troubled("full", 1.0) == [PauseReads("a", 1, True), PauseReads("b", 1, True)]
    assert feeder.intake.troubled("full", 2.0) == []
    assert feeder.add("c", 3.0) == [PauseReads("c", 1, True)]
    assert feeder.intake.troubled("silent", 4.0) == []
    resumed = feeder.store(3)
    assert sorted(one.node_id for one in resumed) == ["a", "b", "c"]
    assert not any(one.paused for one in resumed)
    assert feeder.intake.trouble == ""
    assert feeder.add("a", 5.0) == []


def test_a_pause_ends_with_the_link_after_its_time() -> None:
    feeder = Feeder()
    feeder.intake.troubled("the store does not answer", 0.0)
    assert feeder.intake.deadline() is None
    feeder.add("a", 10.0)
    feeder.add("b", 12.0)
    assert feeder.intake.deadline() == 40.0
    assert feeder.intake.overdue(39.9) == []
    assert feeder.intake.overdue(40.0) == [
        CloseLink("a", 1, "uploads found no room for 30 s: the store does not answer")
    ]
    assert feeder.intake.deadline() == 42.0
    assert feeder.add("a", 41.0) == [], "a closed link is not paused any more"
    assert len(feeder.intake) == 3, "what was taken in stays"
    assert feeder.add("a", 43.0, epoch=2) == [PauseReads("a", 2, True)], "its next link is"


def test_a_crowded_link_is_closed_with_the_reason_that_it_is_too_fast() -> None:
    feeder = Feeder()
    for _ in range(4):
        feeder.add("a", 1.0)
    (close,) = feeder.intake.overdue(31.0)
    assert close.detail == "uploads found no room for 30 s: uploads come faster than they can be stored"


def test_another_epoch_is_paused_for_itself() -> None:
    """A link that moved to another dispatcher's epoch, or a new one, reads until told otherwise."""
    feeder = Feeder()
    for _ in range(4):
        feeder.add("a", 1.0)
    assert feeder.add("a", 5.0, epoch=2) == [PauseReads("a", 2, True)]
    assert feeder.intake.deadline() == 35.0


def test_the_end_of_a_link_ends_its_pause() -> None:
    feeder = Feeder()
    for _ in range(4):
        feeder.add("a")
    feeder.intake.link_ended("a", 99)
    assert feeder.intake.paused == 1, "another link's end"
    feeder.intake.link_ended("nobody", 1)
    feeder.intake.link_ended("a", 1)
    assert feeder.intake.paused == 0
    assert feeder.intake.overdue(1000.0) == []
    assert feeder.store(10) == []
    feeder.intake.link_ended("a", 1)
    assert len(feeder.intake) == 0


def test_each_bound_refuses_by_name() -> None:
    feeder = Feeder()
    for _ in range(6):
        assert feeder.intake.refusal("a", 10) == ""
        feeder.add("a")
    assert feeder.intake.refusal("a", 10) == "upload_node_messages"
    assert feeder.intake.refusal("b", 10) == ""
    feeder.add("b", size=1500)
    assert feeder.intake.refusal("b", 501) == "upload_node_bytes"
    assert feeder.intake.refusal("c", 1441) == "upload_total_bytes"
    feeder.add("c")
    assert feeder.intake.refusal("d", 1) == "upload_total_messages"


def test_a_batch_is_bounded_in_bytes_but_never_empty() -> None:
    feeder = Feeder()
    for size in (500, 10, 10):
        feeder.add("a", size=size)
    assert [one.place for one in feeder.intake.batch(10, 100)] == [1]
    assert [one.place for one in feeder.intake.batch(10, 515)] == [1, 2]
    assert [one.place for one in feeder.intake.batch(2, 10_000)] == [1, 2]
    assert len(feeder.intake) == 3, "it stays until stored"
    assert feeder.intake.size_bytes == 520
