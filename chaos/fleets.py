"""The edge fleets of a run: each a process that can be killed and started again with its disk."""

import signal
from contextlib import AsyncExitStack
from pathlib import Path

from chaos.history import Held, Step
from demo.fleet import Fleet, fleet_arguments, running_fleet
from demo.fleet_worker import Report
from demo.latency import Latencies
from demo.processes import Launch
from edge.store import EdgeStore, read_history, read_objects

_FOR_EVER_SECONDS = 86_400.0
NOTHING = Report(0, 0, 0, 0, 0, {})


class FleetProcess:
    """One of them, kept in the folder `data` of its run. Whoever starts it closes it."""

    def __init__(
        self,
        data: Path,
        name: str,
        first: int,
        nodes: int,
        server: str,
        *flags: str,
        launch: Launch = fleet_arguments,
        token: str = "",
    ) -> None:
        self.name = name
        self._token = token
        self.node_ids = [f"edge-{number}" for number in range(first, first + nodes)]
        self._first = first
        self._server = server
        self._flags = flags
        self._data = data
        self._launch = launch
        self._stack = AsyncExitStack()
        self._fleet: Fleet | None = None
        self._started = False
        self._stored_before = (0,) * nodes
        self._opened_before = 0

    @property
    def database(self) -> Path:
        """The disk of its nodes."""
        return self._data / f"{self.name}.db"

    @property
    def report(self) -> Report:
        """The last one of the present process."""
        return self._fleet.report if self._fleet else NOTHING

    @property
    def latencies(self) -> Latencies:
        """Publish to acknowledgement, of the present process."""
        return self._fleet_or_fail().latencies

    @property
    def stored(self) -> tuple[int, ...]:
        """Distinct messages that each node has stored since the run began; after a restart of the process
        messages that come again count again."""
        now = self.report.by_node or [0] * len(self._stored_before)
        return tuple(before + count for before, count in zip(self._stored_before, now, strict=True))

    @property
    def links_opened(self) -> int:
        """Since the run began."""
        return self._opened_before + self.report.links_opened

    @property
    def is_running(self) -> bool:
        """Whether it has a process that has not ended."""
        return self._fleet is not None and self._fleet.child.running

    async def start(self) -> None:
        """Starts the process, which dials at once."""
        self._fleet = await self._stack.enter_async_context(
            running_fleet(
                *(len(self.node_ids), self._server, self._data / "certificates", self.database),
                self._data / "logs" / f"{self.name}.log",
                *(*self._flags, "--by-node"),
                name=self.name,
                first=self._first,
                append=self._started,
                launch=self._launch,
                token=self._token,
            )
        )
        self._started = True

    def cut(self) -> None:
        """Drops all of its links at once."""
        for node_id in self.node_ids:
            self._fleet_or_fail().cut(node_id)

    def black_hole(self, node_id: str, seconds: float) -> None:
        """Nothing of the node's link arrives for so long, either way."""
        self._fleet_or_fail().block(node_id, seconds)

    def leave(self) -> None:
        """Drops all of its links and dials no more."""
        for node_id in self.node_ids:
            self._fleet_or_fail().cut(node_id)
            self._fleet_or_fail().block(node_id, _FOR_EVER_SECONDS)

    def come_back(self) -> None:
        """Ends what `leave` began."""
        self._fleet_or_fail().heal()

    def pause(self) -> None:
        """Stops the process where it is; its links stay up."""
        self._fleet_or_fail().child.signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Ends what `pause` began."""
        self._fleet_or_fail().child.signal(signal.SIGCONT)

    def hush(self) -> None:
        """Its nodes send no uploads and status reports, until `talk`."""
        self._fleet_or_fail().hush()

    def talk(self) -> None:
        """Ends what `hush` began."""
        self._fleet_or_fail().talk()

    async def kill(self) -> None:
        """kill -9."""
        self._fleet_or_fail().child.signal(signal.SIGKILL)
        await self.stop()

    async def stop(self) -> None:
        """Ends the process: politely, unless it is dead already."""
        self._stored_before, self._opened_before = self.stored, self.links_opened
        self._fleet = None
        await self._stack.aclose()

    def _fleet_or_fail(self) -> Fleet:
        assert self._fleet is not None, f"{self.name} does not run"
        return self._fleet


def steps_of(fleet: FleetProcess) -> list[Step]:
    """What its nodes applied, in order. Blocking."""
    return [
        Step(row.node_id, row.resource, row.uid, int(row.version or 0), row.operation)
        for row in read_history(fleet.database)
    ]


def held_by(fleet: FleetProcess) -> dict[str, dict[str, Held]]:
    """What its nodes have on disk: by node, by resource. Blocking."""
    held: dict[str, dict[str, Held]] = {node_id: {} for node_id in fleet.node_ids}
    for row in read_objects(fleet.database):
        held[row.node_id][row.resource] = Held(row.uid, int(row.version))
    return held


def uploads_confirmed_to(fleet: FleetProcess) -> dict[str, list[int]]:
    """The numbers of the uploads that the hub has confirmed, by node; the fleet must not run. Blocking."""
    store = EdgeStore(fleet.database)
    try:
        waiting: dict[str, set[int]] = {}
        for upload in store.waiting_uploads():
            waiting.setdefault(upload.node_id, set()).add(upload.number)
        return {
            node_id: [n for n in range(1, last + 1) if n not in waiting.get(node_id, ())]
            for node_id, last in store.last_upload_numbers().items()
        }
    finally:
        store.close()
