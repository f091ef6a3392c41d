"""What the figures were measured on, and what each process took of it."""

import os
import platform
import sqlite3
import statistics
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from demo.processes import ProcessFault

_SYNCS = 50


def machine_facts(folder: Path) -> dict[str, str | int | float]:
    """Of this machine; `folder` is on the disk that the databases are on."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
        "memory_mib": psutil.virtual_memory().total // 2**20,
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sync_4k_ms": round(_sync_ms(folder), 3),
        "load_before": round(os.getloadavg()[0], 2),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


def _sync_ms(folder: Path) -> float:
    """Median time to append 4 KiB and have it on the disk."""
    path = folder / "sync-probe"
    times: list[float] = []
    try:
        with path.open("wb") as file:
            for _ in range(_SYNCS):
                file.write(bytes(4096))
                file.flush()
                started = time.perf_counter()
                os.fdatasync(file.fileno())
                times.append(time.perf_counter() - started)
    finally:
        path.unlink(missing_ok=True)
    return statistics.median(times) * 1000


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes have used since they started."""

    cpu_seconds: Mapping[str, float]
    resident_bytes: Mapping[str, int]

    def cpu_since(self, before: "Usage") -> dict[str, float]:
        """CPU seconds of each process since `before`."""
        return {name: seconds - before.cpu_seconds[name] for name, seconds in self.cpu_seconds.items()}


class Processes:
    """Reads the use of processes by name; of several under one name the sum, of the `families` with their
    children's (a database server is one), those that have ended included.

    Raises ProcessFault if one of the named processes has ended; their children may come and go.
    """

    def __init__(self, pids: Mapping[str, Sequence[int]], families: Collection[str] = ("database",)) -> None:
        self._processes = {name: [_found(name, pid) for pid in several] for name, several in pids.items()}
        self._families = families

    def usage(self) -> Usage:
        """Now."""
        cpu: dict[str, float] = {}
        resident: dict[str, int] = {}
        for name, processes in self._processes.items():
            cpu[name], resident[name] = 0.0, 0
            for process in processes:
                for seconds, size in self._used(name, process):
                    cpu[name] += seconds
                    resident[name] += size
        return Usage(cpu, resident)

    def _used(self, name: str, process: psutil.Process) -> Iterator[tuple[float, int]]:
        """CPU seconds and resident bytes of a process and of each of its children, as far as they count."""
        is_family = name in self._families
        try:
            children = process.children() if is_family else []
            times = process.cpu_times()
            reaped = times.children_user + times.children_system if is_family else 0.0
            yield times.user + times.system + reaped, process.memory_info().rss
        except psutil.NoSuchProcess:
            raise _ended(name, process.pid) from None
        for child in children:
            try:
                with child.oneshot():
                    times = child.cpu_times()
                    yield times.user + times.system, child.memory_info().rss
            except psutil.NoSuchProcess:
                continue  # between the listing and here


def _found(name: str, pid: int) -> psutil.Process:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        raise _ended(name, pid) from None


def _ended(name: str, pid: int) -> ProcessFault:
    return ProcessFault(f"{name} (process {pid}) ended while it was measured; its log may say why")
