"""What a command writes: a table for people or JSON for programs, on standard output."""

import io
import json
import sys
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text


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


def as_dict(message: Message) -> dict[str, Any]:
    """A message as grpcurl shows it: fields by their names, defaults left out."""
    return MessageToDict(message, preserving_proto_field_name=True)


def show_json(value: Any) -> None:
    """One JSON document."""
    write(json.dumps(value, indent=2, ensure_ascii=False))


def write(line: str) -> None:
    """A line at once: who reads a pipe may leave, which is told here and not at the end of the process."""
    print(line, flush=True)


def note(line: str) -> None:
    """For people, beside the answer."""
    print(line, file=sys.stderr)


def table_text(columns: Sequence[str], rows: Iterable[Sequence[str]], *, width: int | None, tty: bool) -> str:
    """A table as text: bounded by the terminal's width on one, whole lines elsewhere."""
    table = Table(box=None, pad_edge=False, header_style="bold" if tty else "")
    for column in columns:
        table.add_column(column, no_wrap=not tty, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    buffer = io.StringIO()
    console = Console(file=buffer, force_terminal=tty, width=width, highlight=False, legacy_windows=False)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip("\n").split("\n"))


def show_table(columns: Sequence[str], rows: Sequence[Sequence[str]], empty: str) -> None:
    """A table, or what is said if it has no rows."""
    if not rows:
        note(empty)
        return
    width = terminal_columns()
    write(table_text(columns, rows, width=width or _PIPE_COLUMNS, tty=width is not None))


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
