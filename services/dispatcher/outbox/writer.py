"""Group commit of the outbox: all that queued while the last transaction ran goes into the next."""

import asyncio
from collections.abc import Callable, Iterable

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
from services.dispatcher.outbox.turns import (
    LARGE_BYTES,
    LARGE_OPERATIONS,
    Group,
    GroupResults,
    Turns,
    Waiting,
    sizes_of,
)
from services.runtime.backoff import Backoff
from services.runtime.errors import HubError, StoreBusy, StoreUnavailable, Unavailable
from services.runtime.logs import get_log

_log = get_log(__name__)

MAX_TRANSACTION_BYTES = 4 * 1024 * 1024
MAX_WAITING_BYTES = 256 * 1024 * 1024


class OutboxWriter:
    """The only writer of deliveries. Order of submission is order of effect, but for large groups (`turns`).

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
        max_bytes_per_batch: int = MAX_TRANSACTION_BYTES,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        self._outbox = outbox
        self._metrics = metrics
        self._recorded = recorded
        self._most_waiting = most_waiting
        self._max_waiting_bytes = max_waiting_bytes
        self._turns = Turns(most_per_batch, max_bytes_per_batch)
        self._attempts: dict[tuple[str, str], Attempt] = {}  # the last of each message, while it waits
        self._taken_along: set[Attempt] = set()
        self._untold: list[tuple[Waiting, Result | Exception]] = []
        # Operations of groups that wait, and bytes of their messages: of large groups, of others.
        self._grouped = {True: 0, False: 0}
        self._held_bytes = {True: 0, False: 0}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._stopped = False
        self._backoff = Backoff(0.05, 2.0)

    @property
    def waiting(self) -> int:
        """Operations that the next transactions take."""
        return len(self._turns)

    def record(self, op: OwnedOp) -> None:
        """Writes this sooner or later, unless its epoch is fenced or the process ends before."""
        if isinstance(op, Attempt):
            self._attempts[op.node_id, op.message_id] = op
        elif isinstance(op, Settle) and self._attempts:
            attempt = self._attempts.pop((op.node_id, op.message_id), None)
            if attempt is not None and attempt.epoch == op.epoch:
                self._taken_along.add(attempt)
                op = Settle(*op[:-1], attempt)
        self._turns.record(op)
        self._notify()

    def forget(self, op: ForgetNode) -> None:
        """Does this sooner or later, behind all that the node's session recorded."""
        self._turns.record(op)
        self._notify()

    def note(self, event: Event) -> None:
        """Writes a line of history that nobody waits for; left out when too much waits already."""
        if len(self._turns) < self._most_waiting:
            self._turns.record(event)
            self._notify()

    def submit(self, ops: list[Op], done: Callable[[GroupResults], None]) -> None:
        """Calls `done` with one result per operation once all are durable, or with errors.

        Raises Unavailable when too many wait already.
        """
        if self._stopped:
            raise Unavailable("STOPPING", "the service is shutting down")
        written, held = sizes_of(ops)
        is_large = written > LARGE_BYTES or len(ops) > LARGE_OPERATIONS
        self._check_room(len(ops), held, is_large=is_large)
        if not ops:
            done([])
            return
        self._grouped[is_large] += len(ops)
        self._held_bytes[is_large] += held
        self._turns.submit(ops, Group(len(ops), done, is_large=is_large, held_bytes=held))
        self._notify()

    def _check_room(self, operations: int, held: int, *, is_large: bool) -> None:
        """Raises Unavailable when too much waits already. Large groups and others have bounds of their own:
        neither finds the room taken by the other."""
        waiting, held_bytes = self._grouped[is_large], self._held_bytes[is_large]
        if waiting + operations > self._most_waiting:
            raise Unavailable("OVERLOADED", f"{waiting} operations wait for the store")
        if held_bytes and held_bytes + held > self._max_waiting_bytes:
            raise Unavailable("OVERLOADED", f"messages of {held_bytes} bytes wait for the store")

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
                while self._turns or self._untold:
                    failures = 0 if await self._one_batch() else failures + 1
                    if failures:
                        await asyncio.sleep(self._backoff.random_delay(failures))
                self._idle.set()
        finally:
            self._stopped = True
            self._tell()
            gone = Unavailable("STOPPING", "the service is shutting down")
            waiting = list(self._turns)
            self._turns.clear()
            for _, _, group, place in waiting:
                if group:
                    self._add(group, place, gone)

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

    def _next_batch(self) -> list[Waiting]:
        taken = self._turns.take()
        if not self._attempts and not self._taken_along:
            return taken
        batch: list[Waiting] = []
        for waiting in taken:
            op = waiting[1]
            if isinstance(op, Attempt):
                if op in self._taken_along:
                    self._taken_along.discard(op)
                    continue
                if self._attempts.get((op.node_id, op.message_id)) is op:
                    del self._attempts[op.node_id, op.message_id]
            batch.append(waiting)
        return batch

    async def _commit(self, batch: list[Waiting]) -> bool:
        """Puts back what has to be tried again, so that the order stays; the rest is told later."""
        for _, _, group, _ in batch:
            if group is not None:
                self._grouped[group.is_large] -= 1
        with self._metrics.commit_seconds.time():
            try:
                results = await self._outbox.commit([op for _, op, _, _ in batch])
            except StoreUnavailable as error:
                self._failed(batch, error)
                return False
            except asyncio.CancelledError:
                self._turns.put_back(batch)
                raise
        self._metrics.commit_operations.observe(len(batch))
        came_of_it = list(zip(batch, results, strict=True))
        self._untold += came_of_it  # what came before may not be told yet
        locked = [
            waiting for waiting, result in came_of_it if isinstance(result, StoreBusy) and waiting[2] is None
        ]
        if locked:
            self._metrics.store_failures.inc()
            _log.warning("outbox.rows_locked", operations=len(locked), node=locked[0][1].node_id)
            self._turns.put_back(locked)
        return not locked

    def _tell(self) -> None:
        """What came of the last batch that the store has taken."""
        untold, self._untold = self._untold, []
        recorded: list[OwnedOp] = []
        for (_, op, group, place), result in untold:
            if group is not None:
                self._add(group, place, result)
            elif isinstance(result, Fenced):
                self._metrics.fenced.inc()
            elif isinstance(result, Exception) and not isinstance(result, StoreBusy):
                self._metrics.bad_rows.inc()
                _log.error("outbox.record_refused", op=type(op).__name__, error=str(result))
            elif isinstance(op, OwnedOp) and not isinstance(result, StoreBusy):
                recorded.append(op)
        self._recorded(recorded)

    def _add(self, group: Group, place: int, result: Result | Exception) -> None:
        if group.add(place, result):
            self._held_bytes[group.is_large] -= group.held_bytes

    def _failed(self, batch: list[Waiting], error: StoreUnavailable) -> None:
        self._metrics.store_failures.inc()
        _log.warning("outbox.unavailable", error=str(error), operations=len(batch))
        for waiting in batch:
            if waiting[2] is not None:
                self._add(waiting[2], waiting[3], error)
        self._turns.put_back([waiting for waiting in batch if waiting[2] is None])
