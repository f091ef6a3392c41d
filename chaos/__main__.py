"""`python -m chaos`: what `make chaos` does."""

import asyncio
import logging
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
from chaos.run import ChaosRun
from chaos.settings import ChaosSettings, EdgeKind, StoreKind
from demo.exclusive import FolderInUse, exclusive
from demo.fleet import FleetFault
from demo.postgres import PostgresFault
from demo.processes import ProcessFault
from edge.__main__ import LogFormat, configure_logs, stop_on_signals

_DEFAULT = ChaosSettings()
_FAULTS = (FolderInUse, ProcessFault, PostgresFault, FleetFault, TimeoutError, grpc.aio.AioRpcError)


async def _main(settings: ChaosSettings, console: Console) -> Verdict:
    def tell(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    task = asyncio.current_task()
    assert task is not None
    stop_on_signals(task.cancel)
    run = ChaosRun(settings, tell)
    await run.run()
    verdict = judge(run.history, run.node_ids)
    settings.history.write_bytes(msgspec.json.encode(run.history))
    return verdict


def run(
    seconds: Annotated[float, typer.Option(min=1, help="how long faults are injected")] = _DEFAULT.seconds,
    faults: Annotated[
        int, typer.Option(min=0, help="instead: until so many were injected, hostile acts among them")
    ] = _DEFAULT.faults,
    hostile: Annotated[bool, typer.Option(help="hostile parties play beside the faults")] = _DEFAULT.hostile,
    seed: Annotated[
        int, typer.Option(help="the same seed gives the same schedule of faults")
    ] = _DEFAULT.seed,
    replicas: Annotated[int, typer.Option(min=1, max=3, help="of each service")] = _DEFAULT.replicas,
    nodes: Annotated[int, typer.Option(min=2, max=500, help="edge nodes")] = _DEFAULT.nodes,
    store: Annotated[
        StoreKind,
        typer.Option(
            help="sqlite: one replica, and its database is left alone; patroni: Patroni's two servers"
        ),
    ] = _DEFAULT.store,
    tls: Annotated[bool, typer.Option(help="mutual TLS and roles for gRPC too")] = _DEFAULT.tls,
    edges: Annotated[
        EdgeKind, typer.Option(help="stock: doubles of KubeEdge's edges instead of the own agent")
    ] = _DEFAULT.edges,
    out: Annotated[Path, typer.Option(help="folder for databases, logs and history")] = _DEFAULT.out,
) -> None:
    """Breaks a hub under load, fault after fault, and checks that every invariant held."""
    if replicas > 1 and store is StoreKind.SQLITE:
        raise typer.BadParameter("several replicas need --store postgresql or patroni")
    settings = ChaosSettings(
        seconds=seconds,
        faults=faults,
        hostile=hostile,
        seed=seed,
        replicas=replicas,
        nodes=nodes,
        store=store,
        tls=tls,
        edges=edges,
        out=out.absolute(),
    )
    # Agents of nodes that enrolled are in this process: that their links come and go is no news.
    configure_logs(LogFormat.AUTO)
    logging.getLogger("edge").setLevel(logging.WARNING)
    console = Console() if sys.stdout.isatty() else Console(width=120, force_terminal=False)
    try:
        with (
            exclusive(settings.out, "--out"),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            verdict = runner.run(_main(settings, console))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("chaos: interrupted before the end; nothing was checked", file=sys.stderr)
        raise SystemExit(130) from None
    except (*_FAULTS, BaseExceptionGroup) as error:
        fault: BaseException = error
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        if not isinstance(fault, _FAULTS):
            raise
        print(f"chaos: {fault or 'not in time'}\nchaos: logs: {settings.data}", file=sys.stderr)
        raise SystemExit(1) from None
    print_verdict(console, verdict, f"{settings.replicas} of each service on {store.value}, seed {seed}")
    console.print(f"logs and history: {settings.out}", highlight=False, soft_wrap=True)
    raise SystemExit(0 if verdict.holds else 1)


if __name__ == "__main__":
    typer.run(run)
