"""Group commit, and that nothing is told before it is durable."""

import asyncio
import threading

import msgspec
import pytest

from edge import writer as writer_module
from edge.outbox import Upload
from edge.protocol import Header, Message, Route, decide
from edge.store import Batch, Change, StoreFault
from edge.writer import Writer


def change(number: int) -> Change:
    message = Message(Header(str(number)), Route("s", "resource", "update", "a/b/c"), msgspec.Raw(b"{}"))
    return Change("n1", message, decide(message, ()), 0)


def upload(number: int) -> Upload:
    return Upload("n1", number, f"u-{number}", "telemetry", b"{}", 0)


class HeldStore:
    """A store whose commits take as long as the test says, or fail."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Semaphore(0)
        self.batches: list[list[str]] = []
        self.fault: StoreFault | None = None

    def commit(self, batch: Batch) -> None:
        self.batches.append([one.message.header.msg_id for one in batch.changes])
        self.begun.release()
        assert self.may_end.acquire(timeout=10)
        if self.fault is not None:
            raise self.fault

    async def begins(self) -> None:
        await asyncio.to_thread(self.begun.acquire, timeout=10)


class Told:
    """What the writer told."""

    def __init__(self) -> None:
        self.durable: list[str] = []
        self.failed: list[str] = []
        self.uploads: list[int] = []
        self.news = asyncio.Event()

    def on_durable(self, batch: Batch) -> None:
        self.durable += [one.message.header.msg_id for one in batch.changes]
        self.uploads += [one.number for one in batch.uploads]
        self.news.set()

    def on_failed(self, batch: Batch, fault: StoreFault) -> None:
        self.failed += [one.message.header.msg_id for one in batch.changes]
        self.news.set()

    async def next(self) -> None:
        await asyncio.wait_for(self.news.wait(), 10)
        self.news.clear()


async def test_nothing_is_told_before_the_commit_has_ended() -> None:
    store, told = HeldStore(), Told()
    writer = Writer(store, told.on_durable, told.on_failed)
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())
        writer.change(change(1))
        await store.begins()
        assert told.durable == []
        store.may_end.release()
        await told.next()
        assert told.durable == ["1"]
        writer.stop()


async def test_what_comes_during_a_commit_goes_into_the_next_together() -> None:
    store, told = HeldStore(), Told()
    writer = Writer(store, told.on_durable, told.on_failed)
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())
        writer.change(change(1))
        await store.begins()
        for number in (2, 3, 4):
            writer.change(change(number))
        store.may_end.release(2)
        await told.next()
        writer.stop()
    assert store.batches == [["1"], ["2", "3", "4"]]
    assert told.durable == ["1", "2", "3", "4"]
    assert writer.commits == 2


async def test_a_failed_commit_is_told_as_failed_and_the_next_goes_on() -> None:
    store, told = HeldStore(), Told()
    writer = Writer(store, told.on_durable, told.on_failed)
    async with asyncio.TaskGroup() as group:
        group.create_task(writer.run())
        store.fault = StoreFault("the disk is full")
        writer.change(change(1))
        store.may_end.release()
        await told.next()
        assert (told.durable, told.failed) == ([], ["1"])
        store.fault = None
        writer.change(change(2))
        store.may_end.release()
        await told.next()
        assert (told.durable, told.failed) == (["2"], ["1"])
        writer.stop()


async def test_stopping_writes_what_is_queued_first() -> None:
    store, told = HeldStore(), Told()
    writer = Writer(store, told.on_durable, told.on_failed)
    writer.change(change(1))
    writer.upload(upload(1))
    writer.stop()
    store.may_end.release()
    await writer.run()
    assert (told.durable, told.uploads) == (["1"], [1])


async def test_a_huge_queue_is_written_in_parts_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer_module, "MOST_CHANGES_PER_BATCH", 2)
    store, told = HeldStore(), Told()
    writer = Writer(store, told.on_durable, told.on_failed)
    for number in range(5):
        writer.change(change(number))
    writer.settle(upload(1))
    writer.stop()
    store.may_end.release(3)
    await writer.run()
    assert store.batches == [["0", "1"], ["2", "3"], ["4"]]


async def test_a_fault_that_is_not_the_stores_ends_the_writer() -> None:
    class Broken:
        def commit(self, batch: Batch) -> None:
            raise RuntimeError("a bug")

    told = Told()
    writer = Writer(Broken(), told.on_durable, told.on_failed)
    writer.change(change(1))
    with pytest.raises(RuntimeError, match="a bug"):
        await writer.run()
    assert told.durable == []
