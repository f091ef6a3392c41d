"""What the intake and the shares promise together, under any order of uploads, commits, links and time."""

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.shares import Amount, Shares
from services.dispatcher.upstream.upload_intake import IntakeBounds, PauseReads, Upload, UploadIntake

NODES = ("a", "b", "c", "d")
PER_NODE, TOTAL = Amount(5, 60), Amount(12, 150)


class IntakeMachine(RuleBasedStateMachine):
    """C46: nothing is lost unsaid, order per node, no share passed, and only who is in the way pauses."""

    def __init__(self) -> None:
        super().__init__()
        self.intake = UploadIntake(IntakeBounds(30.0, pause_messages=6, pause_bytes=100))
        self.shares = Shares(PER_NODE, TOTAL)
        self.now = 0.0
        self.place = 0
        self.epochs = dict.fromkeys(NODES, 1)
        self.linked = dict.fromkeys(NODES, True)
        self.paused: set[str] = set()
        self.waiting: dict[str, list[Upload]] = defaultdict(list)
        self.stored: dict[str, list[Upload]] = defaultdict(list)  # on disk

    def _carry_out(self, effects: list[PauseReads]) -> None:
        for one in effects:
            assert one.epoch == self.epochs[one.node_id]
            assert self.linked[one.node_id]
            assert one.paused != (one.node_id in self.paused), "told twice"
            if one.paused:
                self.paused.add(one.node_id)
            else:
                self.paused.discard(one.node_id)

    @rule(node=st.sampled_from(NODES), size=st.integers(1, 30), sync=st.booleans())
    def arrive(self, node: str, size: int, sync: bool) -> None:
        if not self.linked[node]:
            self.epochs[node] += 1
            self.linked[node] = True
        self.place += 1
        upload = Upload(node, self.epochs[node], self.place, Message(sync=sync), size)
        self.waiting[node].append(upload)
        self._carry_out(self.intake.add(upload, self.now))

    @rule(most=st.integers(1, 8), most_bytes=st.integers(10, 200))
    def commit(self, most: int, most_bytes: int) -> None:
        batch = self.intake.batch(most, most_bytes, self.shares)
        for upload in batch.uploads:
            assert self.waiting[upload.node_id].pop(0) is upload, "out of order"
            self.stored[upload.node_id].append(upload)
        self._carry_out(self.intake.stored(batch.uploads))
        for upload, bound in batch.unfit:
            assert self.waiting[upload.node_id][0] is upload
            assert bound
            if upload.message.sync:
                self.waiting[upload.node_id].pop(0)
                self._carry_out(self.intake.stored([upload]))
            else:
                self._carry_out(self.intake.judged([(upload, bound)], self.now))

    @rule(most=st.integers(1, 8))
    def fail(self, most: int) -> None:
        """The store does not answer."""
        for upload in self.intake.batch(most, 1000, self.shares).uploads:
            self.shares.remove(upload.node_id, upload.size_bytes)
        self._carry_out(self.intake.troubled("no answer", self.now))

    @rule(node=st.sampled_from(NODES), count=st.integers(1, 3))
    def take(self, node: str, count: int) -> None:
        """A subscriber is done with some."""
        for _ in range(min(count, len(self.stored[node]))):
            self.shares.remove(node, self.stored[node].pop(0).size_bytes)
        self._carry_out(self.intake.room_made(self.shares))

    @rule(node=st.sampled_from(NODES))
    def end_link(self, node: str) -> None:
        if self.linked[node]:
            self.intake.link_ended(node, self.epochs[node])
            self.linked[node] = False
            self.paused.discard(node)

    @rule(seconds=st.floats(0.0, 40.0))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for one in self.intake.overdue(self.now):
            assert one.is_linked == self.linked[one.node_id]
            if one.dropped:
                assert list(one.dropped) == self.waiting.pop(one.node_id)
            self.linked[one.node_id] = False
            self.paused.discard(one.node_id)
        deadline = self.intake.deadline()
        assert deadline is None or deadline > self.now

    @rule()
    def settle_down(self) -> None:
        """With subscribers and a store that works, everything goes on."""
        for _ in range(200):
            if not len(self.intake):
                break
            for node in NODES:
                self.take(node, 3)
            self.commit(8, 1000)
        assert not len(self.intake)
        assert not self.paused
        assert self.intake.deadline() is None

    @invariant()
    def accounts_are_right(self) -> None:
        waiting = [one for line in self.waiting.values() for one in line]
        assert len(self.intake) == len(waiting)
        assert self.intake.size_bytes == sum(one.size_bytes for one in waiting)
        for node in NODES:
            amount = Amount(len(self.stored[node]), sum(one.size_bytes for one in self.stored[node]))
            assert self.shares.of(node) == amount
            assert amount.messages <= PER_NODE.messages
            assert amount.size_bytes <= PER_NODE.size_bytes
        assert self.shares.used.messages <= TOTAL.messages
        assert self.shares.used.size_bytes <= TOTAL.size_bytes
        assert self.intake.paused == len(self.paused)
        assert all(self.waiting[node] for node in self.paused), "a link pauses and nothing of it waits"


IntakeMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
TestIntake = IntakeMachine.TestCase


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 300)), max_size=200), st.integers(1, 300))
def test_whoever_has_nothing_finds_room(takes: list[tuple[int, int]], size: int) -> None:
    """C46: whatever twenty greedy nodes do, each of many others can store its first message."""
    shares = Shares(Amount(1000, 1_000_000), Amount(400, 100_000))
    for node, greedy_size in takes:
        while not shares.refusal(f"greedy-{node}", greedy_size):
            shares.add(f"greedy-{node}", greedy_size)
    for node in range(60):
        assert not shares.refusal(f"modest-{node}", size)
        shares.add(f"modest-{node}", size)
    assert shares.used <= Amount(400, 100_000)


def test_one_node_gets_half_of_what_is_for_all() -> None:
    """C46: and the next one half of what is left."""
    shares = Shares(Amount(1000, 1_000_000), Amount(400, 100_000))
    for node in "ab":
        while not shares.refusal(node, 1):
            shares.add(node, 1)
    assert [shares.of(node).messages for node in "ab"] == [150, 75]
    assert shares.refusal("a", 1) == "total_messages"


def test_a_share_counted_anew_replaces_what_was_known() -> None:
    """C46: other dispatchers store and hand on as well."""
    shares = Shares(Amount(10, 1000), Amount(20, 2000))
    shares.add("a", 100)
    shares.set("a", Amount(3, 50))
    shares.set("b", Amount())
    assert (shares.used, shares.of("a"), shares.nodes) == (Amount(3, 50), Amount(3, 50), 1)
    shares.replace({"b": Amount(4, 70)})
    assert (shares.used, shares.of("a"), shares.of("b")) == (Amount(4, 70), Amount(), Amount(4, 70))
    shares.elsewhere = Amount(10, 0)
    assert shares.refusal("c", 1) == ""
    assert shares.refusal("b", 1) == "total_messages"
    shares.remove("b", 1_000_000, 100)
    shares.remove("b", 1)
    assert (shares.used, shares.nodes) == (Amount(), 0)
