"""A test per sentence of docs/architecture.md on delivery: `services.dispatcher.policy`."""

from collections.abc import Callable, Iterable
from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.actions import Action, Fetch, Ignore, LoadOn, Record, Reread, Send, SendDirect
from services.dispatcher.entry import Entry, EntryState
from services.dispatcher.inflight import Window
from services.dispatcher.outbox.records import (
    Attempt,
    CountUnacknowledged,
    End,
    OwnedOp,
    Park,
    Settle,
    Withheld,
)
from services.dispatcher.policy import NodeDelivery, PolicySettings

Owned = TypeVar("Owned", bound=OwnedOp)
NODE, EPOCH, PATH = "edge-1", 7, "default/configmap/a"
SETTINGS = PolicySettings()


def entry(
    seq: int,
    key: str = "",
    *,
    version: int | None = None,
    path: str = "",
    size_bytes: int = 100,
    priority: int = 0,
    attempts: int = 0,
    parked: bool = False,
    is_answer: bool = False,
    is_delete: bool = False,
    expires_at: float | None = None,
    body: bool = True,
) -> Entry:
    """A pending message `m<seq>` of object `k<seq>` unless said otherwise."""
    return Entry(
        key or f"k{seq}",
        seq,
        f"m{seq}",
        path=path or f"path/of/{key or seq}",
        version=seq if version is None else version,
        size_bytes=size_bytes,
        priority=priority,
        attempts=attempts,
        parked=parked,
        is_answer=is_answer,
        is_delete=is_delete,
        expires_at=expires_at,
        body=b"m%d" % seq if body else None,
    )


class Node:
    """A policy with its time, and all it has asked for. Records are durable at once unless they are held."""

    def __init__(
        self,
        settings: PolicySettings = SETTINGS,
        spread: Callable[[], float] = lambda: 0.0,
        *,
        records_held: bool = False,
    ) -> None:
        self.now = 1000.0
        self.records_held = records_held
        self.policy = NodeDelivery(NODE, EPOCH, settings, spread)
        self.actions: list[Action] = []
        self.numbers: list[int] = []

    def do(self, actions: Iterable[Action]) -> list[Action]:
        made = list(actions)
        self.actions += made
        self.numbers += [action.number for action in made if isinstance(action, Send)]
        if not self.records_held:
            ops = [action.op for action in made if isinstance(action, Record)]
            made += self._commit(op for op in ops if isinstance(op, (Settle, Park, End)))
        return made

    def _commit(self, ops: Iterable[Settle | Park | End]) -> list[Action]:
        may_go = [self.policy.recorded(op.key, op.seq) for op in ops]
        return self.do(self.policy.proceed(self.now, self.wall_ms)) if any(may_go) else []

    def commit(self, *ops: Settle | Park | End) -> list[str]:
        """These records are durable; what was sent in answer."""
        return [action.entry.message_id for action in self._commit(ops) if isinstance(action, Send)]

    @property
    def wall_ms(self) -> int:
        return int(self.now * 1000)

    # inputs; each gives the ids that were sent in answer

    def sent(self, actions: Iterable[Action]) -> list[str]:
        return [action.entry.message_id for action in self.do(actions) if isinstance(action, Send)]

    def load(self, *entries: Entry, last_seq: int | None = None, through_seq: int | None = None) -> list[str]:
        highest = max((item.seq for item in entries), default=0)
        last = highest if last_seq is None else last_seq
        return self.sent(self.policy.loaded(entries, last, self.now, self.wall_ms, through_seq=through_seq))

    def accept(self, item: Entry) -> list[str]:
        return self.sent(self.policy.accepted(item, self.now, self.wall_ms))

    def reload(self, *entries: Entry, last_seq: int, through_seq: int | None = None) -> list[str]:
        return self.sent(
            self.policy.reloaded(entries, last_seq, self.now, self.wall_ms, through_seq=through_seq)
        )

    def write(self, through: int | None = None, direct: int = 0) -> None:
        """The connector reports bytes; by default of all that was sent."""
        number = through if through is not None else max(self.numbers, default=0)
        self.do(self.policy.written(number, direct, self.now, self.wall_ms))

    def ack(self, message_id: str) -> list[str]:
        return self.sent(self.policy.acknowledged(message_id, self.now, self.wall_ms, "ack-trace"))

    def nack(self, message_id: str, text: str = "no space left") -> list[str]:
        return self.sent(self.policy.refused(message_id, text, self.now, self.wall_ms, "nack-trace"))

    def wait(self, seconds: float) -> list[str]:
        """Time goes by, with every deadline on the way."""
        end, sent = self.now + seconds, list[str]()
        while (at := self.policy.next_deadline()) is not None and at <= end:
            self.now = max(self.now, at)
            sent += self.sent(self.policy.deadline(self.now, self.wall_ms))
        self.now = end
        return sent

    def bodies(self, *found: tuple[str, int, bytes | Withheld | None]) -> list[str]:
        return self.sent(self.policy.bodies(found, self.now, self.wall_ms))

    # what came out

    def records(self, kind: type[Owned]) -> list[Owned]:
        return [a.op for a in self.actions if isinstance(a, Record) and isinstance(a.op, kind)]

    def fetches(self) -> list[tuple[tuple[str, int], ...]]:
        return [action.wanted for action in self.actions if isinstance(action, Fetch)]

    def rereads(self) -> int:
        return sum(action == Reread() for action in self.actions)

    def portions(self) -> list[LoadOn | Reread]:
        return [action for action in self.actions if isinstance(action, LoadOn | Reread)]

    def ignored(self) -> list[str]:
        return [action.reason for action in self.actions if isinstance(action, Ignore)]


@pytest.fixture
def node() -> Node:
    """A session that has taken an empty node over."""
    fresh = Node()
    fresh.load()
    return fresh


# Order and taking over


def test_a_nodes_messages_are_first_sent_in_the_order_of_their_seqs() -> None:
    node = Node()
    assert node.load(entry(3), entry(4), entry(7)) == ["m3", "m4", "m7"]
    assert node.accept(entry(8)) == ["m8"]
    assert node.numbers == [1, 2, 3, 4]


def test_a_message_of_higher_priority_is_first_sent_before_those_of_lower() -> None:
    node = Node(PolicySettings(window_messages=1))
    assert node.load(entry(1), entry(2, priority=1), entry(3, priority=9), entry(4, priority=9)) == ["m3"]
    assert [node.ack(f"m{seq}") for seq in (3, 4, 2, 1)] == [["m4"], ["m2"], ["m1"], []]


def test_a_hint_that_comes_before_loading_is_sent_after_it() -> None:
    """A pool registers first and loads then [C38]."""
    node = Node()
    assert node.accept(entry(3)) == []
    assert node.load(entry(1), entry(2)) == ["m1", "m2", "m3"]


def test_a_hint_of_what_was_loaded_too_is_not_sent_twice() -> None:
    """C38."""
    node = Node()
    node.accept(entry(2))
    assert node.load(entry(1), entry(2)) == ["m1", "m2"]
    assert node.accept(entry(2)) == []
    assert node.policy.last_seq == 2


def test_a_hint_that_is_not_the_next_seq_makes_the_owner_read_the_outbox(node: Node) -> None:
    """C38: the commit in between is not known yet."""
    assert node.accept(entry(2)) == []
    assert node.rereads() == 1
    assert node.accept(entry(3)) == []
    assert node.rereads() == 1, "one at a time"
    assert node.reload(entry(1), entry(2), entry(3), last_seq=3) == ["m1", "m2", "m3"]
    assert node.accept(entry(4)) == ["m4"]


def test_a_hint_with_a_gap_before_loading_makes_the_owner_read_the_outbox() -> None:
    """C38: something else was committed between the load and the hint; it may have to go first."""
    node = Node()
    node.accept(entry(3, path=PATH))
    assert node.load(entry(1), last_seq=1) == ["m1"]
    assert node.rereads() == 1
    assert node.reload(entry(2, path=PATH, is_delete=True), entry(3, path=PATH), last_seq=3) == ["m2"]
    assert node.ack("m2") == ["m3"]


def test_a_change_by_somebody_else_before_loading_is_read_after_it() -> None:
    """A redelivery between the load and the start of the session is not lost."""
    node = Node()
    node.do(node.policy.reread())
    assert node.rereads() == 0
    node.load(entry(1, parked=True, body=False))
    assert node.rereads() == 1
    assert node.reload(entry(1), last_seq=2) == []
    assert node.fetches() == [(("k1", 1),)]


def test_a_hint_that_came_while_reading_and_is_newer_is_sent_after_it(node: Node) -> None:
    node.do(node.policy.reread())
    assert node.accept(entry(2)) == []
    assert node.reload(entry(1), last_seq=1) == ["m1", "m2"]
    assert node.rereads() == 1


def test_a_hint_that_came_while_reading_and_leaves_a_gap_makes_it_read_again(node: Node) -> None:
    node.do(node.policy.reread())
    node.accept(entry(5))
    node.reload(entry(1), last_seq=1)
    assert node.rereads() == 2
    assert node.policy.state_of("k5") is None, "what lies between may have to go first"


def test_a_change_that_is_told_while_reading_is_read_again(node: Node) -> None:
    """The answer on its way may be older than the change."""
    node.do(node.policy.reread())
    node.do(node.policy.reread())
    assert node.rereads() == 1
    node.reload(last_seq=0)
    assert node.rereads() == 2
    node.reload(last_seq=0)
    assert node.rereads() == 2


def test_what_is_missing_from_the_outbox_is_forgotten(node: Node) -> None:
    """A purge by an operator: not sent again, its slot is free."""
    node.accept(entry(1))
    node.write()
    node.do(node.policy.reread())
    node.reload(last_seq=1)
    assert node.policy.in_flight == 0
    assert node.wait(1000) == []
    assert node.ack("m1") == []
    assert node.ignored() == ["unknown_message"]


def test_what_ended_while_reading_does_not_come_back(node: Node) -> None:
    """The answer may be older than the acknowledgement."""
    node.accept(entry(1))
    node.do(node.policy.reread())
    node.ack("m1")
    assert node.reload(entry(1), last_seq=1) == []
    assert node.policy.state_of("k1") is None


def test_a_reread_neither_doubles_nor_recalls_what_is_in_flight(node: Node) -> None:
    node.accept(entry(1))
    node.do(node.policy.reread())
    assert node.reload(entry(1), last_seq=1) == []
    assert node.policy.in_flight == 1
    assert node.ack("m1") == []
    assert len(node.records(Settle)) == 1


def test_a_reread_that_failed_is_tried_at_the_next_deadline(node: Node) -> None:
    """C25: an absent store delays, it loses nothing."""
    node.accept(entry(2))
    node.policy.read_failed()
    node.do(node.policy.deadline(node.now + 1, 0))
    assert node.rereads() == 2
    node.do(node.policy.deadline(node.now + 2, 0))
    assert node.rereads() == 2, "one at a time"
    assert node.reload(entry(1), entry(2), last_seq=2) == ["m1", "m2"]
    node.do(node.policy.deadline(node.now + 3, 0))
    assert node.rereads() == 2


def test_a_reread_that_failed_is_tried_at_the_next_gap(node: Node) -> None:
    node.accept(entry(2))
    node.policy.read_failed()
    node.accept(entry(3))
    assert node.rereads() == 2
    assert node.reload(entry(1), entry(2), entry(3), last_seq=3) == ["m1", "m2", "m3"]


# Reading in portions


def test_sending_starts_when_all_portions_are_loaded() -> None:
    """C28: so that order and priority hold over all of a backlog."""
    node = Node()
    assert node.load(entry(1), entry(2), last_seq=9, through_seq=2) == []
    assert node.load(entry(5), entry(6, priority=1), last_seq=12, through_seq=6) == []
    assert node.portions() == [LoadOn(2, 9), LoadOn(6, 9)]
    assert node.policy.last_seq is None
    assert node.load(entry(9), last_seq=14) == ["m6", "m1", "m2", "m5", "m9"]
    assert node.policy.last_seq == 9, "what came after the first portion is not known to be complete"


def test_hints_that_came_while_loading_follow_on_it() -> None:
    """C38: a newer version takes the older one's place, and one that was loaded as well is not doubled."""
    node = Node()
    node.load(entry(1, "a", version=1), last_seq=2, through_seq=1)
    node.accept(entry(3, "a", version=2))
    node.accept(entry(4))
    assert node.load(entry(2), entry(3, "a", version=2), last_seq=4) == ["m2", "m3", "m4"]
    assert node.rereads() == 0
    assert node.policy.last_seq == 4


def test_a_hint_does_not_bring_back_what_a_newer_row_has_replaced() -> None:
    """Invariant 2."""
    node = Node()
    node.load(entry(1), last_seq=1, through_seq=1)
    node.accept(entry(2, "a", version=1))
    assert node.load(entry(5, "a", version=3), last_seq=5) == ["m1", "m5"]


def test_loading_goes_on_where_it_was_when_the_store_is_back() -> None:
    """C25: what is missed meanwhile is read afterwards."""
    node = Node()
    node.load(entry(1), last_seq=3, through_seq=1)
    node.accept(entry(4))
    node.policy.read_failed()
    assert node.sent(node.policy.deadline(node.now + 1, 0)) == []
    assert node.portions() == [LoadOn(1, 3), LoadOn(1, 3)]
    node.do(node.policy.deadline(node.now + 2, 0))
    assert len(node.portions()) == 2, "one at a time"
    assert node.load(entry(2), last_seq=4) == ["m1", "m2"]
    assert node.rereads() == 1, "the hint was forgotten"


def test_what_expires_while_a_backlog_is_loaded_ends() -> None:
    """C19."""
    node = Node()
    node.load(entry(1, expires_at=node.now + 5), entry(2), last_seq=3, through_seq=2)
    assert node.wait(6) == []
    assert [end.reason for end in node.records(End)] == ["expired"]
    assert node.load(entry(3), last_seq=3) == ["m2", "m3"]


def test_a_reread_in_portions_forgets_what_none_of_them_shows(node: Node) -> None:
    for seq in range(1, 5):
        node.accept(entry(seq))
    node.do(node.policy.reread())
    node.ack("m4")
    node.reload(entry(1), entry(2), last_seq=6, through_seq=2)
    assert node.policy.state_of("k3") is not None
    assert node.portions() == [Reread(), Reread(2)]
    assert node.reload(entry(4), entry(6), last_seq=7) == ["m6"]
    assert node.policy.state_of("k3") is None, "purged"
    assert node.policy.state_of("k4") is None, "acknowledged while it was read"
    assert node.policy.last_seq == 6


def test_a_reread_in_portions_that_fails_begins_anew(node: Node) -> None:
    node.accept(entry(2))
    node.reload(entry(1), last_seq=2, through_seq=1)
    node.policy.read_failed()
    node.do(node.policy.deadline(node.now + 1, 0))
    assert node.portions() == [Reread(), Reread(1), Reread()]


def test_what_is_read_and_told_as_well_has_its_body_from_what_was_told(node: Node) -> None:
    """Rows are read without their bodies; those that are told meanwhile need not be fetched."""
    node.do(node.policy.reread())
    node.accept(entry(1))
    node.accept(entry(2))
    assert node.reload(entry(1, body=False), entry(2, body=False), last_seq=2) == ["m1", "m2"]
    opening = Node()
    opening.accept(entry(2))
    assert opening.load(entry(1), entry(2, body=False), last_seq=2) == ["m1", "m2"]
    assert node.fetches() == opening.fetches() == []


def test_bodies_told_while_rows_are_read_are_bounded_too() -> None:
    node = Node(PolicySettings(window_messages=1, held_bytes=2000))
    node.load()
    told = [entry(seq, size_bytes=800) for seq in (1, 2, 3, 4)]
    node.do(node.policy.reread())
    for one in told:
        node.accept(one)
    read = [entry(seq, size_bytes=800, body=False) for seq in (1, 2, 3, 4)]
    assert node.reload(*read, last_seq=4) == ["m1"]
    assert sum(one.size_bytes for one in read if one.body is not None) == 1600


def test_a_change_told_by_its_seq_is_read_again_unless_hints_tell_it(node: Node) -> None:
    """While a large backlog is read, hints go on; they must not make it be read for ever."""
    node.do(node.policy.reread())
    node.accept(entry(2))
    node.do(node.policy.changed_through(2))
    assert node.reload(entry(1), last_seq=1) == ["m1", "m2"]
    assert node.rereads() == 1
    node.do(node.policy.changed_through(2))
    assert node.rereads() == 1
    node.do(node.policy.changed_through(3))
    assert node.rereads() == 2
    node.do(node.policy.changed_through(4))
    node.reload(entry(1), entry(2), last_seq=3)
    assert node.rereads() == 3, "the fourth is not known yet"


# Acknowledgements


def test_an_ack_settles_the_seq_it_belongs_to(node: Node) -> None:
    node.accept(entry(1, version=5))
    node.ack("m1")
    assert node.records(Settle) == [Settle(NODE, EPOCH, "k1", 1, 5, "m1", node.wall_ms, "ack-trace")]
    assert node.policy.in_flight == 0
    assert node.policy.next_deadline() is None


def test_it_knows_what_waits_and_what_was_sent_and_is_over(node: Node) -> None:
    """C24: what else comes as a parent is a cloud program's request."""
    node.accept(entry(1))
    assert node.policy.knows("m1")
    node.ack("m1")
    assert node.policy.knows("m1")
    assert not node.policy.knows("a-request")


def test_an_ack_that_comes_twice_or_is_of_an_unknown_id_is_ignored_and_counted(node: Node) -> None:
    """C24."""
    node.accept(entry(1))
    node.ack("m1")
    node.ack("m1")
    node.ack("never-heard-of")
    node.nack("never-heard-of")
    assert len(node.records(Settle)) == 1
    assert node.ignored() == ["unknown_message"] * 3


def test_an_ack_settles_what_a_former_owner_sent() -> None:
    """C24: it waits for its turn here, or its body is on its way, or it is parked."""
    node = Node(PolicySettings(window_messages=1))
    node.load(entry(1), entry(2), entry(3, parked=True))
    node.ack("m2")
    node.ack("m3")
    assert [op.seq for op in node.records(Settle)] == [2, 3]
    assert node.ack("m1") == []
    fetching = Node()
    fetching.load(entry(1, body=False))
    fetching.ack("m1")
    assert fetching.bodies(("k1", 1, b"m1")) == []
    assert fetching.accept(entry(2)) == ["m2"]


def test_an_ack_is_recorded_although_the_bytes_were_not_reported(node: Node) -> None:
    node.accept(entry(1))
    node.ack("m1")
    node.write()
    assert node.records(Attempt) == []


# Resending


def test_the_timer_starts_when_the_bytes_are_written(node: Node) -> None:
    """C20: nothing is resent while its frame is still queued."""
    node.accept(entry(1))
    assert node.policy.next_deadline() is None
    assert node.wait(3600) == []
    node.write()
    assert node.policy.next_deadline() == node.now + 5.0
    assert node.wait(4.9) == []
    assert node.wait(0.2) == ["m1"]


def test_a_message_sent_again_waits_again_for_its_bytes(node: Node) -> None:
    """C20."""
    node.accept(entry(1))
    node.write()
    assert node.wait(5) == ["m1"]
    assert node.wait(3600) == []
    node.write()
    assert node.wait(7.5) == ["m1"]
    assert node.numbers == [1, 2, 3]
    sends = [action for action in node.actions if isinstance(action, Send)]
    assert [action.attempt for action in sends] == [1, 2, 3]
    assert [action.repeats for action in sends] == [0, 1, 2], "the connector may still have it on its way"


def test_bytes_reported_cumulatively_start_every_timer_up_to_them(node: Node) -> None:
    for seq in (1, 2, 3):
        node.accept(entry(seq))
    node.write(through=2)
    assert [op.message_id for op in node.records(Attempt)] == ["m1", "m2"]
    assert node.wait(5) == ["m1", "m2"]


def test_intervals_grow_up_to_a_bound() -> None:
    """C20."""
    node = Node(PolicySettings(ack_seconds=5, ack_factor=2, ack_most_seconds=30, most_attempts=99))
    node.load(entry(1))
    intervals = list[float]()
    for _ in range(5):
        node.write()
        at = node.policy.next_deadline()
        assert at is not None
        intervals.append(at - node.now)
        node.wait(intervals[-1])
    assert intervals == [5, 10, 20, 30, 30]


def test_a_link_that_is_slow_to_acknowledge_is_not_filled_with_copies() -> None:
    """C20, next to it: messages wait behind each other in the buffers of a narrow link. Once some were
    acknowledged, the others wait for as long as that took and longer, also those written before."""
    node = Node(PolicySettings(jitter=0.0))
    node.load(*(entry(seq) for seq in range(1, 9)))
    node.write()
    copies = list[str]()
    for seq in range(1, 9):
        copies += node.wait(4.0)
        node.ack(f"m{seq}")
    assert copies == []
    node.accept(entry(9))
    node.write()
    assert node.wait(32.0) == []
    assert node.wait(60.0) == ["m9"]


def test_one_slow_acknowledgement_is_forgotten() -> None:
    """C20: quick ones bring the interval back to five seconds."""
    node = Node(PolicySettings(jitter=0.0))
    node.load(entry(1))
    node.write()
    node.wait(4.0)
    node.ack("m1")
    for seq in range(2, 40):
        node.accept(entry(seq))
        node.write()
        node.wait(0.1)
        node.ack(f"m{seq}")
    node.accept(entry(40))
    node.write()
    assert node.wait(4.9) == []
    assert node.wait(0.2) == ["m40"]


def test_an_acknowledgement_after_a_pause_counts_from_its_end(node: Node) -> None:
    """C20: the time for which reading was stopped says nothing about the link."""
    node.load(entry(1))
    node.write()
    node.policy.paused(True, node.now)
    node.wait(600.0)
    node.policy.paused(False, node.now)
    node.ack("m1")
    node.accept(entry(2))
    node.write()
    assert node.wait(5.1) == ["m2"]


def test_intervals_are_spread() -> None:
    """C20: jittered, so that a node's messages do not come back as one."""
    spreads = iter([0.0, 0.5, 0.999])
    node = Node(PolicySettings(ack_seconds=10, jitter=0.2), lambda: next(spreads))
    node.load(entry(1), entry(2), entry(3))
    node.write()
    deadlines = list[float]()
    for _ in range(3):
        at = node.policy.next_deadline()
        assert at is not None
        deadlines.append(round(at - 1000.0, 2))
        node.now = at
        node.do(node.policy.deadline(at, 0))
    assert deadlines == [10.0, 11.0, 12.0]


def test_every_full_interval_is_counted_in_the_outbox(node: Node) -> None:
    """C20: the count is stored."""
    node.accept(entry(1))
    for _ in range(3):
        node.write()
        node.wait(60)
    assert [op.attempts for op in node.records(CountUnacknowledged)] == [1, 2, 3]


def test_ten_intervals_without_ack_park_with_a_reason(node: Node) -> None:
    """C20."""
    node.accept(entry(1))
    for attempt in range(10):
        node.write()
        sent = node.wait(61)
        assert sent == (["m1"] if attempt < 9 else [])
    (park,) = node.records(Park)
    assert (park.key, park.seq, park.refused) == ("k1", 1, False)
    assert park.reason == "not acknowledged in 10 attempts"
    assert node.policy.state_of("k1") == EntryState.PARKED
    assert node.policy.in_flight == 0
    assert node.wait(3600) == []


def test_a_link_cut_does_not_count_but_what_was_counted_goes_on() -> None:
    """C20: the next session goes on from the stored count, with its longer interval."""
    first = Node()
    first.load(entry(1))
    first.write()
    first.wait(4.9)
    first.do(first.policy.closed(0))
    assert first.records(CountUnacknowledged) == []
    second = Node(PolicySettings(ack_factor=2))
    second.load(entry(1, attempts=3))
    second.write()
    assert second.policy.next_deadline() == second.now + 40
    second.wait(40)
    assert [op.attempts for op in second.records(CountUnacknowledged)] == [4]


def test_other_keys_go_on_while_one_is_silent() -> None:
    """C20."""
    node = Node(PolicySettings(window_messages=2))
    node.load(entry(1), entry(2), entry(3), entry(4))
    node.write()
    assert [node.ack(f"m{seq}") for seq in (2, 3, 4)] == [["m3"], ["m4"], []]
    assert node.wait(5) == ["m1"]


def test_a_parked_message_gives_its_slot_to_others() -> None:
    """C20."""
    node = Node(PolicySettings(window_messages=1, most_attempts=1))
    node.load(entry(1), entry(2))
    node.write()
    assert node.wait(5) == ["m2"]


def test_a_parked_message_is_not_sent_after_loading() -> None:
    node = Node()
    assert node.load(entry(1, parked=True), entry(2)) == ["m2"]


def test_a_newer_version_takes_the_place_of_a_parked_one(node: Node) -> None:
    """C20."""
    node.accept(entry(1, "k"))
    node.nack("m1")
    assert node.accept(entry(2, "k")) == ["m2"]


def test_a_redelivery_is_sent_after_the_outbox_was_read(node: Node) -> None:
    """C20: `Redeliver`, or an equal publish, un-parks; the count starts anew."""
    node.accept(entry(1))
    node.nack("m1")
    node.do(node.policy.reread())
    assert node.reload(entry(1, body=False), last_seq=2) == []
    assert node.fetches() == [(("k1", 1),)]
    assert node.bodies(("k1", 1, b"m1")) == ["m1"]
    node.write()
    node.wait(5)
    assert [op.attempts for op in node.records(CountUnacknowledged)] == [1]


def test_an_equal_publish_of_what_waits_or_is_in_flight_doubles_nothing(node: Node) -> None:
    """C13."""
    node.accept(entry(1))
    assert node.sent(node.policy.republished("k1", 1, node.now, 0)) == []
    assert node.sent(node.policy.republished("k1", 99, node.now, 0)) == []
    assert node.sent(node.policy.republished("unknown", 1, node.now, 0)) == []
    assert node.policy.in_flight == 1


def test_an_equal_publish_of_what_waits_for_the_store_is_tried_again() -> None:
    """C13: equal, pending, not in flight is sent again."""
    node = Node()
    node.load(entry(1, body=False))
    node.policy.fetch_failed([("k1", 1)])
    node.sent(node.policy.republished("k1", 1, node.now, 0))
    assert node.fetches() == [(("k1", 1),)] * 2


# Negative acknowledgements


def test_a_negative_ack_parks_at_once_with_the_edges_text(node: Node) -> None:
    """C21."""
    node.accept(entry(1))
    node.write()
    node.nack("m1", "disk full")
    (park,) = node.records(Park)
    assert (park.reason, park.refused, park.traceparent) == (
        "refused by the edge: disk full",
        True,
        "nack-trace",
    )
    assert node.policy.state_of("k1") == EntryState.PARKED
    assert node.wait(3600) == []


def test_a_negative_ack_frees_the_slot() -> None:
    """C21."""
    node = Node(PolicySettings(window_messages=1))
    node.load(entry(1), entry(2))
    assert node.nack("m1") == ["m2"]


def test_a_negative_ack_that_comes_twice_is_ignored(node: Node) -> None:
    """C24."""
    node.accept(entry(1))
    node.nack("m1")
    node.nack("m1")
    assert len(node.records(Park)) == 1
    assert node.ignored() == ["parked"]


def test_a_negative_ack_of_a_superseded_version_leaves_the_newer_alone(node: Node) -> None:
    """C23."""
    node.accept(entry(1, "k"))
    node.accept(entry(2, "k"))
    node.nack("m1")
    assert node.records(Park) == []
    assert node.ignored() == ["superseded"]
    assert node.policy.state_of("k") == EntryState.IN_FLIGHT
    assert node.policy.in_flight == 1


def test_a_negative_ack_while_the_body_is_on_its_way_parks_too() -> None:
    node = Node()
    node.load(entry(1, body=False))
    node.nack("m1")
    assert node.bodies(("k1", 1, b"m1")) == []
    assert node.policy.state_of("k1") == EntryState.PARKED
    assert node.accept(entry(2)) == ["m2"], "nothing waits for the body any more"


# Window


def test_never_more_messages_in_flight_than_the_window_has() -> None:
    """C22."""
    node = Node()
    assert len(node.load(*(entry(seq) for seq in range(1, 101)))) == 64
    assert node.policy.in_flight == 64
    assert node.ack("m5") == ["m65"]


def test_never_more_bytes_in_flight_than_the_window_has() -> None:
    """C22."""
    node = Node(PolicySettings(window_bytes=1000))
    assert node.load(entry(1, size_bytes=400), entry(2, size_bytes=600), entry(3, size_bytes=1)) == [
        "m1",
        "m2",
    ]
    assert node.policy.in_flight_bytes == 1000
    assert node.ack("m1") == ["m3"]


def test_one_message_always_may_however_large() -> None:
    """C22."""
    node = Node(PolicySettings(window_bytes=1000, held_bytes=10**6))
    assert node.load(entry(1, size_bytes=5000), entry(2, size_bytes=1)) == ["m1"]
    assert node.ack("m1") == ["m2"]


def test_a_large_message_is_not_overtaken_by_smaller_ones() -> None:
    """The order holds though the window has room for the smaller."""
    node = Node(PolicySettings(window_bytes=1000))
    assert node.load(entry(1, size_bytes=500), entry(2, size_bytes=600), entry(3, size_bytes=10)) == ["m1"]
    assert node.ack("m1") == ["m2", "m3"]


@given(st.lists(st.integers(1, 900), min_size=1, max_size=40), st.randoms(use_true_random=False))
def test_the_window_holds_and_everything_is_sent_once(sizes: list[int], random: object) -> None:
    """C22, whatever the sizes."""
    node = Node(PolicySettings(window_messages=4, window_bytes=1000, held_bytes=10**6))
    waiting = node.load(*(entry(seq, size_bytes=size) for seq, size in enumerate(sizes, 1)))
    sent = list(waiting)
    while waiting:
        assert node.policy.in_flight == len(waiting) <= 4
        assert len(waiting) == 1 or node.policy.in_flight_bytes <= 1000
        acked = waiting.pop(len(sent) % len(waiting))
        more = node.ack(acked)
        waiting += more
        sent += more
    assert sent == [f"m{seq}" for seq in range(1, len(sizes) + 1)]
    assert node.policy.in_flight_bytes == 0


def test_the_window_counts_what_it_holds() -> None:
    window = Window(2, 100)
    assert window.has_room_for(10**9)
    window.add(entry(1, size_bytes=60))
    assert window.has_room_for(40)
    assert not window.has_room_for(41)
    window.add(entry(2, size_bytes=10))
    assert not window.has_room_for(1)
    window.remove(entry(1, size_bytes=60))
    assert (window.messages, window.bytes) == (1, 10)


# Newer versions


def test_a_newer_version_of_a_key_in_flight_is_sent_at_once(node: Node) -> None:
    node.accept(entry(1, "k", version=5))
    assert node.accept(entry(2, "k", version=6)) == ["m2"]
    assert node.policy.in_flight == 2


def test_after_a_newer_version_was_sent_the_older_is_never_sent_again(node: Node) -> None:
    """C23: on any timer."""
    node.accept(entry(1, "k", version=5))
    node.write()
    node.wait(3)
    node.accept(entry(2, "k", version=6))
    sent = list[str]()
    for _ in range(12):
        node.write()
        sent += node.wait(61)
    assert set(sent) == {"m2"}
    assert {op.message_id for op in node.records(CountUnacknowledged)} == {"m2"}


def test_the_slot_of_a_superseded_version_is_freed_by_its_ack() -> None:
    """C23: the ack of 5 is recorded as that of 5 and leaves 6 pending."""
    node = Node(PolicySettings(window_messages=2))
    node.load(entry(1, "k", version=5))
    node.accept(entry(2, "k", version=6))
    node.accept(entry(3))
    assert node.ack("m1") == ["m3"]
    (settle,) = node.records(Settle)
    assert (settle.seq, settle.version) == (1, 5)
    assert node.policy.state_of("k") == EntryState.IN_FLIGHT


def test_the_slot_of_a_superseded_version_is_freed_after_one_interval() -> None:
    node = Node(PolicySettings(window_messages=2))
    node.load(entry(1, "k"))
    node.write()
    node.accept(entry(2, "k"))
    assert node.accept(entry(3)) == []
    assert node.wait(5) == ["m3"]
    assert node.records(CountUnacknowledged) == []


def test_a_superseded_version_keeps_its_slot_while_nothing_is_heard_of_the_edge() -> None:
    """What stands before a broken network comes at once when that is whole: never more than the window,
    since a stock edge drops the oldest of what its queue cannot hold. Once it is heard, intervals count."""
    node = Node(PolicySettings(window_messages=2))
    node.load(entry(1, "k"))
    node.write()
    written_at = node.now
    node.accept(entry(2, "k"))
    node.write()
    assert node.accept(entry(3)) == []
    for at in (written_at + 6, written_at + 12, written_at + 60):
        sent = node.sent(node.policy.deadline(at, node.wall_ms, written_at))
        assert "m3" not in sent
        assert (deadline := node.policy.next_deadline()) is not None
        assert at < deadline <= at + 60
    heard = node.policy.deadline(written_at + 120, node.wall_ms, written_at + 61)
    assert "m3" in node.sent(heard)


def test_the_ack_of_the_newer_version_leaves_the_older_its_slot(node: Node) -> None:
    """Either ack frees its own; the older's goes by its interval at the latest."""
    node.accept(entry(1, "k"))
    node.accept(entry(2, "k"))
    node.write()
    node.ack("m2")
    assert node.policy.in_flight == 1
    node.wait(5)
    assert node.policy.in_flight == 0
    assert len(node.records(Settle)) == 1


def test_a_waiting_older_version_is_never_sent() -> None:
    """Invariant 2."""
    node = Node(PolicySettings(window_messages=1))
    node.load(entry(1), entry(2, "k"))
    node.accept(entry(3, "k"))
    assert node.ack("m1") == ["m3"]
    assert node.ack("m3") == []


# Two objects under one resource path


def pair(*, parked: bool = False) -> tuple[Entry, Entry]:
    """The delete of one object, the creation of the next."""
    return (
        entry(1, "uid1", path=PATH, is_delete=True, parked=parked),
        entry(2, "uid2", path=PATH),
    )


def test_one_of_a_path_is_in_flight_at_a_time_in_order_of_seq() -> None:
    """C15."""
    node = Node()
    assert node.load(*pair(), entry(3)) == ["m1", "m3"]
    blocker = node.policy.blocked_by("uid2")
    assert blocker
    assert blocker.key == "uid1"
    assert node.policy.blocked_by("uid1") is None
    assert node.policy.blocked_by("nothing") is None
    assert node.ack("m1") == ["m2"]
    assert node.policy.blocked_by("uid2") is None


def test_delete_and_create_five_times_over_go_one_after_the_other(node: Node) -> None:
    """C15: every delete goes, and the last object; those between are deleted before their turn comes."""
    sent = list[str]()
    for seq in range(1, 11):
        sent += node.accept(entry(seq, f"uid{seq // 2}", path=PATH, is_delete=bool(seq % 2)))
    assert sent == ["m1"]
    due = ["m1", "m3", "m5", "m7", "m9", "m10"]
    for message_id in due:
        node.write()
        assert node.policy.in_flight == 1
        sent += node.ack(message_id)
    assert sent == due
    assert node.policy.queued == 0


@pytest.mark.parametrize("versions", [(1, 2), (2, 1)])
def test_an_object_that_takes_the_path_is_sent_at_once_and_the_former_never_again(
    node: Node, versions: tuple[int, int]
) -> None:
    """C51: whatever their versions: the outbox has decided. The former one's slot is free with its ack."""
    node.accept(entry(1, "uid1", path=PATH, version=versions[0]))
    assert node.accept(entry(2, PATH, path=PATH, version=versions[1])) == ["m2"]
    assert node.policy.in_flight == 2
    node.write()
    assert node.policy.state_of("uid1") is None
    node.ack("m1")
    assert node.policy.in_flight == 1
    assert node.wait(5) == ["m2"]


@pytest.mark.parametrize("parked", [False, True])
def test_what_waits_under_the_path_of_a_later_object_is_not_sent(parked: bool) -> None:
    """C51: nor ended once more: it ended when the later one was accepted."""
    node = Node(PolicySettings(window_messages=1))
    node.load(entry(1), entry(2, "uid1", path=PATH, parked=parked))
    node.accept(entry(3, PATH, path=PATH))
    assert node.ack("m1") == ["m3"]
    assert node.ack("m3") == []
    assert (node.policy.queued, node.records(End)) == (0, [])


def test_what_is_told_of_an_object_after_the_one_that_took_its_path_is_old() -> None:
    """C51: the load has met the later one beyond the hint."""
    node = Node()
    node.accept(entry(2, "uid1", path=PATH))
    assert node.load(entry(1), last_seq=1, through_seq=1) == []
    assert node.load(entry(3, PATH, path=PATH), last_seq=3) == ["m1", "m3"]
    assert node.policy.state_of("uid1") is None


def test_the_later_waits_while_the_earlier_is_sent_again() -> None:
    """C15."""
    node = Node()
    node.load(*pair())
    node.write()
    assert node.wait(5) == ["m1"]


def test_sending_the_later_ends_an_earlier_that_is_parked() -> None:
    """C15: a late resend of the delete never destroys the new object."""
    node = Node()
    assert node.load(*pair(parked=True)) == ["m2"]
    (end,) = node.records(End)
    assert (end.key, end.seq) == ("uid1", 1)
    assert end.reason == "a later object of its path follows"
    assert node.policy.state_of("uid1") is None
    end_at = next(i for i, a in enumerate(node.actions) if isinstance(a, Record))
    send_at = next(i for i, a in enumerate(node.actions) if isinstance(a, Send))
    assert end_at < send_at


@pytest.mark.parametrize("how", ["nack", "silence"])
def test_the_later_goes_when_the_earlier_is_parked(how: str) -> None:
    """C15, C20."""
    node = Node(PolicySettings(most_attempts=1))
    node.load(*pair())
    node.write()
    assert (node.nack("m1") if how == "nack" else node.wait(5)) == ["m2"]
    assert [op.key for op in node.records(End)] == ["uid1"]


def test_the_later_waits_until_the_earlier_ones_acknowledgement_is_durable() -> None:
    """C15: a restart that forgets the acknowledgement sends the delete again, before the new object."""
    node = Node(records_held=True)
    assert node.load(*pair(), entry(3)) == ["m1", "m3"]
    assert node.ack("m1") == []
    blocker = node.policy.blocked_by("uid2")
    assert blocker
    assert blocker.key == "uid1"
    assert node.commit(*node.records(Settle)) == ["m2"]
    assert node.policy.blocked_by("uid2") is None


def test_the_later_waits_until_the_earlier_ones_parking_and_end_are_durable() -> None:
    """C15: a restart that forgets them may be asked to redeliver the delete."""
    node = Node(records_held=True)
    node.load(*pair())
    assert node.nack("m1") == []
    assert node.commit(*node.records(Park)) == []
    (end,) = node.records(End)
    assert end.key == "uid1"
    assert node.commit(end) == ["m2"]


def test_a_newer_version_of_an_object_waits_for_no_record() -> None:
    """One row per object: the newer version has taken the place of the older in the outbox."""
    node = Node(records_held=True)
    node.load(entry(1, "uid1", path=PATH))
    node.ack("m1")
    assert node.accept(entry(2, "uid1", path=PATH)) == ["m2"]
    node.accept(entry(3, "uid1", path=PATH, is_delete=True))
    node.ack("m2")  # superseded in flight
    assert node.ack("m3") == []
    assert node.accept(entry(4, "uid2", path=PATH)) == []
    assert node.commit(*node.records(Settle)) == ["m4"]


def test_a_record_of_what_the_outbox_no_longer_has_frees_nothing_twice() -> None:
    node = Node(records_held=True)
    node.load(*pair())
    node.ack("m1")
    node.do(node.policy.reread())
    assert node.reload(entry(2, "uid2", path=PATH), last_seq=2) == []
    (settle,) = node.records(Settle)
    assert node.commit(settle) == ["m2"]
    assert node.commit(settle) == []


def test_an_earlier_that_is_unparked_in_time_goes_first() -> None:
    """C15: at its old place."""
    node = Node(PolicySettings(window_messages=1))
    later = entry(3, "uid2", path=PATH)
    node.load(entry(1, "uid1", path=PATH, is_delete=True, parked=True, body=False), entry(2), later)
    node.do(node.policy.reread())
    node.reload(entry(1, "uid1", path=PATH, is_delete=True, body=False), entry(2), later, last_seq=4)
    assert node.ack("m2") == []
    assert node.fetches()[-1] == (("uid1", 1),)
    assert node.bodies(("uid1", 1, b"m1")) == ["m1"]
    assert node.ack("m1") == ["m3"]


def test_a_newer_version_of_the_earlier_takes_the_last_place() -> None:
    """C51: its seq is the highest of the path then, and what was between has ended."""
    node = Node()
    node.load(*pair())
    assert node.accept(entry(3, "uid1", path=PATH)) == ["m3"]
    assert node.ack("m1") == []
    assert node.ack("m3") == []
    assert node.policy.queued == 0


# Bodies


def test_bodies_are_fetched_when_their_turn_comes() -> None:
    node = Node(PolicySettings(window_messages=2))
    assert node.load(*(entry(seq, body=False) for seq in range(1, 6))) == []
    assert node.fetches() == [(("k1", 1), ("k2", 2))]
    assert node.bodies(("k1", 1, b"m1"), ("k2", 2, b"m2")) == ["m1", "m2"]
    node.ack("m1")
    assert node.fetches()[1:] == [(("k3", 3), ("k4", 4))]


def test_no_more_bytes_are_fetched_than_the_window_takes() -> None:
    node = Node(PolicySettings(window_bytes=250))
    node.load(*(entry(seq, body=False) for seq in range(1, 6)))
    assert node.fetches() == [(("k1", 1), ("k2", 2))]


def test_nobody_overtakes_a_message_whose_body_is_on_its_way() -> None:
    node = Node()
    assert node.load(entry(1, body=False), entry(2)) == []
    assert node.bodies(("k1", 1, b"m1")) == ["m1", "m2"]


def test_bodies_above_the_bound_of_memory_are_let_go_and_fetched_again() -> None:
    """C18: memory stays under the cap."""
    node = Node(PolicySettings(window_messages=1, held_bytes=250))
    node.load()
    for seq in range(1, 5):
        node.accept(entry(seq))
    assert node.ack("m1") == ["m2"]
    assert node.ack("m2") == []
    assert node.fetches() == [(("k3", 3),)]


def test_a_message_that_moved_on_before_its_body_came_is_forgotten() -> None:
    node = Node()
    node.load(entry(1, body=False), entry(2))
    assert node.bodies(("k1", 1, None)) == ["m2"]
    assert node.policy.state_of("k1") is None


def test_a_body_that_comes_after_a_newer_version_is_not_sent() -> None:
    """Invariant 2."""
    node = Node()
    node.load(entry(1, "k", body=False))
    assert node.accept(entry(2, "k")) == ["m2"]
    assert node.bodies(("k", 1, b"m1")) == []


def test_a_store_that_does_not_answer_is_asked_again() -> None:
    node = Node()
    node.load(entry(1, body=False))
    node.policy.fetch_failed([("k1", 1), ("gone", 3)])
    assert node.sent(node.policy.deadline(node.now + 1, 0)) == []
    assert node.fetches() == [(("k1", 1),)] * 2
    assert node.bodies(("k1", 1, b"m1")) == ["m1"]


# Expiry


def test_an_expired_message_is_never_sent() -> None:
    """C19."""
    node = Node(PolicySettings(window_messages=1))
    node.load(entry(1), entry(2, expires_at=1010.0), entry(3))
    assert node.wait(9.9) == []
    node.now = 1010.0
    assert node.ack("m1") == ["m3"]
    (end,) = node.records(End)
    assert (end.key, end.seq, end.reason) == ("k2", 2, "expired")


def test_what_has_expired_before_loading_is_never_sent() -> None:
    """C19."""
    node = Node()
    assert node.load(entry(1, expires_at=999.0)) == []
    assert [op.reason for op in node.records(End)] == ["expired"]


@pytest.mark.parametrize("state", ["waiting", "in flight", "parked", "fetching"])
def test_a_message_ends_at_its_expiry_wherever_it_stands(state: str) -> None:
    """C19: told at once, by the timer alone."""
    node = Node(PolicySettings(window_messages=1))
    if state == "waiting":
        node.load(entry(1), entry(2, expires_at=1010.0))
    else:
        node.load(
            entry(2, expires_at=1010.0, parked=state == "parked", body=state != "fetching"),
        )
    assert node.wait(20) == []
    assert [(op.seq, op.reason) for op in node.records(End)] == [(2, "expired")]
    assert node.policy.state_of("k2") is None
    assert node.policy.in_flight == (1 if state == "waiting" else 0)
    assert node.bodies(("k2", 2, b"m2")) == []


def test_the_expiry_of_a_superseded_version_ends_nothing(node: Node) -> None:
    """C19: the newer has its own."""
    node.accept(entry(1, "k", expires_at=1010.0))
    node.accept(entry(2, "k"))
    node.wait(60)
    assert node.records(End) == []
    assert node.policy.state_of("k") == EntryState.IN_FLIGHT


# Paused links


def test_while_reading_is_paused_no_timer_of_an_ack_runs(node: Node) -> None:
    """Its acks are in the socket that nobody reads."""
    node.accept(entry(1))
    node.write()
    node.policy.paused(True, node.now)
    assert node.wait(60) == []
    assert node.records(CountUnacknowledged) == []
    node.policy.paused(False, node.now)
    assert node.wait(4.9) == []
    assert node.wait(0.2) == ["m1"]


def test_a_pause_that_ends_gives_every_written_message_a_full_interval(node: Node) -> None:
    node.accept(entry(1))
    node.write()
    node.wait(4)
    node.policy.paused(True, node.now)
    node.wait(0.5)
    node.policy.paused(False, node.now)
    node.policy.paused(False, node.now)
    assert node.wait(4.9) == []
    assert node.wait(0.2) == ["m1"]


@pytest.mark.parametrize("written", [True, False])
def test_expiry_goes_on_through_a_pause(node: Node, written: bool) -> None:
    """C19: also of a message whose bytes were not yet written when the pause ended."""
    node.accept(entry(1, expires_at=1010.0))
    if written:
        node.write()
    node.policy.paused(True, node.now)
    node.policy.paused(False, node.now)
    node.wait(10)
    assert [op.reason for op in node.records(End)] == ["expired"]


def test_a_message_expires_during_a_pause(node: Node) -> None:
    """C19."""
    node.accept(entry(1, expires_at=1010.0))
    node.policy.paused(True, node.now)
    node.wait(10)
    assert [op.reason for op in node.records(End)] == ["expired"]


# Answers


def test_an_answer_ends_with_its_session(node: Node) -> None:
    """C40; everything else stays pending in the outbox (C27)."""
    node.accept(entry(1, is_answer=True))
    node.accept(entry(2))
    node.do(node.policy.closed(5))
    assert [(op.key, op.reason) for op in node.records(End)] == [("k1", "its session ended")]


def test_an_answer_is_sent_again_and_never_parked(node: Node) -> None:
    """C40: it expires instead."""
    node.accept(entry(1, is_answer=True, expires_at=1060.0))
    sent = list[str]()
    for _ in range(20):
        node.write()
        sent += node.wait(3)
    assert len(sent) > 1
    assert node.records(Park) == []
    assert node.records(CountUnacknowledged) == []
    assert [op.reason for op in node.records(End)] == ["expired"]


def test_answers_wait_for_no_object_of_their_path_nor_make_it_wait(node: Node) -> None:
    """C40: an edge acknowledges an answer only while the request still waits."""
    assert node.accept(entry(1, path=PATH, is_answer=True)) == ["m1"]
    assert node.accept(entry(2, path=PATH, is_answer=True)) == ["m2"]
    assert node.accept(entry(3, path=PATH)) == ["m3"]
    assert node.accept(entry(4, path=PATH, is_answer=True)) == ["m4"]


def test_an_answer_ends_no_parked_object_of_its_path() -> None:
    """C40, invariant 1."""
    node = Node()
    parked = [entry(seq, path=PATH, parked=True) for seq in (1, 2)]
    assert node.load(*parked, entry(3, path=PATH, is_answer=True)) == ["m3"]
    assert node.records(End) == []


def test_a_refused_answer_ends(node: Node) -> None:
    """C40: nobody waits for it any more."""
    node.accept(entry(1, is_answer=True))
    node.nack("m1", "no such request")
    assert [op.reason for op in node.records(End)] == ["refused: no such request"]
    assert node.records(Park) == []


# NO-ACK mode


def direct(node: Node, message_id: str = "d", size_bytes: int = 10) -> bool:
    actions = node.policy.direct(Message(id=message_id), size_bytes, node.now)
    node.do(actions or [])
    return actions is not None


def test_a_direct_message_is_sent_at_once_whatever_waits() -> None:
    """C26: never behind an ACK message; also before loading."""
    node = Node(PolicySettings(window_messages=1))
    assert direct(node)
    node.load(entry(1), entry(2))
    assert direct(node)
    assert [a.number for a in node.actions if isinstance(a, SendDirect)] == [1, 2]


def test_a_direct_message_is_sent_once_and_recorded_nowhere(node: Node) -> None:
    """C26: at most one send, never stored."""
    assert direct(node)
    node.write(direct=1)
    assert node.wait(3600) == []
    assert [type(action) for action in node.actions] == [SendDirect]


def test_the_direct_lane_is_bounded_in_messages() -> None:
    """C26: a full lane drops, and bytes in the socket make room."""
    node = Node(PolicySettings(direct_messages=2))
    assert [direct(node) for _ in range(3)] == [True, True, False]
    assert len(node.policy.direct_waiting) == 2
    node.write(through=0, direct=1)
    assert len(node.policy.direct_waiting) == 1
    assert [direct(node) for _ in range(2)] == [True, False]
    assert [a.number for a in node.actions if isinstance(a, SendDirect)] == [1, 2, 3]


def test_the_direct_lane_is_bounded_in_bytes_but_one_always_may() -> None:
    """C26."""
    node = Node(PolicySettings(direct_bytes=100))
    assert direct(node, size_bytes=5000)
    assert not direct(node, size_bytes=1)
    node.write(through=0, direct=1)
    assert direct(node, size_bytes=60)
    assert direct(node, size_bytes=40)
    assert not direct(node, size_bytes=1)


def test_the_lanes_count_apart(node: Node) -> None:
    node.accept(entry(1))
    direct(node)
    node.write(through=0, direct=1)
    assert node.policy.next_deadline() is None
    assert len(node.policy.direct_waiting) == 0


# Messages that no link carries


def test_a_message_that_no_link_carries_is_parked_and_those_behind_it_go() -> None:
    """C41: whether its size shows when it is loaded or came with a hint; it takes no room in the window."""
    settings = PolicySettings(max_body_bytes=3)
    node = Node(settings)
    node.load(entry(1, body=False), entry(2))
    assert node.bodies(("k1", 1, Withheld(4000, "too large to be sent: 4000 bytes"))) == ["m2"]
    told = entry(3)
    told.body = b"four"
    assert node.accept(told) == []
    assert node.accept(entry(4)) == ["m4"]
    parked = node.records(Park)
    assert [(op.key, op.cause, op.reason[:20]) for op in parked] == [
        ("k1", "unsendable", "too large to be sent"),
        ("k3", "unsendable", "too large to be sent"),
    ]
    assert node.policy.in_flight == 2


def test_an_answer_that_no_link_carries_ends() -> None:
    node = Node()
    node.load(entry(1, body=False, is_answer=True))
    assert node.bodies(("k1", 1, Withheld(4000, "too large"))) == []
    (end,) = node.records(End)
    assert end.reason == "unsendable: too large"


def test_what_turns_out_larger_than_its_row_says_counts_as_it_is() -> None:
    """C41: a body that found no room is asked for again by itself; a window that it fills holds the next."""
    node = Node(PolicySettings(window_bytes=1000))
    node.load(entry(1, body=False), entry(2, body=False), entry(3, body=False))
    assert node.bodies(("k1", 1, b"x" * 900), ("k2", 2, Withheld(900)), ("k3", 3, b"m3")) == ["m1"]
    fetches = node.fetches()
    assert fetches == [(("k1", 1), ("k2", 2), ("k3", 3)), (("k2", 2),)]
    assert node.bodies(("k2", 2, b"x" * 900)) == []
    node.write()
    assert node.ack("m1") == ["m2", "m3"]
    assert node.policy.in_flight_bytes == 1000
