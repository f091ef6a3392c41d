"""The edge fleet seen from its parent: commands go in, reports come out."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from demo.fleet_worker import Command, Report
from demo.latency import Latencies
from demo.processes import Child, Launch

STOP_SECONDS = 10.0


class FleetFault(Exception):
    """The fleet did not do in time what it should."""


class Fleet:
    """A running fleet. `follow` must be awaited by the owner."""

    def __init__(self, child: Child, nodes: int, first: int = 1) -> None:
        self.child = child
        self.node_ids = [f"edge-{number}" for number in range(first, first + nodes)]
        self.report = Report(0, 0, 0, 0, 0, {})
        self.latencies = Latencies()
        self.latencies_of_cut = Latencies()
        self.by_version: Counter[int] = Counter()
        self._reported = asyncio.Condition()

    async def follow(self) -> None:
        """Takes reports until the fleet ends."""
        decoder = msgspec.json.Decoder(Report)
        while line := await self.child.stdout.readline():
            report = decoder.decode(line)
            self.latencies.add_counts(report.latencies)
            self.latencies_of_cut.add_counts(report.latencies_of_cut)
            self.by_version.update(report.by_version)
            async with self._reported:
                self.report = report
                self._reported.notify_all()

    async def until(self, condition: Callable[[Report], bool], what: str, seconds: float) -> Report:
        """The first report, from the present one on, that meets the condition. Raises FleetFault."""
        try:
            async with asyncio.timeout(seconds), self._reported:
                await self._reported.wait_for(lambda: condition(self.report))
                return self.report
        except TimeoutError:
            report = self.report
            raise FleetFault(
                f"{what}: not within {seconds:g} s; the last report says {report.links} links, "
                f"{report.acknowledged} messages acknowledged, {report.links_opened} links opened so far"
            ) from None

    async def changed(self) -> None:
        """Returns with the next report."""
        async with self._reported:
            await self._reported.wait()

    async def connected(self, seconds: float, without: int = 0) -> float:
        """Waits until every node has a link; seconds from the first dial. `without` so many nodes, that
        cannot have one: seconds from now. Raises FleetFault."""
        if without:
            began, wanted = time.monotonic(), len(self.node_ids) - without
            await self.until(lambda report: report.links >= wanted, f"{wanted} connected", seconds)
            return time.monotonic() - began
        report = await self.until(lambda report: report.all_connected_seconds > 0, "all connected", seconds)
        return report.all_connected_seconds

    def cut(self, node_id: str) -> None:
        """Drops a node's link as a broken network would."""
        self._tell(Command("cut", node_id))

    def block(self, node_id: str, seconds: float) -> None:
        """Black-holes a node for so long."""
        self._tell(Command("block", node_id, seconds))

    def heal(self) -> None:
        """Ends all black holes."""
        self._tell(Command("heal"))

    def hush(self) -> None:
        """No uploads and status reports, until `talk`."""
        self._tell(Command("hush"))

    def talk(self) -> None:
        """Ends what `hush` began."""
        self._tell(Command("talk"))

    def _tell(self, command: Command) -> None:
        if not self.child.stdin.is_closing():
            self.child.stdin.write(msgspec.json.encode(command) + b"\n")


def fleet_arguments(_: str) -> list[str]:
    """What the interpreter is told to run a fleet, whatever its name."""
    return ["-m", "demo.fleet_worker"]


@asynccontextmanager
async def running_fleet(
    nodes: int,
    server: str,
    certificates: Path,
    database: Path,
    log_path: Path,
    *flags: str,
    name: str = "edges",
    first: int = 1,
    append: bool = False,
    launch: Launch = fleet_arguments,
    token: str = "",
) -> AsyncIterator[Fleet]:
    """A fleet in a process of its own, dialling already; stopped when the context ends.

    Its nodes are edge-`first` and those after it; `append` goes on with the log that is there. With the flag
    `--enrol` nodes without a certificate get theirs by the join token `token`.
    """
    arguments = [
        *launch(name),
        *("--server", server),
        *("--certificates", str(certificates)),
        *("--database", str(database)),
        *("--nodes", str(nodes), "--first", str(first)),
        *flags,
    ]
    environment = {"CLOUDHUB_EDGE_TOKEN": token} if token else {}
    child = await Child.start(name, arguments, log_path, piped=True, append=append, environment=environment)
    fleet = Fleet(child, nodes, first)
    follower = asyncio.create_task(fleet.follow(), name="fleet reports")
    try:
        yield fleet
    finally:
        await child.stop(STOP_SECONDS)
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
