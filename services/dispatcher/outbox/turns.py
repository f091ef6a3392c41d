"""Whose operations go into the next transaction of the outbox. Pure.

Operations take effect in the order in which they came. A large group of them (a publish of much, or to many
nodes) would make everybody else wait until all of it is written: such groups wait in a lane of their own and
are written in portions, in turn with each other, while what others submit goes into the same transactions.
The order of publishes to one node stays: what comes behind a large group's operation on the node waits for
that one operation, and for no other of the group.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from services.dispatcher.outbox.records import Accept, DeleteNode, Op, Result
from services.dispatcher.publication import Publication

GroupResults = list[Result | Exception]

# What makes a group large.
LARGE_BYTES = 512 * 1024
LARGE_OPERATIONS = 1024
# What one large group gets of a transaction before the next one's turn.
_TURN_BYTES = 64 * 1024
_TURN_OPERATIONS = 64

_UNTOLD = Exception("not told yet")


class Group:
    """Operations whose results are told together, in their order, once the last one has come."""

    __slots__ = ("_done", "_left", "_results", "has_turn", "held_bytes", "is_large", "waiting")

    def __init__(
        self, expected: int, done: Callable[[GroupResults], None], *, is_large: bool, held_bytes: int = 0
    ) -> None:
        self._results: GroupResults = [_UNTOLD] * expected
        self._left = expected
        self._done = done
        self.is_large = is_large
        self.held_bytes = held_bytes
        self.has_turn = False
        self.waiting: deque[Waiting] = deque()  # of a large group: what may be written when its turn comes

    def add(self, place: int, result: Result | Exception) -> bool:
        """What came of the operation at this place, each once. Whether it was the last one, and all were
        told."""
        self._results[place] = result
        self._left -= 1
        if self._left:
            return False
        self._done(self._results)
        return True


# Number of the submission, operation, its group (none: nobody waits for the result), its place there.
Waiting = tuple[int, Op, Group | None, int]


def stored_bytes(op: Op) -> int:
    """What is written for it, as far as publishers choose its size."""
    return len(op.publication.body) if type(op) is Accept else 0


def sizes_of(ops: Iterable[Op]) -> tuple[int, int]:
    """What is written for operations, and what they hold in memory: those of one message share its body."""
    written = held = 0
    last: Publication | None = None
    for op in ops:
        if type(op) is Accept:
            publication = op.publication
            size = len(publication.body)
            written += size
            if publication is not last:
                last = publication
                held += size
    return written, held


class Turns:
    """Operations that wait for a transaction. One transaction takes at most `most_operations`, and bodies of
    at most `most_bytes`, but always something."""

    def __init__(self, most_operations: int, most_bytes: int) -> None:
        self._most_operations = most_operations
        self._most_bytes = most_bytes
        self._submitted = 0
        self._main: deque[Waiting] = deque()
        # Waited behind a large group's operation on their node, which has been written.
        self._freed: deque[Waiting] = deque()
        self._large: deque[Group] = deque()  # each has something that waits; the first one is next
        # By node: what waits behind the first operation of a large group that waits, or a freed one.
        self._behind: dict[str, deque[Waiting]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Waiting]:
        """All that wait, in no order."""
        for lane in (self._main, self._freed, *(group.waiting for group in self._large)):
            yield from lane
        for behind in self._behind.values():
            yield from behind

    def clear(self) -> None:
        """Nothing waits any more."""
        for group in self._large:
            group.waiting.clear()
        for lane in (self._main, self._freed, self._large, self._behind):
            lane.clear()
        self._count = 0

    def record(self, op: Op) -> None:
        """An operation about what is stored already: of a session, or a line of history. It goes behind what
        was recorded before; publishes of its node neither wait for it nor hold it up."""
        self._main.append((self._submitted, op, None, 0))
        self._count += 1

    def submit(self, ops: list[Op], group: Group) -> None:
        """The operations of a group."""
        self._submitted = order = self._submitted + 1
        self._count += len(ops)
        if not group.is_large and not self._behind:  # the rule
            self._main.extend((order, op, group, place) for place, op in enumerate(ops))
            return
        for place, op in enumerate(ops):
            item = (order, op, group, place)
            if not isinstance(op, (Accept, DeleteNode)):
                self._main.append(item)
            elif (behind := self._behind.get(op.node_id)) is not None:
                behind.append(item)
            elif group.is_large:
                self._behind[op.node_id] = deque()
                group.waiting.append(item)
            else:
                self._main.append(item)
        if group.waiting:
            self._line_up(group)

    def _line_up(self, group: Group) -> None:
        if not group.has_turn:
            group.has_turn = True
            self._large.append(group)

    def put_back(self, items: list[Waiting]) -> None:
        """They were taken and have to be tried again, before everything else; nobody waits for them."""
        self._main.extendleft(reversed(items))
        self._count += len(items)

    def take(self) -> list[Waiting]:
        """What the next transaction does, in order."""
        batch: list[Waiting] = []
        if not self._behind:
            self._take_from(self._main, batch, self._most_operations, self._most_bytes)
            self._count -= len(batch)
            return batch
        # Something of each lane goes into every transaction.
        operations, size = self._most_operations, self._most_bytes
        used = self._take_freed(batch, operations // 4, size // 4)
        used += self._take_from(self._main, batch, operations * 3 // 4, size // 2 - used)
        self._take_large(batch, used)
        self._count -= len(batch)
        return batch

    @staticmethod
    def _take_from(lane: deque[Waiting], batch: list[Waiting], most_operations: int, most_bytes: int) -> int:
        """As many as fit; how many bytes they have. One that fits nowhere goes alone."""
        size = 0
        while lane and len(batch) < most_operations:
            op = lane[0][1]
            if type(op) is Accept:
                size += len(op.publication.body)
                if size > most_bytes and batch:
                    return size - len(op.publication.body)
            batch.append(lane.popleft())
        return size

    def _take_freed(self, batch: list[Waiting], most_operations: int, most_bytes: int) -> int:
        size = 0
        while self._freed and len(batch) < most_operations and size < most_bytes:
            item = self._freed.popleft()
            size += stored_bytes(item[1])
            batch.append(item)
            self._free(item[1].node_id)
        return size

    def _take_large(self, batch: list[Waiting], used: int) -> None:
        """Turns, until their part of the transaction is full or nobody may go on: what was submitted before a
        large group, perhaps on the same node, may still wait in the main lane. Their part is small also where
        nobody else waits: who comes while it is written waits for it."""
        before = self._main[0][0] if self._main else self._submitted
        most_bytes = min(self._most_bytes - used, self._most_bytes // 4)
        taken = refused = 0
        while refused < len(self._large) and len(batch) < self._most_operations:
            group = self._large[0]
            took = 0
            for _ in range(min(_TURN_OPERATIONS, self._most_operations - len(batch))):
                if not group.waiting or group.waiting[0][0] > before or took >= _TURN_BYTES:
                    break
                op = group.waiting[0][1]
                size = max(1, stored_bytes(op))
                if taken and taken + size > most_bytes:  # the first one may have any size
                    return  # and the next transaction begins with this group
                batch.append(group.waiting.popleft())
                took += size
                taken += size
                self._free(op.node_id)
            refused = 0 if took else refused + 1
            if group.waiting:
                self._large.rotate(-1)
            else:
                group.has_turn = False
                self._large.popleft()

    def _free(self, node_id: str) -> None:
        """The first operation on a node was taken: the next one may go."""
        behind = self._behind[node_id]
        if not behind:
            del self._behind[node_id]
            return
        item = behind.popleft()
        group = item[2]
        if group is not None and group.is_large:
            group.waiting.append(item)
            self._line_up(group)
        else:
            self._freed.append(item)
