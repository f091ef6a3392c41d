"""Uploads before they are stored: pauses, their end, and the bounds behind them."""

from dataclasses import replace

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.shares import Amount, Shares
from services.dispatcher.upstream.upload_intake import (
    Batch,
    GiveUp,
    IntakeBounds,
    PauseReads,
    Upload,
    UploadIntake,
)

ROOMY = Shares(Amount(1 << 40, 1 << 40), Amount(1 << 50, 1 << 50))
BOUNDS = IntakeBounds(
    30.0,
    pause_messages=4,
    pause_bytes=1000,
    most_messages=6,
    most_bytes=2000,
    total_messages=9,
    total_bytes=3500,
)


class Feeder:
    """An intake and the uploads put into it."""

    def __init__(self) -> None:
        self.intake = UploadIntake(BOUNDS)
        self.place = 0

    def add(self, node: str, now: float = 0.0, *, epoch: int = 1, size: int = 10) -> list[PauseReads]:
        self.place += 1
        return self.intake.add(Upload(node, epoch, self.place, Message(), size), now)

    def batch(self, most: int, most_bytes: int = 1 << 40, shares: Shares = ROOMY) -> Batch:
        return self.intake.batch(most, most_bytes, shares)

    def store(self, count: int) -> list[PauseReads]:
        return self.intake.stored(self.batch(count).uploads)


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
        GiveUp("a", 1, True, "uploads found no room for 30 s: the store does not answer")
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
    for _ in range(3):
        assert feeder.intake.refusal("a", 10) == ""
        feeder.add("a")
    feeder.add("b", size=1500)
    assert feeder.intake.refusal("b", 501) == "upload_node_bytes"
    assert feeder.intake.refusal("a", 10) == "upload_total_messages", "it has as much as is left for all"
    assert feeder.intake.refusal("c", 10) == "", "one that has nothing has room"
    assert feeder.intake.refusal("c", 1971) == "upload_total_bytes"
    feeder = Feeder()
    feeder.intake = UploadIntake(replace(BOUNDS, total_messages=100))
    for _ in range(6):
        feeder.add("a")
    assert feeder.intake.refusal("a", 10) == "upload_node_messages"


def test_a_batch_is_bounded_in_bytes_but_never_empty() -> None:
    feeder = Feeder()
    for size in (500, 10, 10):
        feeder.add("a", size=size)
    assert places(feeder.batch(10, 100)) == [1]
    assert places(feeder.batch(10, 515)) == [1, 2]
    assert places(feeder.batch(2, 10_000)) == [1, 2]
    assert len(feeder.intake) == 3, "it stays until stored"
    assert feeder.intake.size_bytes == 520


def test_nodes_are_stored_in_turn() -> None:
    """C46: none waits for the many uploads of another."""
    feeder = Feeder()
    for _ in range(4):
        feeder.add("busy", size=300)
    feeder.add("calm", size=300)
    assert places(feeder.batch(2)) == [1, 5]
    feeder.store(2)
    feeder.add("late", size=300)
    batch = feeder.batch(10, 600)
    assert [one.node_id for one in batch.uploads] == ["busy", "late"]
    feeder.intake.stored(batch.uploads)
    assert places(feeder.batch(10)) == [3, 4]


def small_share(messages: int) -> Shares:
    return Shares(Amount(messages, 1 << 40), Amount(1 << 40, 1 << 40))


def test_a_node_without_room_in_its_share_pauses_alone_and_goes_on_with_room() -> None:
    """C46: its first uploads are stored, the next one waits with its link; another node's is stored."""
    feeder, shares = Feeder(), small_share(2)
    for _ in range(3):
        feeder.add("a")
    feeder.add("b")
    batch = feeder.batch(10, shares=shares)
    assert places(batch) == [1, 4, 2]
    assert [(one.place, bound) for one, bound in batch.unfit] == [(3, "node_messages")]
    assert feeder.intake.stored(batch.uploads) == []
    assert feeder.intake.judged(batch.unfit, 1.0) == [PauseReads("a", 1, True)]
    assert (feeder.intake.full, feeder.intake.is_ready) == (1, False)
    assert feeder.add("a", 2.0) == [], "what was on its way"
    feeder.add("b")
    batch = feeder.batch(10, shares=shares)
    assert places(batch) == [6]
    feeder.intake.stored(batch.uploads)
    assert feeder.intake.room_made(shares) == []
    shares.remove("a", 10)
    assert feeder.intake.room_made(shares) == [PauseReads("a", 1, False)]
    batch = feeder.batch(10, shares=shares)
    assert 3 in places(batch)
    assert [one.place for one, _ in batch.unfit] == [5]


def test_of_those_that_are_answered_none_pauses_a_link() -> None:
    """C46: uploads that ask for an answer get one; what comes behind one that does not waits with it."""
    feeder, shares = Feeder(), small_share(0)
    for place, sync in enumerate((True, True, False), 1):
        feeder.intake.add(Upload("a", 1, place, Message(sync=sync), 10), 0.0)
    batch = feeder.batch(10, shares=shares)
    assert [one.place for one, _ in batch.unfit] == [1, 2, 3]
    assert feeder.intake.stored([one for one, _ in batch.unfit[:2]]) == []
    assert feeder.intake.judged(batch.unfit[2:], 1.0) == [PauseReads("a", 1, True)]
    assert len(feeder.intake) == 1


def test_what_found_no_room_in_time_is_dropped_with_the_link() -> None:
    """C46: nobody was told that it is stored, and the close tells that it is not."""
    feeder, shares = Feeder(), small_share(1)
    for _ in range(3):
        feeder.add("a")
    batch = feeder.batch(10, shares=shares)
    feeder.intake.stored(batch.uploads)
    feeder.intake.judged(batch.unfit, 5.0)
    assert feeder.intake.deadline() == 35.0
    (one,) = feeder.intake.overdue(35.0, lambda bound: f"<{bound}>")
    assert (one.node_id, one.is_linked, [upload.place for upload in one.dropped]) == ("a", True, [2, 3])
    assert one.detail == "uploads found no room for 30 s: <node_messages>"
    assert (len(feeder.intake), feeder.intake.full, feeder.intake.deadline()) == (0, 0, None)
    shares.remove("a", 10)
    assert feeder.intake.room_made(shares) == []


def test_what_a_link_left_that_is_gone_waits_no_longer_either() -> None:
    """C46: memory is not where a node's uploads pile up."""
    feeder, shares = Feeder(), small_share(0)
    feeder.add("a")
    feeder.intake.judged(feeder.batch(10, shares=shares).unfit, 5.0)
    feeder.intake.link_ended("a", 1)
    assert feeder.intake.paused == 0
    (one,) = feeder.intake.overdue(35.0)
    assert (one.is_linked, len(one.dropped)) == (False, 1)
    assert len(feeder.intake) == 0


def test_the_next_link_of_a_node_without_room_pauses_for_itself() -> None:
    feeder, shares = Feeder(), small_share(0)
    feeder.add("a")
    feeder.intake.judged(feeder.batch(10, shares=shares).unfit, 5.0)
    feeder.intake.link_ended("a", 1)
    assert feeder.add("a", 20.0, epoch=2) == [PauseReads("a", 2, True)]
    assert feeder.intake.deadline() == 50.0


def places(batch: Batch) -> list[int]:
    return [one.place for one in batch.uploads]
