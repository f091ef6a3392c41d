"""Whether the hub grows: a process against its own beginning, the last night against the first. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from soak.day import NIGHT_ENDS
from soak.samples import ProcessSample, Sample

MOST_GROWTH = 1.25
"""Of a process' resident memory and of its blocks, from when it had settled to the end of its life."""
SPARE_BYTES = 12 * 1024 * 1024
"""Of memory, what counts as nothing beside that."""
CACHE_BYTES = 2 * 64 * 1024 * 1024
"""And what the two page caches of a SQLite database fill with, as that grows; a connector has none."""
SPARE_BLOCKS = 50_000
"""Bounded memories of ids, 16 384 each, fill within hours."""
SPARE_TASKS = 2
"""Calls that are being served when a sample is taken."""
SETTLED_SECONDS = 30.0
_NIGHT_HOURS = 1.5


def growth(samples: Sequence[Sample]) -> list[str]:
    """One sentence per process that holds more than it may; none: the bounds hold."""
    lives: dict[tuple[str, int], list[tuple[float, ProcessSample]]] = defaultdict(list)
    for sample in samples:
        for process in sample.processes:
            lives[process.process, process.pid].append((sample.at, process))
    return [
        *(sentence for (name, _), life in lives.items() for sentence in _memory(name, life)),
        *_nights(samples),
    ]


def _memory(name: str, life: Sequence[tuple[float, ProcessSample]]) -> list[str]:
    began = life[0][0]
    settled = [one for at, one in life if at >= began + SETTLED_SECONDS]
    third = len(settled) // 3
    if third < 2:
        return []  # too short a life to say anything
    found = []
    spare_bytes = SPARE_BYTES + (0 if name.startswith("connector") else CACHE_BYTES)
    for what, spare, unit, unit_name in (
        ("resident_bytes", spare_bytes, 2**20, "MiB"),
        ("memory_blocks", SPARE_BLOCKS, 1, "blocks of memory"),
    ):
        first, last = (
            median(getattr(one, what) for one in part) for part in (settled[:third], settled[-third:])
        )
        if last > MOST_GROWTH * first + spare:
            sizes = f"from {first / unit:.0f} to {last / unit:.0f} {unit_name}"
            found.append(f"{name} grew {sizes} in its life from {began:.0f} s on")
    return found


def _nights(samples: Sequence[Sample]) -> list[str]:
    """Tasks and descriptors when all is quiet, night for night; of all replicas of a service together, since
    links are with another one each night."""
    nights: dict[int, list[dict[str, list[ProcessSample]]]] = defaultdict(list)
    for sample in samples:
        if NIGHT_ENDS - _NIGHT_HOURS <= sample.hour <= NIGHT_ENDS:
            services: dict[str, list[ProcessSample]] = defaultdict(list)
            for process in sample.processes:
                services[process.process.rpartition("-")[0]].append(process)
            nights[sample.day].append(services)
    if not nights:
        return []
    first, last = nights[min(nights)], nights[max(nights)]
    found = []
    for service in sorted(first[0].keys() & last[0].keys()):
        replicas = len(first[0][service])
        for what in ("tasks", "file_descriptors"):
            then, now = (
                median(sum(getattr(one, what) for one in look[service]) for look in night if service in look)
                for night in (first, last)
            )
            if now > then + SPARE_TASKS * replicas:
                found.append(f"{service} held {now:.0f} {what} in the last night, {then:.0f} in the first")
    return found
