"""A scenario: hub in the cloud, fleets at sites, publishers, subscribers; then quiet, and the verdict."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from chaos.checker import Verdict, judge
from chaos.clock import RunClock
from chaos.ending import Ending, tracebacks
from chaos.fleets import FleetProcess
from chaos.history import FaultDone, History
from chaos.observer import Observer
from chaos.publisher import Publisher
from chaos.resources import Resources, read_resources
from chaos.scene import Scene
from chaos.subscriber import Subscriber
from demo.hub import SERVICES, Hub, running_hub, service_arguments
from demo.latency import Latencies
from demo.manifests import Versions
from demo.ports import HubPorts
from edge.certificates import create_node_certificates, create_server_certificate
from tests.lab.network import Lab, Site, launch_in
from tests.lab.table import Row

OTHERS = "others"
"""The site whose network is left alone: its nodes must notice nothing."""
EDGE_FLAGS = ("--sync", "normal", "--report-every", "0.2", "--upload-every", "2", "--status-every", "5")
"""Beside the defaults of the edge agent. Only networks are broken here, no machines."""
CONNECT_SECONDS = 60.0
ANSWERS_SECONDS = 15.0
SETTLE_SECONDS = 60.0
WARM_UP_SECONDS = 2.0
LET_GO_SECONDS = 15.0
LOOK_SECONDS = 0.5
_POOLED = {"threads": 8, "file_descriptors": 16}
"""Of these a process may have so many more than before: gRPC keeps some, up to a bound."""
_CACHED = frozenset({"deadlines", "locations"})
"""These fall later, or are bounded caches (docs/operations.md)."""


class Scenario:
    """Made by `running_scenario`; `start` begins the load, and what the test does then is the scenario."""

    def __init__(
        self,
        lab: Lab,
        hub: Hub,
        title: str,
        edges: Mapping[str, int],
        data: Path,
        *,
        publishers: int,
        pause_seconds: float,
        edge_flags: Sequence[str],
        observe_seconds: float,
        misbehaving: Sequence[str],
    ) -> None:
        self.lab = lab
        self.hub = hub
        self.title = title
        self.clock = RunClock()
        self.history = History(seed=0, limit_total=0)
        self.certificates = data / "certificates"
        """Of everybody, as edge.certificates lays them out."""
        self.note = ""
        """For the last column of the table."""
        self._pause_seconds = pause_seconds
        self._misbehaving = misbehaving
        self._fleets: dict[str, FleetProcess] = {}
        first = 1
        for name, nodes in edges.items():
            site = self.site(name)
            self._fleets[name] = FleetProcess(
                data,
                name,
                first,
                nodes,
                hub.server,
                *(*EDGE_FLAGS, *edge_flags),
                launch=lambda _, site=site: launch_in(site, "demo.fleet_worker"),  # type: ignore[misc]
            )
            first += nodes
        versions = Versions()
        dispatchers = [one.address for one in hub.dispatchers]
        self.node_ids = [node_id for fleet in self._fleets.values() for node_id in fleet.node_ids]
        published_to = [*self.node_ids, *misbehaving]
        self.subscribers = [
            Subscriber(f"subscriber-{number}", dispatchers, self.history.uploads_handed) for number in (1, 2)
        ]
        self.scene = Scene(
            hub,
            list(self._fleets.values()),
            [
                Publisher(f"publisher-{number}", dispatchers, published_to, versions, self.clock)
                for number in range(1, publishers + 1)
            ],
            Observer(hub, self.clock, observe_seconds),
            self.clock,
        )
        self.background = asyncio.TaskGroup()
        """Of the observer, the subscribers and the publishers; a test's own tasks end before it does."""
        self._latencies: dict[str, Latencies] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._publishing: list[asyncio.Task[None]] = []
        self._before: dict[str, Resources] = {}

    def site(self, name: str) -> Site:
        """A site of the lab, by the name that its fleet has too."""
        return self.lab.sites[name]

    def fleet(self, name: str) -> FleetProcess:
        """The edges at a site."""
        return self._fleets[name]

    def lifecycle(self, node_id: str) -> list[str]:
        """`connected` and `disconnected`, as subscribers were told of a node."""
        return [
            operation
            for subscriber in self.subscribers
            for told, operation in subscriber.lifecycle
            if told == node_id
        ]

    async def start(self) -> None:
        """Starts the fleets and waits until they are connected and quiet; then the publishers begin. Raises
        TimeoutError."""
        self._watching = [
            self.background.create_task(subscriber.run(), name="subscriber")
            for subscriber in self.subscribers
        ]
        for fleet in self._fleets.values():
            await fleet.start()
        await self.scene.connected(CONNECT_SECONDS)
        self._before = await self._resources()
        self._watching.append(self.background.create_task(self.scene.observer.run(), name="observer"))
        self._publishing = [
            self.background.create_task(publisher.run(self._pause_seconds), name="publisher")
            for publisher in self.scene.publishers
        ]
        await asyncio.sleep(WARM_UP_SECONDS)

    async def load_for(self, seconds: float) -> None:
        """The load goes on for so long."""
        await asyncio.sleep(seconds)

    async def recovered(self, kind: str, since: float | None = None, within: float = 60.0) -> None:
        """Waits until the hub is over a damage that ended at `since` (now, if not said): every node has its
        link and its session, and got something new. Not in time is a breach."""
        began = self.clock.now() if since is None else since
        usual_pending = 2 * len(self.node_ids)
        at = await self.scene.recovered(began, usual_pending, within)
        self.history.faults.append(FaultDone(kind, self.title, began, at))

    async def _resources(self) -> dict[str, Resources]:
        return {
            service: await read_resources(service, self.hub.of(service)[0].address) for service in SERVICES
        }

    async def _nothing_left_over(self) -> list[str]:
        """What stays more than before, however long one looks; a request at work is no such thing."""
        try:
            async with asyncio.timeout(LET_GO_SECONDS):
                while left_over := await self._left_over():  # noqa: ASYNC110 - told by nobody
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            return left_over
        return []

    async def _left_over(self) -> list[str]:
        return [
            f"{service}: {name} {now}, {before} before"
            for service, resources in (await self._resources()).items()
            for name, (before, now) in resources.left_over(self._before[service]).items()
            if name not in _CACHED and now > before + _POOLED.get(name, 0)
        ]

    async def finish(self) -> None:
        """Ends the load, waits until all is quiet and takes down what there is; ends with the fleets
        stopped."""
        for publisher in self.scene.publishers:
            publisher.stop()
        _, unanswered = await asyncio.wait(self._publishing, timeout=ANSWERS_SECONDS)
        await _ended(*unanswered)
        history, ending = self.history, Ending(self.hub, self._misbehaving)
        for publisher in self.scene.publishers:
            history.publishes += [one for one in publisher.history if one.node_id not in self._misbehaving]
        await ending.settled(self.scene.fleets, SETTLE_SECONDS)
        await _ended(self._watching.pop())  # the observer, whose questions are tasks of the hub
        history.unclean += await self._nothing_left_over()
        others = self._fleets.get(OTHERS)
        if others and others.links_opened > len(others.node_ids):
            more = others.links_opened - len(others.node_ids)
            history.unclean.append(f"{more} links of edges were lost whose network was left alone")
        self._latencies = {name: fleet.latencies for name, fleet in self._fleets.items()}
        await ending.take_down(history, self.scene.fleets, guests=0)
        await self.close()
        observer = self.scene.observer
        history.registry, history.changes, history.links = observer.registry, observer.changes, observer.links

    async def close(self) -> None:
        """Ends all tasks and fleets."""
        await _ended(*self._watching, *self._publishing)
        for fleet in self._fleets.values():
            await fleet.stop()

    def row(self, verdict: Verdict) -> Row:
        """What was measured."""
        weak = Latencies()
        for name, latencies in self._latencies.items():
            if name != OTHERS or len(self._latencies) == 1:
                weak.add_counts(latencies.take())
        p50, p99, most = weak.quantiles_ms((0.5, 0.99, 1.0))
        others = self._latencies.get(OTHERS)
        recoveries = [
            one.recovered_at - one.at for one in self.history.faults if one.recovered_at is not None
        ]
        return Row(
            *(self.title, len(self.node_ids), verdict.accepted, verdict.acknowledged),
            *(len(verdict.lost), len(verdict.stale_overwrites)),
            *(p50, p99, most),
            others_p99_ms=others.quantiles_ms((0.99,))[0] if others else None,
            recovery_seconds=max(recoveries, default=None),
            note=self.note,
        )


async def _ended(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def running_scenario(
    lab: Lab,
    data: Path,
    title: str,
    edges: Mapping[str, int],
    record: Callable[[Row], None],
    *,
    publishers: int = 3,
    pause_seconds: float = 0.2,
    hub_flags: Mapping[str, Sequence[str]] | None = None,
    edge_flags: Sequence[str] = (),
    observe_seconds: float = 0.3,
    misbehaving: Sequence[str] = (),
) -> AsyncIterator[Scenario]:
    """A hub in the cloud of the lab, and fleets: so many `edges` at each site by name (sites that the lab has
    not are made). Nothing is started of the fleets until `Scenario.start`.

    At the end the invariants are held against all that happened, the row is recorded, and a breach raises
    AssertionError. Nodes that are `misbehaving` are published to and not judged; the caller plays them.
    """
    certificates = data / "certificates"
    await asyncio.to_thread(create_server_certificate, certificates, [lab.cloud_address])
    names = [f"edge-{number}" for number in range(1, sum(edges.values()) + 1)]
    await asyncio.to_thread(create_node_certificates, certificates, [*names, *misbehaving])
    for name in edges:
        if name not in lab.sites:
            lab.add_site(name)
    hub_context = running_hub(
        *(data, certificates, (HubPorts(),)),
        flags=hub_flags,
        launch=lambda name: launch_in(lab.cloud, service_arguments(name)[1]),
        host=lab.cloud_address,
    )
    async with hub_context as hub:
        scenario = Scenario(
            *(lab, hub, title, edges, data),
            publishers=publishers,
            pause_seconds=pause_seconds,
            edge_flags=edge_flags,
            observe_seconds=observe_seconds,
            misbehaving=misbehaving,
        )
        try:
            async with scenario.background:
                try:
                    yield scenario
                    await scenario.finish()
                finally:
                    await scenario.close()
        except* TimeoutError as timeouts:
            raise AssertionError(f"{title}: not in time\nlogs: {data / 'logs'}") from timeouts
        for instance in reversed(hub.instances):
            if not await instance.stop():
                scenario.history.unclean.append(f"{instance.name} did not end by itself at the end")
    scenario.history.unclean += tracebacks(data / "logs")
    verdict = judge(scenario.history, scenario.node_ids)
    record(scenario.row(verdict))
    breaches = {name: found for name, found in verdict.breaches().items() if found}
    assert breaches == {}, f"{title}: {breaches}\nlogs: {data / 'logs'}"
    assert verdict.accepted > 0, f"{title}: nothing was put to the test"
