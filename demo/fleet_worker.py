"""The edge fleet as a process of its own: `python -m demo.fleet_worker`.

Commands come as JSON lines on stdin, reports go as JSON lines to stdout; the end of stdin ends the
process. Versions of the messages that it receives are the microseconds since the Unix epoch at
which they were published: the difference to the time of the acknowledgement is the latency.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
import typer
import uvloop

from demo.latency import Latencies
from edge.__main__ import (
    LinkTransport,
    LogFormat,
    Sync,
    configure_logs,
    enrolled,
    prepare_process,
    stop_on_signals,
)
from edge.agent import EdgeFleet
from edge.enrolment import Enroller, EnrolmentFault, hub_beside, read_join_token
from edge.node import OutboxFull
from edge.node_files import NodeFiles, StoredFault
from edge.renewal import Renewals
from edge.settings import EdgeSettings, SettingsFault
from edge.store import Change, StoreFault
from harness.stock_edge.fleet import StockFleet


class Command(msgspec.Struct):
    """What the parent asks for."""

    do: str
    """`cut`, `block` (with seconds), `heal`, `hush` (no uploads and reports) or `talk` (them again)."""
    node: str = ""
    seconds: float = 0.0


class Report(msgspec.Struct, omit_defaults=True):
    """What the fleet has come to, since its start unless it says otherwise."""

    links: int
    acknowledged: int
    """Distinct messages."""
    repeated: int
    """Acknowledgements of messages that had been acknowledged before."""
    links_opened: int
    uploads_confirmed: int
    latencies: dict[int, int]
    """Publish to acknowledgement, since the last report."""
    by_node: list[int] = []
    """Distinct messages acknowledged, in order of the node list; only if asked for."""
    all_connected_seconds: float = 0.0
    """From the first dial until every node was connected; 0 until then."""
    latencies_of_cut: dict[int, int] = {}
    """Those among `latencies` of messages that a network which was cut held up."""
    by_version: dict[int, int] = {}
    """Distinct messages acknowledged since the last report, by their version; only if asked for."""


# From the end of a cut until what waited for it has come: the edge dials anew, within its longest delay.
RECOVERY_SECONDS = 6.0


class Acknowledgements:
    """What the fleet has acknowledged, each message counted once."""

    def __init__(self, node_ids: Sequence[str]) -> None:
        self.latencies = Latencies()
        self.latencies_of_cut = Latencies()
        self.by_version: Counter[int] = Counter()
        # Until when a node's network was cut and what it held up was on its way: microseconds since 1970.
        self._cut_until: dict[str, float] = {}
        self.by_node = dict.fromkeys(node_ids, 0)
        self.total = 0
        self.repeated = 0
        self._last: dict[tuple[str, str], int] = {}

    def cut(self, node_id: str, seconds: float = 0.0) -> None:
        """The network of a node is cut now, for so long."""
        self._cut_until[node_id] = time.time_ns() / 1000 + (seconds + RECOVERY_SECONDS) * 1e6

    def add(self, changes: Sequence[Change]) -> None:
        """Counts messages whose acknowledgements have just been written."""
        now = time.time_ns() // 1000
        for change in changes:
            text = change.message.header.resourceversion
            if not text.isdecimal():
                continue
            version, key = int(text), (change.node_id, change.step.uid or change.message.route.resource)
            if version <= self._last.get(key, 0):
                self.repeated += 1
                continue
            self._last[key] = version
            self.total += 1
            self.by_node[change.node_id] += 1
            self.by_version[version] += 1
            self.latencies.add(now - version)
            if version < self._cut_until.get(change.node_id, 0.0):
                self.latencies_of_cut.add(now - version)


class FleetProcess:
    """Runs the fleet, obeys and reports."""

    def __init__(
        self,
        fleet: EdgeFleet | StockFleet,
        acknowledged: Acknowledgements,
        renewals: Renewals | None,
        *,
        by_node: bool,
        by_version: bool,
    ) -> None:
        self._by_node = by_node
        self._by_version = by_version
        self._renewals = renewals
        self._acknowledged = acknowledged
        self._fleet = fleet
        self._all_connected_seconds = 0.0
        self._blocked: set[str] = set()
        self._talking = asyncio.Event()
        self._talking.set()

    async def serve(
        self, stop: asyncio.Event, report_every: float, upload_every: float, status_every: float
    ) -> None:
        """Runs until stdin or `stop` says so."""
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        started = loop.time()
        async with self._fleet, asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._obey(reader, stop), name="commands"),
                group.create_task(self._reports(report_every), name="reports"),
                group.create_task(self._first_connect(started), name="first connect"),
            ]
            if self._renewals:
                tasks.append(group.create_task(self._renewals.run(self._renewed), name="renewals"))
            if upload_every:
                tasks.append(group.create_task(self._uploads(upload_every), name="uploads"))
            if status_every:
                tasks.append(group.create_task(self._statuses(status_every), name="status reports"))
            await stop.wait()
            for task in tasks:
                task.cancel()
        self._report()

    def _renewed(self, node_id: str) -> None:
        self._fleet[node_id].certificate_renewed()

    async def _first_connect(self, started: float) -> None:
        await self._fleet.connected()
        self._all_connected_seconds = asyncio.get_running_loop().time() - started

    async def _obey(self, reader: asyncio.StreamReader, stop: asyncio.Event) -> None:
        decoder = msgspec.json.Decoder(Command)
        while line := await reader.readline():
            command = decoder.decode(line)
            if command.do == "cut":
                self._acknowledged.cut(command.node)
                self._fleet[command.node].cut()
            elif command.do == "block":
                self._blocked.add(command.node)
                self._acknowledged.cut(command.node, command.seconds)
                self._fleet[command.node].block(command.seconds)
            elif command.do == "heal":
                for node_id in self._blocked:
                    self._fleet[node_id].block(0.0)
                self._blocked.clear()
            elif command.do == "hush":
                self._talking.clear()
            elif command.do == "talk":
                self._talking.set()
            if isinstance(self._fleet, StockFleet):
                self._fleet.hush(hushed=not self._talking.is_set())
        stop.set()

    async def _reports(self, every: float) -> None:
        while True:
            await asyncio.sleep(every)
            self._report()

    def _report(self) -> None:
        report = Report(
            links=self._fleet.links,
            acknowledged=self._acknowledged.total,
            repeated=self._acknowledged.repeated,
            links_opened=self._fleet.total("links_opened"),
            uploads_confirmed=self._fleet.total("uploads_confirmed"),
            latencies=self._acknowledged.latencies.take(),
            by_node=list(self._acknowledged.by_node.values()) if self._by_node else [],
            all_connected_seconds=self._all_connected_seconds,
            latencies_of_cut=self._acknowledged.latencies_of_cut.take(),
            by_version=dict(self._acknowledged.by_version) if self._by_version else {},
        )
        self._acknowledged.by_version.clear()
        try:
            sys.stdout.buffer.write(msgspec.json.encode(report) + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            pass  # the parent is gone; the end of stdin stops us

    async def _uploads(self, every: float) -> None:
        while True:
            for agent in self._fleet:
                await self._talking.wait()
                reading = {"sensor": "cold-chain", "celsius": round(random.gauss(4.0, 0.6), 2)}
                try:
                    await agent.upload(json.dumps(reading).encode(), "telemetry/fridge")
                except OutboxFull:
                    pass  # the node has been away for long; the next readings matter more
                await asyncio.sleep(every / len(self._fleet))

    async def _statuses(self, every: float) -> None:
        while True:
            for agent in self._fleet:
                await self._talking.wait()
                status = {"phase": "Running", "received": agent.counters.received}
                content = json.dumps({"name": f"{agent.node_id}-till", "status": status}).encode()
                agent.report_status(f"retail/podstatus/{agent.node_id}-till", content)
                await asyncio.sleep(every / len(self._fleet))


def _make_fleet(
    settings: EdgeSettings,
    node_ids: list[str],
    acknowledged: Acknowledgements,
    renewals: Renewals | None,
    stock_pace: float,
) -> EdgeFleet | StockFleet:
    if stock_pace:
        return StockFleet(settings, node_ids, pace=stock_pace, edged=True, on_acknowledged=acknowledged.add)
    return EdgeFleet(
        settings,
        node_ids,
        on_acknowledged=acknowledged.add,
        on_certificate_refused=renewals.refused if renewals else lambda _node_id: None,
    )


async def serve(
    settings: EdgeSettings,
    node_ids: list[str],
    renewals: Renewals | None,
    report_every: float,
    upload_every: float,
    status_every: float,
    *,
    by_node: bool,
    by_version: bool,
    stock_pace: float,
) -> None:
    """Runs a fleet, whose nodes get certificates first if they enrol, until it is told to stop."""
    stop = asyncio.Event()
    stop_on_signals(stop.set)
    if renewals is not None and not await enrolled(renewals, stop):
        return
    acknowledged = Acknowledgements(node_ids)
    fleet = _make_fleet(settings, node_ids, acknowledged, renewals, stock_pace)
    worker = FleetProcess(fleet, acknowledged, renewals, by_node=by_node, by_version=by_version)
    await worker.serve(stop, report_every, upload_every, status_every)


def run(
    certificates: Annotated[Path, typer.Option()],
    database: Annotated[Path, typer.Option()],
    nodes: Annotated[int, typer.Option(min=1)],
    server: Annotated[str, typer.Option()] = "",
    enrol: Annotated[str, typer.Option(help="https://HOST:PORT of the hub's enrolment")] = "",
    token: Annotated[str, typer.Option(envvar="CLOUDHUB_EDGE_TOKEN")] = "",
    first: Annotated[int, typer.Option(min=1)] = 1,
    transport: Annotated[LinkTransport, typer.Option()] = LinkTransport.WEBSOCKET,
    quic_server: Annotated[str, typer.Option()] = "",
    sync: Annotated[Sync, typer.Option()] = Sync.FULL,
    history: Annotated[bool, typer.Option()] = True,
    keepalive: Annotated[float, typer.Option()] = 15.0,
    silence: Annotated[float, typer.Option()] = 45.0,
    first_delay: Annotated[float, typer.Option()] = 0.5,
    most_delay: Annotated[float, typer.Option()] = 5.0,
    report_every: Annotated[float, typer.Option(min=0.005)] = 0.25,
    by_node: Annotated[bool, typer.Option()] = False,
    by_version: Annotated[bool, typer.Option()] = False,
    upload_every: Annotated[float, typer.Option(min=0)] = 0.0,
    status_every: Annotated[float, typer.Option(min=0)] = 0.0,
    stock_pace: Annotated[
        float, typer.Option(min=0, help="above 0: doubles of stock edges, so many times faster")
    ] = 0.0,
) -> None:
    """Runs so many edge nodes from edge-FIRST on; commands on stdin, reports on stdout."""
    configure_logs(LogFormat.AUTO)
    prepare_process()
    node_ids = [f"edge-{number}" for number in range(first, first + nodes)]
    renewals: Renewals | None = None
    if enrol:
        files = [NodeFiles(certificates, node_id) for node_id in node_ids]
        renewals = Renewals(Enroller(enrol, certificates), files, read_join_token(token) if token else None)
        server = server or hub_beside(enrol)
    settings = EdgeSettings(
        server=server,
        ca=certificates / "ca.crt",
        database=database,
        certificates=certificates,
        transport=transport.value,
        quic_server=quic_server,
        sync=sync.value,
        history=history,
        keepalive_seconds=keepalive,
        silence_seconds=silence,
        first_delay_seconds=first_delay,
        most_delay_seconds=most_delay,
    )
    work = serve(
        *(settings, node_ids, renewals, report_every, upload_every, status_every),
        by_node=by_node,
        by_version=by_version,
        stock_pace=stock_pace,
    )
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)


if __name__ == "__main__":
    try:
        typer.run(run)
    except (EnrolmentFault, SettingsFault, StoredFault, StoreFault) as fault:
        print(f"fleet: {fault}", file=sys.stderr)
        raise SystemExit(1) from None
