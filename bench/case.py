"""One case of the benchmark: a fresh hub, a fleet of one size, and what is measured on them."""

import asyncio
import os
import shutil
import urllib.request
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from bench.figures import Case, Connects, Latency, Memory, Throughput
from bench.load import Load
from bench.machine import Processes, Usage
from bench.settings import BenchSettings, Part
from demo.databases import running_databases
from demo.fleet import Fleet, running_fleet
from demo.hub import SERVICES, Hub, running_hub, service_arguments
from demo.ports import HOST, choose_ports
from edge.certificates import create_node_certificates, create_server_certificate


async def run_case(settings: BenchSettings, nodes: int, tell: Callable[[str], None]) -> Case:
    """Measures what the settings ask for. Raises ProcessFault, FleetFault or LoadFault."""
    folder = settings.data / f"{nodes}-nodes"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    certificates = settings.data / "certificates"
    await asyncio.to_thread(create_server_certificate, certificates)
    await asyncio.to_thread(
        create_node_certificates, certificates, [f"edge-{number}" for number in range(1, nodes + 1)]
    )
    ports = choose_ports(settings.replicas)
    launch = _profiled(folder) if settings.profile else service_arguments
    async with (
        running_databases(settings.engine, folder) as databases,
        running_hub(folder, certificates, ports, databases, launch=launch, tls=settings.tls) as hub,
    ):
        case = Case(nodes)
        pids = {name: [instance.child.pid for instance in hub.of(name)] for name in SERVICES}
        if databases.server_pid:
            pids["database"] = [databases.server_pid]
        before = Processes(pids).usage()
        async with (
            running_fleet(
                *(nodes, hub.server, certificates, folder / "edges.db", folder / "logs" / "edges.log"),
                *("--sync", "normal", "--no-history", "--by-node"),
                *("--transport", settings.transport, "--quic-server", hub.quic_server),
                *("--report-every", "0.01" if nodes <= 100 else "0.05"),
            ) as fleet,
            AsyncExitStack() as stack,
        ):
            channels = [await stack.enter_async_context(one.open_channel()) for one in hub.dispatchers]
            processes = Processes({**pids, "edges": [fleet.child.pid], "publisher": [os.getpid()]})
            took = await fleet.connected(settings.connect_seconds)
            tell(f"{nodes} nodes connected in {took:.2f} s")
            if Part.CONNECTS in settings.parts:
                case.connects = _connects(nodes, took, before, processes.usage())
            if Part.MEMORY in settings.parts:
                await asyncio.sleep(settings.idle_seconds)
                case.memory = _memory(nodes, before, processes.usage())
            load = Load(channels, fleet)
            rate = settings.rate
            if Part.THROUGHPUT in settings.parts or (Part.LATENCY in settings.parts and not rate):
                case.throughput = await _throughput(settings, hub, fleet, load, processes)
                rate = rate or case.throughput.per_second / 5
                tell(f"{nodes} nodes: {case.throughput.per_second:,.0f} acknowledged/s")
            if Part.LATENCY in settings.parts:
                case.latency = await _latency(settings, fleet, load, rate)
    return case


def _profiled(folder: Path) -> Callable[[str], list[str]]:
    def launch(name: str) -> list[str]:
        return ["-m", "cProfile", "-o", str(folder / f"{name}.prof"), *service_arguments(name)]

    return launch


def _connects(nodes: int, took: float, before: Usage, after: Usage) -> Connects:
    used = {name: after.cpu_seconds[name] - before.cpu_seconds[name] for name in before.cpu_seconds}
    used["edges"] = after.cpu_seconds["edges"]
    return Connects(
        seconds=round(took, 3),
        per_second=round(nodes / took, 1),
        cpu_ms_per_connect={name: round(seconds * 1000 / nodes, 3) for name, seconds in used.items()},
    )


def _memory(links: int, before: Usage, after: Usage) -> Memory:
    grown = {name: after.resident_bytes[name] - size for name, size in before.resident_bytes.items()}
    return Memory(
        links=links,
        before_kib={name: size // 1024 for name, size in before.resident_bytes.items()},
        after_kib={name: after.resident_bytes[name] // 1024 for name in before.resident_bytes},
        kib_per_link={name: round(size / 1024 / links, 1) for name, size in grown.items()},
    )


async def _throughput(
    settings: BenchSettings, hub: Hub, fleet: Fleet, load: Load, processes: Processes
) -> Throughput:
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        saturating = group.create_task(load.saturate(stop), name="load")
        await asyncio.sleep(settings.warm_up_seconds)
        first = await _dispatcher_counts(hub)
        first_usage, started = processes.usage(), loop.time()
        repeated = fleet.report.repeated
        await asyncio.sleep(settings.seconds)
        last = await _dispatcher_counts(hub)
        last_usage, seconds = processes.usage(), loop.time() - started
        stop.set()
        await saturating
    await load.settled(settings.settle_seconds)
    messages = int(last["acknowledged"] - first["acknowledged"])
    used = last_usage.cpu_since(first_usage)
    return Throughput(
        messages=messages,
        seconds=round(seconds, 3),
        per_second=round(messages / seconds, 1),
        superseded=int(last["ended"] - first["ended"]),
        repeated=fleet.report.repeated - repeated,
        cpu_seconds_per_100k={name: round(cpu * 100_000 / max(1, messages), 2) for name, cpu in used.items()},
    )


async def _dispatcher_counts(hub: Hub) -> dict[str, float]:
    """Acknowledged messages, and messages ended without it, since the dispatchers started."""

    def scrape(port: int) -> str:
        with urllib.request.urlopen(f"http://{HOST}:{port}/metrics") as answer:
            return bytes(answer.read()).decode()

    counts = {"acknowledged": 0.0, "ended": 0.0}
    for ports in hub.ports:
        page = await asyncio.to_thread(scrape, ports.dispatcher_metrics)
        for family in text_string_to_metric_families(page):
            name = family.name.removeprefix("cloudhub_dispatcher_")
            if name in counts:
                counts[name] += sum(one.value for one in family.samples if one.name.endswith("_total"))
    return counts


async def _latency(settings: BenchSettings, fleet: Fleet, load: Load, rate: float) -> Latency:
    await load.pace(rate, settings.warm_up_seconds)
    await load.settled(settings.settle_seconds)
    fleet.latencies.take()
    published = load.published
    await load.pace(rate, settings.seconds)
    await load.settled(settings.settle_seconds)
    p50, p99, p999 = fleet.latencies.quantiles_ms((0.5, 0.99, 0.999))
    return Latency(round(rate, 1), load.published - published, *map(_rounded, (p50, p99, p999)))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
