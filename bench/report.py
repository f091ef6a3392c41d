"""The figures as a table for people."""

from rich.console import Console
from rich.table import Table

from bench.figures import Case, Results, targets


def _number(value: float | None, digits: int = 0) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def print_results(console: Console, results: Results) -> None:
    """Tables of what was measured, and the targets."""
    machine = results.machine
    console.print(
        f"{machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, "
        f"a synced 4 KiB write takes {machine['sync_4k_ms']} ms\n"
        f"{results.settings['message_bytes']}-byte messages, links over {results.settings['transport']}; "
        f"{results.settings['replicas']} of each service on {results.settings['store']}, every "
        "commit synced; the edges' SQLite synchronous=NORMAL",
        highlight=False,
    )
    console.print(_speed(results.cases))
    if any(case.throughput for case in results.cases):
        console.print(_cpu(results.cases))
    if any(case.memory for case in results.cases):
        console.print(_memory(results.cases))
    for target in targets(results):
        mark = "[green]met[/green]" if target.met else "[red]missed[/red]"
        console.print(f"{mark}  {target.text}: {_number(target.value, 1)}", highlight=False)


def _speed(cases: list[Case]) -> Table:
    table = Table(title="Speed", title_justify="left")
    columns = ("nodes", "acked/s", "at msgs/s", "p50 ms", "p99 ms", "p99.9 ms", "connects/s")
    for name in columns:
        table.add_column(name, justify="right")
    for case in cases:
        throughput, latency, connects = case.throughput, case.latency, case.connects
        table.add_row(
            str(case.nodes),
            _number(throughput.per_second if throughput else None),
            _number(latency.per_second if latency else None),
            _number(latency.p50_ms if latency else None, 1),
            _number(latency.p99_ms if latency else None, 1),
            _number(latency.p999_ms if latency else None, 1),
            _number(connects.per_second if connects and case.nodes > 1 else None),
        )
    return table


def _cpu(cases: list[Case]) -> Table:
    table = Table(title="CPU seconds per 100 000 messages", title_justify="left")
    table.add_column("nodes", justify="right")
    names: tuple[str, ...] = ("connector", "dispatcher", "sessions", "edges", "publisher")
    if any(case.throughput and "database" in case.throughput.cpu_seconds_per_100k for case in cases):
        names += ("database",)
    for name in names:
        table.add_column(name, justify="right")
    for case in cases:
        if case.throughput is not None:
            used = case.throughput.cpu_seconds_per_100k
            table.add_row(str(case.nodes), *(_number(used[name], 2) for name in names))
    return table


def _memory(cases: list[Case]) -> Table:
    table = Table(title="Resident memory per idle link, KiB", title_justify="left")
    table.add_column("links", justify="right")
    names = ("connector", "dispatcher", "sessions")
    for name in names:
        table.add_column(name, justify="right")
    for case in cases:
        # With few links the memory that the first one needs hides what each one needs.
        if case.memory is not None and case.nodes >= 100:
            table.add_row(str(case.nodes), *(_number(case.memory.kib_per_link[name], 1) for name in names))
    return table
