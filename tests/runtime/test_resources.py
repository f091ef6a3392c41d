"""The figures of a process: `services.runtime.resources`."""

import asyncio
import gc
import os
import sys
import threading

import pytest

from services.runtime.resources import process_resources

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel's figures are read from /proc")


async def _waits(end: asyncio.Event) -> None:
    await end.wait()


async def test_tasks_are_counted_and_named_by_what_they_run() -> None:
    end = asyncio.Event()
    before = process_resources()
    async with asyncio.TaskGroup() as group:
        for number in range(3):
            group.create_task(_waits(end), name=f"number {number}")
        during = process_resources()
        end.set()
    after = process_resources()
    assert during.tasks - before.tasks == 3
    assert during.tasks_by_name["_waits"] == 3
    assert (after.tasks, dict(after.tasks_by_name)) == (before.tasks, dict(before.tasks_by_name))
    assert sum(during.tasks_by_name.values()) == during.tasks


async def test_descriptors_are_counted_without_those_of_the_reading() -> None:
    before = process_resources().file_descriptors
    assert before >= 3
    opened = os.pipe()
    try:
        assert process_resources().file_descriptors == before + 2
    finally:
        for descriptor in opened:
            os.close(descriptor)
    assert process_resources().file_descriptors == before


async def test_threads_are_counted() -> None:
    before, end = process_resources().threads, threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    assert process_resources().threads == before + 1
    end.set()
    thread.join()
    assert process_resources().threads == before


async def test_memory_is_that_of_the_process() -> None:
    before = process_resources()
    kept = [object() for _ in range(20_000)]
    # So large that no memory freed before is used for it, and every page of it written.
    large = b"x" * 64 * 1024 * 1024
    during = process_resources()
    assert during.memory_blocks - before.memory_blocks > 20_000
    assert during.resident_bytes - before.resident_bytes > 60 * 1024 * 1024
    assert (len(kept), len(large)) == (20_000, 64 * 1024 * 1024)


class _Ring:
    """An object that only a garbage collection can free."""

    def __init__(self) -> None:
        self.ring = [self]


async def test_garbage_is_collected_only_when_asked_to() -> None:
    process_resources(collect_garbage=True)
    gc.disable()
    try:
        for _ in range(1000):
            _Ring()
        kept = process_resources().memory_blocks
        assert kept - process_resources(collect_garbage=True).memory_blocks > 1000
    finally:
        gc.enable()
