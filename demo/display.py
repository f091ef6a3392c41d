"""What the demo shows: a live table on a terminal, plain lines elsewhere.

The table has the same lines from the first to the last moment, each within the terminal's width: what changes
are figures, so that nothing jumps.
"""

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.operator import HubFigures, Process

PLAIN_EVERY_SECONDS = 2.0
NEWS_LINES = 6
_MAX_WIDTH = 100
_NAME_WIDTH, _VALUE_WIDTH = 9, 10
_SERVICES = ("sessions", "dispatcher", "connector", "enrolment")


@dataclass(slots=True)
class Figures:
    """Everything that the table shows."""

    nodes: int = 0
    others: tuple[str, ...] = ()
    """Processes of the demo beside those of the hub: `2 of edges`."""
    hub: HubFigures = field(default_factory=HubFigures)
    links: int = 0
    published: int = 0
    """Accepted since the start of this run; and `acknowledged` of those."""
    refused: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    repeated: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    cut_p99_ms: float | None = None
    cuts: int = 0
    cut_now: int = 0
    """Nodes whose network is cut, or was a moment ago."""
    reconnects: int = 0
    upstream: Counter[str] = field(default_factory=Counter)


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.1f} ms" if value < 1000 else f"{value:,.0f} ms".replace(",", " ")


def _numbers(processes: Sequence[Process], service: str) -> str:
    return ", ".join(str(one.nodes) for one in processes if one.service == service) or "-"


def rows(figures: Figures) -> Iterator[tuple[str, str, str]]:
    """The table: name, figure, what it is. Pure."""
    hub = figures.hub
    whole = figures.nodes - figures.cut_now
    yield (
        *("nodes", str(figures.nodes)),
        f"{figures.links} links; networks: {whole} whole, {figures.cut_now} cut ({figures.cuts} cuts so far)",
    )
    yield "sessions", str(hub.sessions), f"{figures.reconnects} reconnects so far"
    yield "published", str(figures.published), _reasons(figures.refused) or "accepted: on the hub's disk"
    yield "acked", str(figures.acknowledged), f"of those, on edges' disks; {figures.repeated} received twice"
    yield "pending", str(hub.pending), f"{hub.in_flight} in flight, {hub.parked} parked"
    yield "p50", _ms(figures.p50_ms), "publish to ack, last 10 s, where the network is whole"
    yield "p99", _ms(figures.p99_ms), "the same"
    yield "p99 cut", _ms(figures.cut_p99_ms), "the same, held up by a network that was cut"
    yield "upstream", str(figures.upstream.total()), _reasons(figures.upstream)
    counts = Counter(one.service for one in hub.processes)
    told = ", ".join(f"{counts[service]} {service}" for service in _SERVICES if counts[service])
    beside = sum(int(text.split()[0]) for text in figures.others)
    yield "processes", str(len(hub.processes) + beside), told
    yield "", "", ", ".join(figures.others)
    yield (
        *("nodes at", ""),
        f"dispatchers: {_numbers(hub.processes, 'dispatcher')}; "
        f"connectors: {_numbers(hub.processes, 'connector')}",
    )


def picture(figures: Figures, news: Iterable[str], width: int) -> Group:
    """The table and the last lines of news below it, a line of the terminal each."""
    table = Table(
        title="CloudHub",
        title_justify="left",
        show_header=False,
        box=None,
        padding=(0, 2, 0, 0),
        width=min(width, _MAX_WIDTH),
    )
    table.add_column(style="bold", no_wrap=True, width=_NAME_WIDTH)
    table.add_column(justify="right", no_wrap=True, width=_VALUE_WIDTH)
    table.add_column(style="dim", no_wrap=True, overflow="ellipsis", ratio=1)
    for row in rows(figures):
        table.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    last = [*news][-NEWS_LINES:]
    lines = [*last, *[""] * (NEWS_LINES - len(last))]
    return Group(table, *(Text(line, style="dim", no_wrap=True, overflow="ellipsis") for line in lines))


class Display:
    """A context that shows figures; `tell` adds a line of news."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._news: deque[str] = deque(maxlen=NEWS_LINES)
        self._live: Live | None = None
        self._figures = Figures()
        self._next_plain = 0.0

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._table())
            self._live.stop()

    def tell(self, text: str) -> None:
        """Something happened."""
        line = f"{time.strftime('%H:%M:%S')}  {text}"
        if self._live is None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            self._news.append(line)

    def show(self, figures: Figures) -> None:
        """The present figures; a plain line at most every two seconds."""
        self._figures = figures
        if self._live is not None:
            self._live.update(self._table())
        elif time.monotonic() >= self._next_plain:
            self._next_plain = time.monotonic() + PLAIN_EVERY_SECONDS
            self.tell(
                f"nodes={figures.nodes} sessions={figures.hub.sessions} published={figures.published} "
                f"acked={figures.acknowledged} pending={figures.hub.pending} "
                f"p50={_ms(figures.p50_ms)} p99={_ms(figures.p99_ms)} "
                f"upstream={figures.upstream.total()} cuts={figures.cuts}"
            )

    def _table(self) -> Group:
        return picture(self._figures, self._news, self._console.width - 1)


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(4))
