"""What scenarios measured, as one table for people."""

from collections.abc import Iterable

import msgspec
from rich.console import Console
from rich.table import Table


class Row(msgspec.Struct, frozen=True):
    """One scenario. Delivery times: from publish to acknowledgement, of what was acknowledged."""

    scenario: str
    nodes: int
    accepted: int
    acknowledged: int
    lost: int
    stale: int
    repeated: int
    """Messages that came to their nodes a second time, with the same id."""
    p50_ms: float | None
    p99_ms: float | None
    most_ms: float | None
    others_p99_ms: float | None = None
    """Of the nodes whose network was left alone; None: there were none."""
    recovery_seconds: float | None = None
    """From the end of a damage until all went on as before, at most. None: nothing was interrupted."""
    note: str = ""


def print_table(console: Console, rows: Iterable[Row]) -> None:
    """In the order of their names."""
    table = Table(title="weak networks", title_justify="left")
    table.add_column("scenario")
    for name in (
        *("nodes", "accepted", "acked", "lost", "stale", "again"),
        *("p50", "p99", "max", "others p99", "recovered in"),
    ):
        table.add_column(name, justify="right")
    table.add_column("note", overflow="fold")
    for row in sorted(rows, key=lambda row: row.scenario):
        table.add_row(
            row.scenario,
            *map(str, (row.nodes, row.accepted, row.acknowledged, row.lost, row.stale, row.repeated)),
            *(_duration(ms) for ms in (row.p50_ms, row.p99_ms, row.most_ms, row.others_p99_ms)),
            "" if row.recovery_seconds is None else f"{row.recovery_seconds:.1f} s",
            row.note,
            style="red" if row.lost or row.stale else None,
        )
    console.print(table)


def _duration(ms: float | None) -> str:
    if ms is None:
        return ""
    return f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.1f} s"
