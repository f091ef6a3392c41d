"""Group commit of the outbox: all that queued while the last transaction ran goes into the next."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.outbox.contract import Outbox
from services.dispatcher.outbox.records import (
    Attempt,
    Claim,
    Event,
    Fenced,
    ForgetNode,
    Loaded,
    Op,
    OwnedOp,
    Reload,
    Result,
    Settle,
)
from services.runtime.backoff import Backoff
from services.runtime.errors import HubError, StoreBusy, StoreUnavailable, Unavailable
from services.runtime.logs import get_log

_log = get_log(__name__)

GroupResults = list[Result | Exception]


@dataclass(slots=True)
class _Group:
    """Operations whose results are told together."""

    expected: int
    done: Callable[[GroupResults], None]
    results: GroupResults = field(default_factory=list)

    def add(self, result: Result | Exception) -> None:
        self.results.append(result)
        if len(self.results) == self.expected:
            self.done(self.results)


_Queued = tuple[Op, _Group | None]


class OutboxWriter:
    """The only writer of deliveries. Order of submission is order of effect.

    An acknowledgement takes the attempt with it that still waits: one line of history instead of two.

    Operations of a session (`record`) are kept and tried again while the store is away; what they
    are about was pending before, so they are bounded by it. Operations of a group fail then. At
    most `most_waiting` group operations wait.
    """

    def __init__(
        self,
        outbox: Outbox,
        metrics: DispatcherMetrics,
        recorded: Callable[[list[OwnedOp]], None],
        *,
        most_per_batch: int = 2048,
        most_waiting: int = 100_000,
    ) -> None:
        self._outbox = outbox
        self._metrics = metrics
        self._recorded = recorded
        self._most_per_batch = most_per_batch
        self._most_waiting = most_waiting
        self._queue: deque[_Queued] = deque()
        self._attempts: dict[tuple[str, str], Attempt] = {}  # the last of each message, while it waits
        self._taken_along: set[Attempt] = set()
        self._untold: list[tuple[_Queued, Result | Exception]] = []
        self._grouped = 0
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._backoff = Backoff(0.05, 2.0)

    @property
    def waiting(self) -> int:
        """Operations that the next transactions take."""
        return len(self._queue)

    def record(self, op: OwnedOp) -> None:
        """Writes this sooner or later, unless its epoch is fenced or the process ends before."""
        if isinstance(op, Attempt):
            self._attempts[op.node_id, op.message_id] = op
        elif isinstance(op, Settle) and self._attempts:
            attempt = self._attempts.pop((op.node_id, op.message_id), None)
            if attempt is not None and attempt.epoch == op.epoch:
                self._taken_along.add(attempt)
                op = Settle(*op[:-1], attempt)
        self._queue.append((op, None))
        self._notify()

    def forget(self, op: ForgetNode) -> None:
        """Does this sooner or later, behind all that the node's session recorded."""
        self._queue.append((op, None))
        self._notify()

    def note(self, event: Event) -> None:
        """Writes a line of history that nobody waits for; left out when too much waits already."""
        if len(self._queue) < self._most_waiting:
            self._queue.append((event, None))
            self._notify()

    def submit(self, ops: list[Op], done: Callable[[GroupResults], None]) -> None:
        """Calls `done` with one result per operation once all are durable, or with errors.

        Raises Unavailable when too many wait already.
        """
        if self._stopped:
            raise Unavailable("STOPPING", "the service is shutting down")
        if self._grouped + len(ops) > self._most_waiting:
            raise Unavailable("OVERLOADED", f"{self._grouped} operations wait for the store")
        if not ops:
            done([])
            return
        group = _Group(len(ops), done)
        self._grouped += len(ops)
        self._queue.extend((op, group) for op in ops)
        self._notify()

    async def perform(self, ops: list[Op]) -> GroupResults:
        """`submit`, awaited."""
        future: asyncio.Future[GroupResults] = asyncio.get_running_loop().create_future()

        def done(results: GroupResults) -> None:
            if not future.done():
                future.set_result(results)

        self.submit(ops, done)
        return await future

    async def load(self, ops: Iterable[Claim | Reload]) -> list[Loaded | HubError]:
        """Claims or reloads: what was loaded, or why it was not, of each, in order."""
        return [result for result in await self.perform(list(ops)) if isinstance(result, Loaded | HubError)]

    async def flush(self) -> None:
        """Returns when nothing waits to be written."""
        await self._idle.wait()

    def _notify(self) -> None:
        self._idle.clear()
        self._wake.set()

    async def run(self) -> None:
        """Writes until cancelled; groups that still wait then get Unavailable."""
        failures = 0
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._queue or self._untold:
                    failures = 0 if await self._one_batch() else failures + 1
                    if failures:
                        await asyncio.sleep(self._backoff.random_delay(failures))
                self._idle.set()
        finally:
            self._stopped = True
            self._tell()
            gone = Unavailable("STOPPING", "the service is shutting down")
            for _, group in self._queue:
                if group:
                    group.add(gone)
            self._queue.clear()

    async def _one_batch(self) -> bool:
        """Writes what waits, and tells meanwhile what came of the batch before: the store works while the
        loop does. False if something has to be tried again."""
        batch = self._next_batch()
        if not batch:
            self._tell()
            return True
        async with asyncio.TaskGroup() as group:
            commit = group.create_task(self._commit(batch), name="outbox-commit")
            await asyncio.sleep(0)  # it reaches the store first
            self._tell()
        return commit.result()

    def _next_batch(self) -> list[_Queued]:
        batch: list[_Queued] = []
        while self._queue and len(batch) < self._most_per_batch:
            queued = self._queue.popleft()
            op = queued[0]
            if isinstance(op, Attempt):
                if op in self._taken_along:
                    self._taken_along.discard(op)
                    continue
                if self._attempts.get((op.node_id, op.message_id)) is op:
                    del self._attempts[op.node_id, op.message_id]
            batch.append(queued)
        return batch

    async def _commit(self, batch: list[_Queued]) -> bool:
        """Puts back what has to be tried again, so that the order stays; the rest is told later."""
        self._grouped -= sum(1 for _, group in batch if group)
        with self._metrics.commit_seconds.time():
            try:
                results = await self._outbox.commit([op for op, _ in batch])
            except StoreUnavailable as error:
                self._failed(batch, error)
                return False
            except asyncio.CancelledError:
                self._queue.extendleft(reversed(batch))
                raise
        self._metrics.commit_operations.observe(len(batch))
        came_of_it = list(zip(batch, results, strict=True))
        self._untold += came_of_it  # what came before may not be told yet
        locked = [
            queued for queued, result in came_of_it if isinstance(result, StoreBusy) and queued[1] is None
        ]
        if locked:
            self._metrics.store_failures.inc()
            _log.warning("outbox.rows_locked", operations=len(locked), node=locked[0][0].node_id)
            self._queue.extendleft(reversed(locked))
        return not locked

    def _tell(self) -> None:
        """What came of the last batch that the store has taken."""
        untold, self._untold = self._untold, []
        recorded: list[OwnedOp] = []
        for (op, group), result in untold:
            if group is not None:
                group.add(result)
            elif isinstance(result, Fenced):
                self._metrics.fenced.inc()
            elif isinstance(result, Exception) and not isinstance(result, StoreBusy):
                self._metrics.bad_rows.inc()
                _log.error("outbox.record_refused", op=type(op).__name__, error=str(result))
            elif isinstance(op, OwnedOp) and not isinstance(result, StoreBusy):
                recorded.append(op)
        self._recorded(recorded)

    def _failed(self, batch: list[_Queued], error: StoreUnavailable) -> None:
        self._metrics.store_failures.inc()
        _log.warning("outbox.unavailable", error=str(error), operations=len(batch))
        kept: list[_Queued] = []
        for item in batch:
            if item[1] is None:
                kept.append(item)
            else:
                item[1].add(error)
        self._queue.extendleft(reversed(kept))
