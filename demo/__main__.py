"""`python -m demo`: what `make run` does."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import grpc
import typer
import uvloop
from rich.console import Console

from demo.app import Demo
from demo.exclusive import FolderInUse
from demo.fleet import FleetFault
from demo.manifests import ManifestFault
from demo.postgres import PostgresFault
from demo.processes import ProcessFault
from demo.settings import DemoSettings
from edge.__main__ import stop_on_signals
from edge.certificates import CertificateFault

_DEFAULT = DemoSettings()
_FAULTS = (
    FolderInUse,
    ProcessFault,
    FleetFault,
    ManifestFault,
    PostgresFault,
    CertificateFault,
    ConnectionError,
    grpc.aio.AioRpcError,
)


async def _main(settings: DemoSettings, console: Console) -> int:
    demo = Demo(settings, console)
    task = asyncio.current_task()
    assert task is not None

    heard_at = 0.0
    given_up = False

    def on_signal() -> None:
        nonlocal heard_at, given_up
        now = asyncio.get_running_loop().time()
        # One Ctrl-C may arrive more than once, from the terminal and from whoever started us.
        if now - heard_at < 1.0:
            return
        heard_at = now
        if demo.running and not demo.stopping:
            demo.stop()
        elif not given_up:
            # Once only: what is started is then stopped in order, within bounded times.
            given_up = True
            task.cancel()

    stop_on_signals(on_signal)
    verdict = await demo.run()
    for example in verdict.examples:
        console.print(f"lost: {example}", highlight=False, markup=False, soft_wrap=True)
    console.print(str(verdict), highlight=False, markup=False, soft_wrap=True)
    return 1 if verdict.lost else 0


def _first_of(error: BaseException) -> BaseException:
    """The first plain exception of a group."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _text_of(fault: BaseException) -> str:
    if isinstance(fault, grpc.aio.AioRpcError):
        return f"a service answered {fault.code().name}: {fault.details()}"
    return str(fault)


def run(
    seconds: Annotated[
        float, typer.Option(envvar="DEMO_SECONDS", min=0, help="how long to publish; 0: until Ctrl-C")
    ] = _DEFAULT.seconds,
    nodes: Annotated[int, typer.Option(envvar="DEMO_NODES", min=1, max=1000, help="edge nodes")] = (
        _DEFAULT.nodes
    ),
    update_every: Annotated[
        float, typer.Option(envvar="DEMO_UPDATE_EVERY", min=0.05, help="seconds between updates")
    ] = _DEFAULT.update_every,
    cut_every: Annotated[
        float, typer.Option(envvar="DEMO_CUT_EVERY", min=0, help="seconds between cuts of a network; 0: none")
    ] = _DEFAULT.cut_every,
    settle: Annotated[
        float, typer.Option(envvar="DEMO_SETTLE", min=0, help="longest wait for what is pending at the end")
    ] = _DEFAULT.settle,
    data: Annotated[
        Path, typer.Option(envvar="DEMO_DATA", help="databases, certificates, logs; kept for the next start")
    ] = _DEFAULT.data,
    replicas: Annotated[
        int,
        typer.Option(
            envvar="DEMO_REPLICAS", min=1, max=9, help="of each service; several on a PostgreSQL of their own"
        ),
    ] = _DEFAULT.replicas,
    tls: Annotated[bool, typer.Option(envvar="DEMO_TLS", help="mutual TLS and roles for gRPC too")] = (
        _DEFAULT.tls
    ),
    manifests: Annotated[
        Path, typer.Option(envvar="DEMO_MANIFESTS", help="folder of what to publish")
    ] = _DEFAULT.manifests,
) -> None:
    """Runs a hub and a fleet of edge nodes on this machine, one of which enrols, and shows messages go."""
    settings = DemoSettings(
        *(seconds, nodes, update_every, cut_every, settle, data.absolute(), replicas, tls, manifests)
    )
    # Without a terminal lines are long and are left so.
    console = Console() if sys.stdout.isatty() else Console(width=200, force_terminal=False)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(_main(settings, console))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("demo: interrupted before the end; nothing was checked", file=sys.stderr)
        status = 130
    except (*_FAULTS, BaseExceptionGroup) as error:
        fault = _first_of(error)
        if not isinstance(fault, _FAULTS):
            raise
        print(f"demo: {_text_of(fault)}", file=sys.stderr)
        status = 1
    raise SystemExit(status)


if __name__ == "__main__":
    typer.run(run)
