"""Group commit and what happens while the store is away: `services.dispatcher.outbox.writer`."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from services.dispatcher.outbox.records import (
    Accepted,
    Attempt,
    Claim,
    End,
    Event,
    EventKind,
    Loaded,
    Op,
    OwnedOp,
    Reload,
    Result,
    RowState,
    Settle,
)
from services.dispatcher.outbox.turns import LARGE_BYTES, GroupResults
from services.dispatcher.outbox.writer import OutboxWriter
from services.runtime.errors import StoreBusy, StoreUnavailable, Unavailable
from tests.support.dispatcher import Metrics
from tests.support.outbox import NODE, NOW_MS, MemoryOutbox, accept, publication


class HeldOutbox(MemoryOutbox):
    """Lets one transaction through for each `release` while `is_held`; operations on `locked_nodes` fail
    as rows that somebody else keeps locked do."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Semaphore(0)
        self.is_held = False
        self.locked_nodes: set[str] = set()
        self.begun = asyncio.Queue[list[Op]]()

    async def commit(self, ops: Sequence[Op]) -> list[Result | Exception]:
        self.begun.put_nowait(list(ops))
        if self.is_held:
            await self.gate.acquire()
        free = iter(await super().commit([op for op in ops if op.node_id not in self.locked_nodes]))
        return [StoreBusy("locked") if op.node_id in self.locked_nodes else next(free) for op in ops]


class Desk:
    """A writer at work."""

    def __init__(self) -> None:
        self.outbox = HeldOutbox()
        self.metrics = Metrics()
        self.recorded: list[OwnedOp] = []
        self.writer = OutboxWriter(self.outbox, self.metrics, self.recorded.extend, most_per_batch=10)
        self.task = asyncio.create_task(self.writer.run())

    async def begun(self) -> list[Op]:
        return await asyncio.wait_for(self.outbox.begun.get(), 5)

    async def stop(self) -> None:
        self.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await self.task

    async def accepted(self, uid: str, epoch: int = 1) -> Settle:
        """An accepted message's acknowledgement, not yet submitted."""
        _, result = await self.writer.perform([Claim(NODE, epoch, NOW_MS), accept(publication(1, uid=uid))])
        assert isinstance(result, Accepted)
        row = result.row
        return Settle(NODE, epoch, row.key, row.seq, row.version, row.message_id, NOW_MS)


@pytest.fixture
async def desk() -> AsyncIterator[Desk]:
    opened = Desk()
    yield opened
    if not opened.task.done():
        await opened.stop()


def collect(into: list[GroupResults]) -> Callable[[GroupResults], None]:
    return into.append


async def test_what_queues_while_a_transaction_runs_goes_into_the_next(desk: Desk) -> None:
    desk.outbox.is_held = True
    groups = [asyncio.ensure_future(desk.writer.perform([accept(publication(1, uid="a"))]))]
    assert len(await desk.begun()) == 1
    groups += [asyncio.ensure_future(desk.writer.perform([accept(publication(1, uid=uid))])) for uid in "bcd"]
    await asyncio.wait(groups, timeout=0)
    desk.outbox.gate.release()
    assert [op.publication.key for op in await desk.begun() if not isinstance(op, Event)] == [  # type: ignore[union-attr]
        "b",
        "c",
        "d",
    ]
    desk.outbox.gate.release()
    await asyncio.gather(*groups)
    assert desk.metrics.value("commit_operations_count") == 2
    assert desk.metrics.value("commit_operations_sum") == 4


async def test_a_group_gets_its_results_in_order_over_several_transactions(desk: Desk) -> None:
    """The bound of a transaction cuts through groups; nobody is answered before all of it is durable."""
    results: list[GroupResults] = []
    desk.outbox.is_held = True
    desk.writer.submit([accept(publication(1, uid=f"u{n}")) for n in range(25)], collect(results))
    for size in (10, 10, 5):
        assert len(await desk.begun()) == size
        assert results == []
        desk.outbox.gate.release()
    await asyncio.wait_for(desk.writer.flush(), 5)
    (group,) = results
    assert [result.row.key for result in group if isinstance(result, Accepted)] == [
        f"u{n}" for n in range(25)
    ]


async def test_the_results_of_a_transaction_are_told_while_the_next_one_runs(desk: Desk) -> None:
    told: list[GroupResults] = []
    desk.outbox.is_held = True
    desk.writer.submit([accept(publication(1, uid="a"))], collect(told))
    await desk.begun()
    desk.writer.submit([accept(publication(1, uid="b"))], collect(told))
    desk.outbox.gate.release()
    await desk.begun()
    await asyncio.sleep(0)
    assert [type(result) for (result,) in told] == [Accepted]


async def test_a_transaction_that_ends_at_once_hides_no_results_of_the_one_before(desk: Desk) -> None:
    told: list[GroupResults] = []
    desk.outbox.is_held = True
    desk.writer.submit([accept(publication(1, uid="a"))], collect(told))
    await desk.begun()
    desk.writer.submit([accept(publication(1, uid="b"))], collect(told))
    desk.outbox.is_held = False
    desk.outbox.gate.release()
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert [result.row.key for (result,) in told if isinstance(result, Accepted)] == ["a", "b"]


async def test_what_is_durable_is_told_also_when_the_writer_is_stopped(desk: Desk) -> None:
    told: list[GroupResults] = []

    def stop_then_collect(results: GroupResults) -> None:
        desk.task.cancel()
        told.append(results)

    desk.outbox.is_held = True
    desk.writer.submit([accept(publication(1, uid="a"))], stop_then_collect)
    await desk.begun()
    desk.writer.submit([accept(publication(1, uid="b"))], collect(told))
    desk.outbox.gate.release()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(desk.task, 5)
    (first,), (second,) = told
    assert isinstance(first, Accepted)
    assert isinstance(second, Unavailable)


async def test_an_empty_group_is_done_at_once(desk: Desk) -> None:
    assert await asyncio.wait_for(desk.writer.perform([]), 5) == []
    assert await asyncio.wait_for(desk.writer.load([]), 5) == []


async def test_order_of_submission_is_order_of_effect(desk: Desk) -> None:
    settle = await desk.accepted("a")
    desk.writer.record(settle)
    (loaded,) = await desk.writer.load([Reload(NODE)])
    assert isinstance(loaded, Loaded)
    assert loaded.rows == []
    assert desk.recorded == [settle]


async def test_claims_load_and_a_failure_is_told_of_each(desk: Desk) -> None:
    await desk.accepted("a")
    (loaded,) = await desk.writer.load([Claim(NODE, 2, NOW_MS)])
    assert isinstance(loaded, Loaded)
    assert [row.key for row in loaded.rows] == ["a"]
    desk.outbox.away = True
    (failed,) = await desk.writer.load([Claim(NODE, 3, NOW_MS)])
    assert isinstance(failed, StoreUnavailable)


# The store is away


async def test_groups_fail_while_the_store_is_away(desk: Desk) -> None:
    """The publisher is told UNAVAILABLE: unknown, safe to repeat."""
    desk.outbox.away = True
    (result,) = await asyncio.wait_for(desk.writer.perform([accept(publication(1))]), 5)
    assert isinstance(result, StoreUnavailable)
    assert desk.metrics.value("store_failures_total") == 1
    desk.outbox.away = False
    (again,) = await asyncio.wait_for(desk.writer.perform([accept(publication(1))]), 5)
    assert isinstance(again, Accepted)


async def test_records_are_kept_while_the_store_is_away_and_written_later_in_order(desk: Desk) -> None:
    """C25: failing to store an ack loses nothing; C13 of what comes behind it is judged after it."""
    first, second = await desk.accepted("a"), await desk.accepted("b", epoch=1)
    desk.outbox.away = True
    desk.writer.record(first)
    desk.writer.record(second)
    (failed,) = await asyncio.wait_for(desk.writer.perform([accept(publication(1, uid="c"))]), 5)
    assert isinstance(failed, StoreUnavailable)
    assert desk.recorded == []
    desk.outbox.away = False
    await asyncio.wait_for(desk.writer.flush(), 10)
    assert desk.recorded == [first, second]
    row = await desk.outbox.find(NODE, "", "a")
    assert row
    assert (row.state, row.acknowledged) == (RowState.SETTLED, 1)


async def test_a_group_that_is_cut_by_a_failure_is_told_both(desk: Desk) -> None:
    """Each operation has its own outcome, in order."""
    desk.outbox.is_held = True
    results: list[GroupResults] = []
    desk.writer.submit([accept(publication(1, uid=f"u{n}")) for n in range(12)], collect(results))
    await desk.begun()
    desk.outbox.gate.release()
    await desk.begun()
    desk.outbox.away = True
    desk.outbox.gate.release()
    await asyncio.wait_for(desk.writer.flush(), 5)
    (group,) = results
    assert [isinstance(result, Accepted) for result in group] == [True] * 10 + [False] * 2


async def test_records_of_a_node_that_is_locked_are_kept_and_others_are_written(desk: Desk) -> None:
    """C25: an acknowledgement that meets a lock is stored later, in order; nobody else waits for it."""
    settle = await desk.accepted("a")
    desk.outbox.locked_nodes.add(NODE)
    desk.writer.record(settle)
    desk.writer.record(Attempt(NODE, 1, "a", settle.message_id, 1, 1, NOW_MS))
    failed, written = await asyncio.wait_for(
        desk.writer.perform([accept(publication(2, uid="a")), accept(publication(1), "edge-2")]), 5
    )
    assert isinstance(failed, StoreBusy)
    assert isinstance(written, Accepted)
    assert desk.recorded == []
    desk.outbox.locked_nodes.clear()
    await asyncio.wait_for(desk.writer.flush(), 10)
    assert [type(op) for op in desk.recorded] == [Settle, Attempt]


# Attempts that acknowledgements take along


def attempt_of(settle: Settle, number: int, epoch: int = 1) -> Attempt:
    return Attempt(NODE, epoch, settle.key, settle.message_id, settle.version, number, NOW_MS)


async def test_an_acknowledgement_takes_the_last_attempt_along_that_still_waits(desk: Desk) -> None:
    """No other: not one that was stored, not one of another message."""
    settle, other = await desk.accepted("a"), await desk.accepted("b")
    desk.writer.record(attempt_of(settle, 1))
    await asyncio.wait_for(desk.writer.flush(), 5)
    desk.recorded.clear()
    second, third, others = attempt_of(settle, 2), attempt_of(settle, 3), attempt_of(other, 1)
    for op in (second, others, third, settle):
        desk.writer.record(op)
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert desk.recorded == [second, others, settle._replace(sent=third)]
    desk.writer.record(attempt_of(settle, 4))
    desk.writer.record(settle)
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert desk.recorded[3:] == [settle._replace(sent=attempt_of(settle, 4))]
    told = await desk.outbox.history(NODE, settle.message_id, "", 20)
    assert sum(event.repeats + 1 for event in told if event.kind == EventKind.SENT) == 4
    assert [event.kind for event in told].count(EventKind.ACKNOWLEDGED) == 2


async def test_an_attempt_of_another_epoch_is_stored_by_itself(desk: Desk) -> None:
    """It stays fenced, or not, by its own epoch."""
    settle = await desk.accepted("a")
    earlier = attempt_of(settle, 1, epoch=0)
    desk.writer.record(earlier)
    desk.writer.record(settle)
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert desk.recorded == [settle]
    assert desk.metrics.value("fenced_total") == 1


async def test_an_attempt_that_failed_to_be_stored_is_stored_by_itself_later(desk: Desk) -> None:
    """It was taken up for a commit before the acknowledgement came."""
    settle = await desk.accepted("a")
    await desk.begun()
    desk.outbox.is_held = True
    desk.writer.record(attempt_of(settle, 1))
    await desk.begun()
    desk.writer.record(settle)
    desk.outbox.away = True
    desk.outbox.gate.release()
    assert await desk.begun() == [attempt_of(settle, 1), settle]
    desk.outbox.away = desk.outbox.is_held = False
    desk.outbox.gate.release()
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert desk.recorded == [attempt_of(settle, 1), settle]


# What is forgotten


async def test_records_of_a_lost_epoch_are_forgotten_and_counted(desk: Desk) -> None:
    """Acks that could not be written before the epoch changed: the cost is one more send."""
    settle = await desk.accepted("a")
    await desk.writer.load([Claim(NODE, 2, NOW_MS)])
    desk.writer.record(settle)
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert desk.recorded == []
    assert desk.metrics.value("fenced_total") == 1
    row = await desk.outbox.find(NODE, "", "a")
    assert row
    assert row.state == RowState.PENDING


async def test_a_record_that_the_database_refuses_holds_up_nothing(desk: Desk) -> None:
    """Invariant 10: bad database content; it is counted and logged, and the rest is written."""
    bad, good = await desk.accepted("bad"), await desk.accepted("good")
    desk.outbox.bad_keys.add("bad")
    desk.writer.record(bad)
    await asyncio.wait_for(desk.writer.flush(), 5)
    desk.writer.record(bad)
    desk.writer.record(good)
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert desk.recorded == [good]
    assert desk.metrics.value("bad_rows_total") == 2


async def test_a_publish_that_the_database_refuses_fails_alone(desk: Desk) -> None:
    desk.outbox.bad_keys.add("bad")
    results = await desk.writer.perform(
        [accept(publication(1, uid="bad")), accept(publication(1, uid="good"))]
    )
    assert isinstance(results[0], StoreUnavailable)
    assert isinstance(results[1], Accepted)


# Bounds and the end


async def test_too_many_waiting_operations_are_refused() -> None:
    """C18: bounded; what a session records is bounded by what was pending before."""
    outbox = MemoryOutbox()
    writer = OutboxWriter(outbox, Metrics(), lambda ops: None, most_waiting=3)
    results: list[GroupResults] = []
    writer.submit([accept(publication(1, uid=uid)) for uid in "ab"], collect(results))
    with pytest.raises(Unavailable) as refusal:
        writer.submit([accept(publication(1, uid=uid)) for uid in "cd"], collect(results))
    assert refusal.value.reason == "OVERLOADED"
    writer.record(End(NODE, 1, "x", 1, "m", "expired", NOW_MS))
    writer.submit([accept(publication(1, uid="c"))], collect(results))
    task = asyncio.create_task(writer.run())
    await asyncio.wait_for(writer.flush(), 5)
    assert [len(group) for group in results] == [2, 1]
    writer.submit([accept(publication(1, uid=uid)) for uid in "efg"], collect(results))
    await asyncio.wait_for(writer.flush(), 5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_groups_that_wait_when_the_writer_is_cancelled_are_told(desk: Desk) -> None:
    desk.outbox.is_held = True
    running = asyncio.ensure_future(desk.writer.perform([accept(publication(1, uid="a"))]))
    await desk.begun()
    waiting = asyncio.ensure_future(desk.writer.perform([accept(publication(1, uid="b"))]))
    await asyncio.wait([waiting], timeout=0)
    await desk.stop()
    for future in (running, waiting):
        (result,) = await asyncio.wait_for(future, 5)
        assert isinstance(result, Unavailable)
        assert result.reason == "STOPPING"
    with pytest.raises(Unavailable):
        desk.writer.submit([Event(NODE, EventKind.REJECTED, NOW_MS, "m")], lambda results: None)


async def test_a_caller_that_gave_up_disturbs_nobody(desk: Desk) -> None:
    desk.outbox.is_held = True
    gone = asyncio.ensure_future(desk.writer.perform([accept(publication(1, uid="a"))]))
    await desk.begun()
    gone.cancel()
    desk.outbox.gate.release()
    await asyncio.wait_for(desk.writer.flush(), 5)
    assert await desk.outbox.find(NODE, "", "a")
    assert gone.cancelled()


# Large groups


async def test_a_bystander_is_written_while_a_large_publish_is(desk: Desk) -> None:
    """C50: its answer comes after one transaction; the large publish's when all of it is durable."""
    desk.outbox.is_held = True
    large: list[GroupResults] = []
    body = publication(1, content=b'"' + b"x" * LARGE_BYTES + b'"')
    desk.writer.submit([accept(body, f"ghost-{n}") for n in range(20)], collect(large))
    assert len(await desk.begun()) == 1  # of no more bytes is a transaction
    bystander = asyncio.ensure_future(desk.writer.perform([accept(publication(1))]))
    await asyncio.wait([bystander], timeout=0)
    desk.outbox.gate.release()
    assert NODE in {op.node_id for op in await desk.begun()}
    desk.outbox.is_held = False
    desk.outbox.gate.release()
    (result,) = await asyncio.wait_for(bystander, 5)
    assert isinstance(result, Accepted)
    assert large == []
    await asyncio.wait_for(desk.writer.flush(), 5)
    (results,) = large
    assert [result.row.node_id for result in results if isinstance(result, Accepted)] == [
        f"ghost-{n}" for n in range(20)
    ]


async def test_what_waits_of_large_groups_takes_nobody_elses_room() -> None:
    """C50: in operations and in bytes; a body is counted once, however many nodes it goes to."""
    writer = OutboxWriter(
        *(MemoryOutbox(), Metrics(), lambda ops: None), most_waiting=1500, max_waiting_bytes=2 * LARGE_BYTES
    )
    results: list[GroupResults] = []
    body = publication(1, content=b'"' + b"x" * LARGE_BYTES + b'"')
    writer.submit([accept(body, f"ghost-{n}") for n in range(50)], collect(results))
    with pytest.raises(Unavailable, match="operations wait"):
        writer.submit([accept(body, f"ghost-{n}") for n in range(1451)], collect(results))
    other = publication(2, content=b'"' + b"x" * LARGE_BYTES + b'"')
    with pytest.raises(Unavailable, match="bytes wait"):
        writer.submit([accept(other, "ghost-1")], collect(results))
    for n in range(1000):
        writer.submit([accept(publication(n))], collect(results))
    task = asyncio.create_task(writer.run())
    await asyncio.wait_for(writer.flush(), 30)
    writer.submit([accept(other, "ghost-1")], collect(results))  # there is room again
    await asyncio.wait_for(writer.flush(), 5)
    assert len(results) == 1002
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
