"""The picture of a run: memory, tasks, latency and backlog over time."""

from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no display is needed

from matplotlib import pyplot
from matplotlib.axes import Axes

from soak.samples import Record

_MIB = 2**20


def plot(record: Record, path: Path, title: str) -> None:
    """Writes a PNG. What happened is marked; numbers name the lines of the legend below it."""
    figure, (memory, tasks, latency, backlog) = pyplot.subplots(4, 1, sharex=True, figsize=(14, 14))
    _by_process(record, memory, "resident_bytes", 1 / _MIB)
    memory.set_ylabel("resident memory, MiB")
    memory.set_ylim(bottom=0)
    memory.legend(loc="lower right", fontsize="small", ncols=3)
    _by_process(record, tasks, "tasks", 1.0)
    tasks.set_ylabel("asyncio tasks")
    times = [sample.at for sample in record.samples]
    latency.plot(times, [sample.p50_ms or float("nan") for sample in record.samples], label="p50")
    latency.plot(times, [sample.p99_ms or float("nan") for sample in record.samples], label="p99")
    latency.set_yscale("log")
    latency.set_ylabel("publish to acknowledgement, ms")
    latency.legend(loc="upper right", fontsize="small")
    backlog.plot(times, [max(0, sample.pending) for sample in record.samples], label="pending messages")
    backlog.set_ylabel("pending messages")
    links = backlog.twinx()
    links.plot(times, [sample.links for sample in record.samples], color="grey", label="links")
    links.set_ylabel("links")
    links.set_ylim(bottom=0)
    backlog.set_xlabel("seconds")
    for event in record.events:
        for axes in (memory, tasks, latency, backlog):
            axes.axvline(event.at, color="lightgrey", linewidth=0.8, zorder=0)
        memory.annotate(
            event.what.partition(": ")[2] or event.what,
            (event.at, 1.01),
            xycoords=("data", "axes fraction"),
            rotation=60,
            fontsize=7,
        )
    figure.suptitle(title, y=0.995)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _by_process(record: Record, axes: Axes, figure: str, scale: float) -> None:
    """A line per process; a gap where it was restarted."""
    lines: dict[str, tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    pids: dict[str, int] = {}
    for sample in record.samples:
        for process in sample.processes:
            at, values = lines[process.process]
            if pids.setdefault(process.process, process.pid) != process.pid:
                pids[process.process] = process.pid
                at.append(sample.at)
                values.append(float("nan"))
            at.append(sample.at)
            values.append(getattr(process, figure) * scale)
    for name, (at, values) in sorted(lines.items()):
        axes.plot(at, values, label=name)
