"""`python -m bench`: what `make bench` does."""

import asyncio
import datetime
import resource
import shutil
import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop
from rich.console import Console

from bench.case import run_case
from bench.figures import Results
from bench.load import KEYS_PER_NODE, MESSAGE_BYTES, MOST_PER_FRAME, MOST_UNACKNOWLEDGED, LoadFault
from bench.machine import machine_facts
from bench.report import print_results
from bench.settings import BenchSettings, LinkTransport, Part
from demo.databases import Engine
from demo.exclusive import FolderInUse, exclusive
from demo.fleet import FleetFault
from demo.postgres import PostgresFault
from demo.processes import ProcessFault

REPOSITORY = Path(__file__).resolve().parent.parent
_FAULTS = (FolderInUse, ProcessFault, PostgresFault, FleetFault, LoadFault)


async def measure(settings: BenchSettings, console: Console) -> Results:
    """All cases, one after the other."""
    results = Results(
        at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        machine=machine_facts(settings.data),
        settings={
            "seconds": settings.seconds,
            "message_bytes": MESSAGE_BYTES,
            "keys_per_node": KEYS_PER_NODE,
            "most_per_frame": MOST_PER_FRAME,
            "most_unacknowledged": MOST_UNACKNOWLEDGED,
            "hub_synchronous": "full" if settings.engine is Engine.SQLITE else "synchronous_commit=on",
            "edges_synchronous": "normal",
            "transport": f"{settings.transport}, tls",
            "store": settings.engine.value,
            "replicas": settings.replicas,
            "grpc": "mutual tls" if settings.tls else "plaintext",
            "profiled": int(settings.profile),
        },
    )
    for nodes in settings.nodes:
        results.cases.append(await run_case(settings, nodes, lambda text: console.print(f"  {text}")))
    return results


def _nodes(text: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 0 < int(part) <= 10_000 for part in parts):
        raise typer.BadParameter(f"should be numbers from 1 to 10000 with commas between, got {text!r}")
    return tuple(int(part) for part in parts)


def run(
    seconds: Annotated[float, typer.Option(min=0.5, help="for each measurement")] = 10.0,
    nodes: Annotated[str, typer.Option(help="sizes of the fleet")] = "1,100,1000",
    only: Annotated[list[Part] | None, typer.Option(help="this part only; repeat for several")] = None,
    rate: Annotated[
        float, typer.Option(min=0, help="messages/s for the latency; 0: a fifth of the throughput")
    ] = 0.0,
    out: Annotated[Path, typer.Option(help="folder for latest.json")] = REPOSITORY / "bench" / "out",
    profile: Annotated[bool, typer.Option(help="services under cProfile; keeps data/*/*.prof")] = False,
    store: Annotated[Engine, typer.Option(help="postgresql: on a server of its own")] = Engine.SQLITE,
    replicas: Annotated[int, typer.Option(min=1, max=9, help="of each service")] = 1,
    tls: Annotated[bool, typer.Option(help="mutual TLS and roles for gRPC too")] = False,
    transport: Annotated[
        LinkTransport, typer.Option(help="what carries the links")
    ] = LinkTransport.WEBSOCKET,
) -> None:
    """Measures the hub on this machine: real processes, TLS, databases on the disk of `--out`."""
    if replicas > 1 and store is Engine.SQLITE:
        raise typer.BadParameter("several replicas need --store postgresql")
    settings = BenchSettings(
        *(seconds, _nodes(nodes), frozenset(only or Part), out.absolute(), rate, profile, store, replicas),
        tls=tls,
        transport=transport,
    )
    # A thousand links need more descriptors than shells allow by default; children inherit the limit.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    console = Console() if sys.stdout.isatty() else Console(width=160)
    try:
        with (
            exclusive(settings.out, "--out"),
            asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
        ):
            settings.data.mkdir(exist_ok=True)
            results = runner.run(measure(settings, console))
            _keep(settings, results)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (*_FAULTS, BaseExceptionGroup) as error:
        fault: BaseException = error
        while isinstance(fault, BaseExceptionGroup):
            fault = fault.exceptions[0]
        if not isinstance(fault, _FAULTS):
            raise
        print(f"bench: {fault}\nbench: logs and databases: {settings.data}", file=sys.stderr)
        raise SystemExit(1) from None
    print_results(console, results)
    console.print(f"as JSON: {settings.latest}", highlight=False, soft_wrap=True)


def _keep(settings: BenchSettings, results: Results) -> None:
    """Writes the figures; what the runs left goes, unless it is wanted."""
    settings.latest.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=2) + b"\n")
    if not settings.profile:
        shutil.rmtree(settings.data)


if __name__ == "__main__":
    typer.run(run)
