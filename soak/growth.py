"""Whether the hub grows: a process against its own beginning, the last night against the first. Pure."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from soak.day import NIGHT_ENDS
from soak.samples import ProcessSample, Sample

MOST_GROWTH = 1.25
"""Resident memory of a process, from when it had settled to the end of its life."""
SPARE_BYTES = 12 * 1024 * 1024
"""Of that, what counts as nothing: bounded memories of ids and statements fill within hours."""
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
    settled = [one.resident_bytes for at, one in life if at >= began + SETTLED_SECONDS]
    if len(settled) < 6:
        return []  # too short a life to say anything
    third = len(settled) // 3
    first, last = median(settled[:third]), median(settled[-third:])
    if last <= MOST_GROWTH * first + SPARE_BYTES:
        return []
    return [
        f"{name} grew from {first / 2**20:.0f} to {last / 2**20:.0f} MiB in its life from {began:.0f} s on"
    ]


def _nights(samples: Sequence[Sample]) -> list[str]:
    """Tasks and descriptors when all is quiet, night for night."""
    nights: dict[int, dict[str, list[ProcessSample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        if NIGHT_ENDS - _NIGHT_HOURS <= sample.hour <= NIGHT_ENDS:
            for process in sample.processes:
                nights[sample.day][process.process].append(process)
    if not nights:
        return []
    first, last = nights[min(nights)], nights[max(nights)]
    return [
        f"{name} held {now:.0f} {what} in the last night, {then:.0f} in the first"
        for name in first.keys() & last.keys()
        for what in ("tasks", "file_descriptors")
        if (now := median(getattr(one, what) for one in last[name]))
        > (then := median(getattr(one, what) for one in first[name])) + SPARE_TASKS
    ]
