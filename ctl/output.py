"""What a command writes: a table for people or JSON for programs, on standard output.

What is said beside the answer goes to standard error: sentences, or with `-o json` a line of JSON each.
"""

import io
import itertools
import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from ctl.fitting import SENTENCES, fitting, needed


class Output(StrEnum):
    """How answers look."""

    TABLE = "table"
    JSON = "json"


# Wide enough for any table: what reads a pipe wants whole lines.
_PIPE_COLUMNS = 10_000
_STYLES = {
    "active": "green",
    "acknowledged": "green",
    "accepted": "green",
    "parked": "red",
    "rejected": "red",
    "stale": "yellow",
    "away": "yellow",
    "orphaned": "yellow",
}


def asks_for_json(arguments: Sequence[str]) -> bool:
    """Whether a command line has `-o json`: also one that cannot be read otherwise is answered so."""
    pairs = itertools.pairwise([*arguments, ""])
    return any(
        (one in ("-o", "--output") and following == "json") or one in ("-ojson", "--output=json")
        for one, following in pairs
    )


def show_json(value: Any) -> None:
    """One JSON document."""
    write(json.dumps(value, indent=2, ensure_ascii=False))


def write(line: str) -> None:
    """A line at once: who reads a pipe may leave, which is told here and not at the end of the process."""
    print(line, flush=True)


def note(line: str) -> None:
    """Beside the answer."""
    if asks_for_json(sys.argv[1:]):
        line = json.dumps({"note": line.removeprefix("cloudhubctl: ")}, ensure_ascii=False)
    print(line, file=sys.stderr)


def table_text(columns: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None, tty: bool) -> str:
    """A table as text; sentences are broken where it would be too wide, nothing else is."""
    table = Table(box=None, pad_edge=False, header_style="bold" if tty else "")
    for column in columns:
        table.add_column(column, no_wrap=column not in SENTENCES, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=tty, width=width, highlight=False, legacy_windows=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n"))


def show_table(
    columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str, *, wide: bool = False
) -> None:
    """A table, or what is said if it has no rows. Columns that a terminal has no room for are left out and
    named beside it, unless it is to be `wide`."""
    if not rows:
        note(empty)
        return
    width = terminal_columns()
    if width is None:
        write(table_text(columns, rows, width=_PIPE_COLUMNS, tty=False))
        return
    kept = list(range(len(columns))) if wide else fitting(columns, rows, width)
    shown = [columns[at] for at in kept]
    cells = [[row[at] for at in kept] for row in rows]
    # Lines that are longer all the same are the terminal's to break: what is copied from it is whole.
    write(table_text(shown, cells, width=max(width, needed(shown, cells)), tty=True))
    if len(kept) < len(columns):
        left_out = ", ".join(name for at, name in enumerate(columns) if at not in kept)
        note(f"left out: {left_out} (--wide)")


def terminal_columns() -> int | None:
    """How wide lines may be; None where standard output is no terminal, since what reads a pipe wants whole
    lines."""
    return Console().width if sys.stdout.isatty() else None


def progress() -> Progress:
    """A bar on standard error; nothing where that is no terminal."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        transient=True,
    )
