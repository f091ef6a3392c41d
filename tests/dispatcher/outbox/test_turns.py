"""Who goes into the next transaction: `services.dispatcher.outbox.turns`."""

from collections import defaultdict
from itertools import count

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.dispatcher.outbox.records import Accept, DeleteNode, Done, Event, EventKind, ForgetNode, Op
from services.dispatcher.outbox.turns import Group, GroupResults, Turns, stored_bytes
from tests.support.outbox import NOW_MS, accept, publication

MOST_OPERATIONS, MOST_BYTES = 8, 800
NODES = st.sampled_from(["edge-1", "edge-2", "edge-3", "edge-4"])


def message(node_id: str, version: int, size: int) -> Accept:
    """A publish whose body is a bit more than `size`."""
    content = b'"' + b"x" * size + b'"'
    return accept(publication(version, content=content), node_id)


def group(ops: list[Op], *, is_large: bool, told: list[GroupResults] | None = None) -> Group:
    told = [] if told is None else told
    return Group(len(ops), told.append, is_large=is_large)


def submit(turns: Turns, ops: list[Op], *, is_large: bool = False) -> None:
    turns.submit(ops, group(ops, is_large=is_large))


def taken(turns: Turns) -> list[tuple[str, int]]:
    """Node and version of each publish of the next transaction."""
    return [
        (op.node_id, op.publication.version or 0) for _, op, _, _ in turns.take() if isinstance(op, Accept)
    ]


def test_a_small_publish_goes_before_the_rest_of_a_large_one() -> None:
    """C50: the other party waits for one transaction and not for all of them."""
    turns = Turns(100, 4000)
    submit(turns, [message(f"ghost-{n}", 1, 500) for n in range(1000)], is_large=True)
    turns.take()
    submit(turns, [message("edge-1", 7, 10)])
    assert ("edge-1", 7) in taken(turns)
    assert len(turns) > 900


def test_large_publishes_take_turns() -> None:
    """The second one is not behind all of the first."""
    turns = Turns(1024, 400_000)
    submit(turns, [message(f"a-{n}", 1, 1000) for n in range(1000)], is_large=True)
    submit(turns, [message(f"b-{n}", 1, 1000) for n in range(1000)], is_large=True)
    nodes = [node_id[0] for _ in range(6) for node_id, _ in taken(turns)]
    assert abs(nodes.count("a") - nodes.count("b")) <= 64
    assert 300 < len(nodes) < 1000


def test_what_is_behind_a_large_publish_on_its_node_waits_for_that_operation_alone() -> None:
    """A message to a node that a broadcast goes to as well is not behind the whole broadcast, and not before
    the node's part of it."""
    turns = Turns(100, 4000)
    submit(turns, [message(f"edge-{n}", 1, 900) for n in range(100)], is_large=True)
    submit(turns, [message("edge-0", 2, 10), message("edge-0", 3, 10)])
    assert taken(turns)[0] == ("edge-0", 1)
    assert taken(turns)[:2] == [("edge-0", 2), ("edge-0", 3)]
    assert len(turns) > 90


def test_an_operation_that_fits_into_no_transaction_goes_all_the_same() -> None:
    turns = Turns(100, 1000)
    submit(turns, [message("edge-1", 1, 5000)], is_large=True)
    submit(turns, [message("edge-2", 1, 10)])
    assert sorted(taken(turns)) == [("edge-1", 1), ("edge-2", 1)]
    submit(turns, [message("edge-2", 2, 5000), message("edge-2", 3, 10)])
    assert taken(turns) == [("edge-2", 2)]
    assert taken(turns) == [("edge-2", 3)]


def test_what_came_before_a_large_publish_goes_before_it() -> None:
    turns = Turns(4, 10_000)
    submit(turns, [message("edge-1", n, 10) for n in range(1, 9)])
    submit(turns, [message("edge-1", 9, 10), message("edge-2", 9, 10)], is_large=True)
    order = [version for _ in range(6) for node_id, version in taken(turns) if node_id == "edge-1"]
    assert order == list(range(1, 10))


class TurnsMachine(RuleBasedStateMachine):
    """Publishes to a node, and its deletion, go in the order in which they came; what sessions record in its
    own; everything goes; no transaction is too large; small groups do not wait for large ones."""

    def __init__(self) -> None:
        super().__init__()
        self.turns = Turns(MOST_OPERATIONS, MOST_BYTES)
        self.versions = count(1)
        self.numbers: dict[int, int] = {}  # by id of the operation
        self.kept: list[Op] = []  # so that ids stay theirs
        self.waiting: defaultdict[str, list[int]] = defaultdict(list)
        self.records: list[int] = []
        self.told: list[GroupResults] = []
        self.groups = 0
        # Small groups of one operation on a node of its own, and how many transactions have gone by.
        self.bystanders: dict[int, int] = {}

    def _note(self, op: Op) -> int:
        number = next(self.versions)
        self.numbers[id(op)] = number
        self.kept.append(op)
        return number

    def _submit(self, ops: list[Op], *, is_large: bool) -> None:
        for op in ops:
            number = self._note(op)
            if isinstance(op, (Accept, DeleteNode)):
                self.waiting[op.node_id].append(number)
        self.groups += 1
        self.turns.submit(ops, group(ops, is_large=is_large, told=self.told))

    @rule(nodes=st.lists(NODES, min_size=1, max_size=12), size=st.integers(0, 900))
    def publish_much(self, nodes: list[str], size: int) -> None:
        self._submit([message(node_id, 1, size) for node_id in nodes], is_large=True)

    @rule(nodes=st.lists(NODES, min_size=1, max_size=3), size=st.integers(0, 50))
    def publish(self, nodes: list[str], size: int) -> None:
        self._submit([message(node_id, 1, size) for node_id in nodes], is_large=False)

    @rule(node_id=NODES, is_large=st.booleans())
    def delete(self, node_id: str, is_large: bool) -> None:
        refused = Event(node_id, EventKind.REJECTED, NOW_MS, "m")
        self._submit([DeleteNode(node_id, 0), refused], is_large=is_large)

    @rule()
    def publish_elsewhere(self) -> None:
        op = message(f"bystander-{self.groups}", 1, 5)
        if len(self.turns) < MOST_OPERATIONS // 2 or self._only_large():
            self.bystanders[id(op)] = 0
        self._submit([op], is_large=False)

    def _only_large(self) -> bool:
        return all(waiting is not None and waiting.is_large for _, _, waiting, _ in self.turns)

    @rule(node_id=NODES)
    def record(self, node_id: str) -> None:
        op = ForgetNode(node_id, 0)
        self.records.append(self._note(op))
        self.turns.record(op)

    @rule(again=st.booleans())
    def take(self, again: bool) -> None:
        waited = len(self.turns)
        batch = self.turns.take()
        assert bool(batch) == bool(waited)
        assert len(self.turns) == waited - len(batch)
        assert len(batch) <= MOST_OPERATIONS
        sizes = [stored_bytes(op) for _, op, _, _ in batch]
        # One in each lane may be larger than its part.
        assert sum(sorted(sizes)[:-2]) <= MOST_BYTES
        put_back = [item for item in batch if again and item[2] is None]
        for item in batch:
            _, op, waiting, place = item
            number = self.numbers[id(op)]
            if waiting is not None:
                waiting.add(place, Done())
            elif not put_back:
                assert self.records.pop(0) == number
            if isinstance(op, (Accept, DeleteNode)):
                assert self.waiting[op.node_id].pop(0) == number
            self.bystanders.pop(id(op), None)
        self.turns.put_back(put_back)
        for op_id in self.bystanders:
            self.bystanders[op_id] += 1
            assert self.bystanders[op_id] < 2, "a large group held up another one's only operation"

    @invariant()
    def all_that_wait_are_counted(self) -> None:
        assert len(list(self.turns)) == len(self.turns)

    def teardown(self) -> None:
        while self.turns:
            self.take(again=False)
        assert not any(self.waiting.values())
        assert len(self.told) == self.groups


TurnsMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
test_turns = TurnsMachine.TestCase
