"""`python -m soak`: what `make soak` does."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import grpc
import msgspec
import typer
import uvloop
from rich.console import Console

from chaos.checker import Verdict, judge
from chaos.report import print_verdict
from demo.databases import Engine
from demo.exclusive import FolderInUse, exclusive
from demo.fleet import FleetFault
from demo.postgres import PostgresFault
from demo.processes import ProcessFault
from edge.__main__ import stop_on_signals
from soak.growth import growth
from soak.plot import plot
from soak.run import SoakRun
from soak.samples import write_csv
from soak.settings import SoakSettings

_DEFAULT = SoakSettings()
LEAST_DAY_MINUTES = 2.0
"""In a shorter one a recovery takes hours, and the next night has come."""
_FAULTS = (FolderInUse, ProcessFault, PostgresFault, FleetFault, TimeoutError, grpc.aio.AioRpcError)


async def _main(settings: SoakSettings, console: Console) -> tuple[Verdict, list[str]]:
    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    task = asyncio.current_task()
    assert task is not None
    stop_on_signals(task.cancel)
    run = SoakRun(settings, tell)
    await run.run()
    verdict, grown = judge(run.history, run.node_ids), growth(run.record.samples)
    (settings.out / "soak.json").write_bytes(msgspec.json.encode(run.record))
    write_csv(settings.out / "soak.csv", run.record.samples)
    title = f"{settings.days} days in {settings.seconds / 60:g} minutes, {settings.nodes} nodes"
    await asyncio.to_thread(plot, run.record, settings.out / "soak.png", title)
    return verdict, grown


def run(
    minutes: Annotated[float, typer.Option(min=1, help="how long the days last, all together")] = (
        _DEFAULT.seconds / 60
    ),
    days: Annotated[int, typer.Option(min=1, help="days in that time")] = _DEFAULT.days,
    nodes: Annotated[int, typer.Option(min=6, max=2000, help="edge nodes")] = _DEFAULT.nodes,
    store: Annotated[Engine, typer.Option(help="postgresql: on a server of its own")] = _DEFAULT.engine,
    replicas: Annotated[int, typer.Option(min=1, max=3, help="of each service")] = _DEFAULT.replicas,
    tls: Annotated[bool, typer.Option(help="mutual TLS and roles for gRPC too")] = _DEFAULT.tls,
    out: Annotated[Path, typer.Option(help="folder for picture, figures, databases and logs")] = _DEFAULT.out,
) -> None:
    """Lives through some days in fast motion; fails if an invariant broke or the hub grew."""
    if replicas > 1 and store is Engine.SQLITE:
        raise typer.BadParameter("several replicas need --store postgresql")
    if minutes < LEAST_DAY_MINUTES * days:
        raise typer.BadParameter(f"a day takes {LEAST_DAY_MINUTES:g} minutes at least")
    settings = SoakSettings(
        seconds=60 * minutes,
        days=days,
        nodes=nodes,
        replicas=replicas,
        engine=store,
        tls=tls,
        out=out.absolute(),
    )
    console = Console() if sys.stdout.isatty() else Console(width=120, force_terminal=False)
    try:
        with (
            exclusive(settings.out, "--out"),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            verdict, grown = runner.run(_main(settings, console))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("soak: interrupted before the end; nothing was checked", file=sys.stderr)
        raise SystemExit(130) from None
    except (*_FAULTS, BaseExceptionGroup) as error:
        fault: BaseException = error
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        if not isinstance(fault, _FAULTS):
            raise
        print(f"soak: {fault or 'not in time'}\nsoak: logs: {settings.data}", file=sys.stderr)
        raise SystemExit(1) from None
    print_verdict(console, verdict, f"{replicas} of each service on {store.value}")
    for sentence in grown:
        console.print(f"grown: {sentence}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"picture, figures and logs: {settings.out}", highlight=False, soft_wrap=True)
    raise SystemExit(0 if verdict.holds and not grown else 1)


if __name__ == "__main__":
    typer.run(run)
