"""What is taken down all the time, and how it is kept: a row per process and instant."""

import csv
from collections.abc import Iterable
from pathlib import Path

import msgspec


class ProcessSample(msgspec.Struct, frozen=True):
    """A process of the hub; `started` tells its lives apart."""

    process: str
    pid: int
    resident_bytes: int
    memory_blocks: int
    tasks: int
    threads: int
    file_descriptors: int


class Sample(msgspec.Struct, frozen=True):
    """The hub at one instant, `at` in seconds of the run; `hour` of the day, `day` from 0. Latencies are of
    the messages acknowledged since the last sample; None: there was none."""

    at: float
    day: int
    hour: float
    links: int
    pending: int
    """Messages that the hub waits for; -1: it did not answer."""
    accepted: int
    p50_ms: float | None
    p99_ms: float | None
    processes: list[ProcessSample] = []


class Happened(msgspec.Struct, frozen=True):
    """Something that was done, for the picture."""

    at: float
    what: str


class Record(msgspec.Struct):
    """All of a run, as it is written to soak.json."""

    samples: list[Sample] = []
    events: list[Happened] = []


_HUB = ("at", "day", "hour", "links", "pending", "accepted", "p50_ms", "p99_ms")
_PROCESS = ("pid", "resident_bytes", "memory_blocks", "tasks", "threads", "file_descriptors")


def write_csv(path: Path, samples: Iterable[Sample]) -> None:
    """One line per sample and process, for spreadsheets."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow((*_HUB, "process", *_PROCESS))
        for sample in samples:
            for process in sample.processes:
                row = [getattr(sample, name) for name in _HUB]
                writer.writerow((*row, process.process, *(getattr(process, name) for name in _PROCESS)))
