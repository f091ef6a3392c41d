"""The verdict as one table for people."""

from rich.console import Console
from rich.table import Table

from chaos.checker import Verdict

MOST_EXAMPLES = 5


def print_verdict(console: Console, verdict: Verdict, title: str) -> None:
    """The table, then some of each kind of breach in words."""
    table = Table(title=title, title_justify="left", show_header=False, min_width=64)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    for name, count in sorted(verdict.faults.items()):
        took = verdict.recoveries.get(name)
        text = "not recovered" if took is None else f"recovered after {took:.1f} s at most"
        table.add_row(name, str(count), f"{text}; {verdict.reconnects[name]} links opened anew")
    note = f"{verdict.moves} times a link was moved to another dispatcher"
    table.add_row("faults", str(verdict.faults.total()), note, end_section=True)
    for name, count in sorted(verdict.acts.items()):
        table.add_row(name, str(count), "")
    if verdict.acts:
        table.add_row("hostile acts", str(verdict.acts.total()), "beside the faults", end_section=True)
    table.add_row("accepted", str(verdict.accepted), "messages, per node")
    note = f"stored by their nodes; {verdict.superseded} were superseded before"
    table.add_row("acknowledged", str(verdict.acknowledged), note)
    table.add_row("uploads", str(verdict.uploads), "confirmed to their nodes")
    if verdict.certificates:
        table.add_row("certificates", str(verdict.certificates), "given to nodes that enrolled or renewed")
    for name, found in verdict.breaches().items():
        table.add_row(name, str(len(found)), "", style="red" if found else None)
    table.add_row("longest recovery", f"{verdict.longest_recovery_seconds:.1f} s", "from the fault on")
    console.print(table)
    for name, found in verdict.breaches().items():
        for sentence in found[:MOST_EXAMPLES]:
            console.print(f"{name}: {sentence}", highlight=False, markup=False, soft_wrap=True)
    text = "every invariant held" if verdict.holds else "BROKEN"
    console.print(text, style="green" if verdict.holds else "bold red", highlight=False)
