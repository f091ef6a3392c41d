"""What the operating system, the event loop and the interpreter hold for this process."""

import asyncio
import gc
import sys
from collections import Counter
from pathlib import Path

from cloudhub.v1.resources_pb2 import ProcessResources

_STATUS = Path("/proc/self/status")
_DESCRIPTORS = Path("/proc/self/fd")


def process_resources(*, collect_garbage: bool = False) -> ProcessResources:
    """The counts of this process, for GetResources; call it from the event loop.

    Threads, descriptors and resident memory are the kernel's figures (proc(5)); without a /proc they are 0.
    """
    if collect_garbage:
        gc.collect()
    by_name = Counter(_name(task) for task in asyncio.all_tasks())
    found = ProcessResources(
        tasks=by_name.total(),
        tasks_by_name=by_name,
        memory_blocks=sys.getallocatedblocks(),
    )
    found.at.GetCurrentTime()
    if _STATUS.exists():
        status = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        found.threads = int(status["Threads"])
        found.resident_bytes = int(status["VmRSS"].removesuffix("kB")) * 1024
        # The listing itself takes a descriptor.
        found.file_descriptors = sum(1 for _ in _DESCRIPTORS.iterdir()) - 1
    return found


def _name(task: asyncio.Task[object]) -> str:
    """What a task runs; its own name may hold an address or a number."""
    name: str = getattr(task.get_coro(), "__qualname__", type(task).__name__)
    return name.replace("<locals>.", "")
