"""What the demo shows: a live table on a terminal, plain lines elsewhere."""

import time
from collections import Counter, deque
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from demo.operator import HubFigures

PLAIN_EVERY_SECONDS = 2.0
_NEWS_LINES = 6
_INSTANCES_PER_ROW = 3


@dataclass(slots=True)
class Figures:
    """Everything that the table shows."""

    nodes: int = 0
    hub: HubFigures = field(default_factory=HubFigures)
    links: int = 0
    published: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    repeated: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    cuts: int = 0
    reconnects: int = 0
    upstream: Counter[str] = field(default_factory=Counter)


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} ms"


class Display:
    """A context that shows figures; `tell` adds a line of news."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._news: deque[str] = deque(maxlen=_NEWS_LINES)
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
        figures = self._figures
        table = Table(title="CloudHub", title_justify="left", show_header=False, min_width=64)
        table.add_column(style="bold")
        table.add_column(justify="right")
        table.add_column(style="dim")
        hub = figures.hub
        for name, value, note in (
            ("nodes", figures.nodes, f"{figures.links} links now, {figures.reconnects} reconnects"),
            ("sessions", hub.sessions, f"{figures.cuts} networks cut so far"),
            ("published", figures.published, _reasons(figures.refused) or "accepted: on the hub's disk"),
            ("acked", figures.acknowledged, f"on the edges' disks; {figures.repeated} received twice"),
            ("pending", hub.pending, f"{hub.in_flight} in flight, {hub.parked} parked"),
            ("p50", _ms(figures.p50_ms), "publish → ack"),
            ("p99", _ms(figures.p99_ms), "of the last minute, cuts included"),
            ("upstream", figures.upstream.total(), _reasons(figures.upstream)),
        ):
            table.add_row(name, str(value), note)
        for start in range(0, len(hub.instances), _INSTANCES_PER_ROW):
            some = hub.instances[start : start + _INSTANCES_PER_ROW]
            table.add_row(
                "" if start else "processes", "" if start else str(len(hub.instances)), ", ".join(some)
            )
        return Group(table, *(Text(line, style="dim", no_wrap=True) for line in self._news))


def _reasons(counts: Counter[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.most_common(4))
