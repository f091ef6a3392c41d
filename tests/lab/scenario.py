"""A scenario: hub in the cloud, fleets at sites, publishers, subscribers; then quiet, and the verdict."""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import msgspec

from chaos.checker import Verdict, judge
from chaos.clock import RunClock
from chaos.ending import Ending, tracebacks
from chaos.fleets import FleetProcess
from chaos.history import FaultDone, History, Outcome, Publish
from chaos.observer import Observer, outbox_nodes
from chaos.publisher import Publisher
from chaos.scene import Scene
from chaos.subscriber import Subscriber
from cloudhub.v1.dispatcher_pb2 import (
    ACK_MODE_ACK,
    OUTCOME_ACCEPTED,
    PublishRequest,
    PublishStreamRequest,
    PublishStreamResponse,
    UpstreamDelivery,
)
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from demo.hub import SERVICES, Hub, running_hub, service_arguments
from demo.latency import Latencies
from demo.manifests import Versions
from demo.ports import HubPorts
from demo.processes import Launch
from edge.certificates import create_node_certificates, create_server_certificate
from tests.lab import stock
from tests.lab.bad_input import RUDE
from tests.lab.checks import Checks
from tests.lab.clocks import SteppedClock
from tests.lab.direct import DirectPublisher
from tests.lab.left_over import LeftOver
from tests.lab.namespaces import Namespace
from tests.lab.network import Lab, Site, launch_in
from tests.lab.table import Row

TRANSPORT = os.environ.get("TRANSPORT") or "websocket"
"""Of all sites for which a scenario names none: `make e2e TRANSPORT=quic`."""
stock.check(TRANSPORT)
PLAYED_BY = TRANSPORT if TRANSPORT != "websocket" else "stock" if stock.STOCK else ""
"""If it is not our agent over WebSocket."""
OTHERS = "others"
"""The site whose network is left alone: its nodes must notice nothing."""
EDGE_FLAGS = ("--sync", "normal", "--report-every", "0.2", "--upload-every", "2", "--status-every", "5")
"""Beside the defaults of the edge agent. Only networks are broken here, no machines."""
CONNECT_SECONDS = 60.0
ANSWERS_SECONDS = 15.0
SETTLE_SECONDS = 60.0
WARM_UP_SECONDS = 2.0
TOLD_SECONDS = 0.1
OBJECTS_AT_ONCE = 500


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
        transports: Mapping[str, str],
        observe_seconds: float,
        limit_total: int,
        edge_clock: SteppedClock | None,
        misbehaving: Sequence[str],
    ) -> None:
        self.lab = lab
        self.hub = hub
        self.title = title
        self.clock = RunClock()
        self.history = History(seed=0, limit_total=limit_total)
        self.certificates = data / "certificates"
        """Of everybody, as edge.certificates lays them out."""
        self.note = ""
        """For the last column of the table."""
        self.acts: list[Row] = []
        """Parts of it that have rows of their own."""
        self._pause_seconds = pause_seconds
        self._misbehaving = misbehaving
        self._transports = transports
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
                *(*EDGE_FLAGS, *stock.FLAGS, *edge_flags),
                *("--transport", transports.get(name, TRANSPORT), "--quic-server", hub.quic_server),
                launch=_launcher(site, lambda _: "demo.fleet_worker", edge_clock),
            )
            first += nodes
        self._versions = versions = Versions()
        dispatchers = [one.address for one in hub.dispatchers]
        self.node_ids = [node_id for fleet in self._fleets.values() for node_id in fleet.node_ids]
        self._published_to = list(self.node_ids)
        self._lifecycle: list[tuple[str, str]] = []
        self.taps: list[Callable[[UpstreamDelivery], None]] = []
        """Called with whatever a subscriber gets."""
        self._subscribers = [
            Subscriber(
                f"subscriber-{number}",
                dispatchers,
                self.history.uploads_handed,
                self._lifecycle,
                hub.security,
                self.taps,
            )
            for number in (1, 2)
        ]
        self.scene = Scene(
            hub,
            list(self._fleets.values()),
            [
                Publisher(
                    f"publisher-{number}", dispatchers, self._published_to, versions, self.clock, hub.security
                )
                for number in range(1, publishers + 1)
            ],
            Observer(hub, self.clock, observe_seconds),
            self.clock,
        )
        self.direct = DirectPublisher(hub.dispatchers[0], self.node_ids, versions, self.clock, pause_seconds)
        self.checks = Checks(hub, lab.cloud_address, data, self.direct)
        self.background = asyncio.TaskGroup()
        """Of the observer, the subscribers and the publishers; a test's own tasks end before it does."""
        self.links_opened: dict[str, int] = {}
        """By site, when all is over."""
        self.p99_ms: dict[str, float | None] = {}
        """From publish to acknowledgement, by site, when all is over."""
        self._latencies: dict[str, Latencies] = {}
        self._watching: list[asyncio.Task[None]] = []
        self._publishing: list[asyncio.Task[None]] = []
        self._directing: asyncio.Task[None] | None = None
        self._repeated = 0
        self._left_over = LeftOver(hub)
        self._row: Row | None = None

    def site(self, name: str) -> Site:
        """A site of the lab, by the name that its fleet has too."""
        return self.lab.sites[name]

    def fleet(self, name: str) -> FleetProcess:
        """The edges at a site."""
        return self._fleets[name]

    def lose_links(self, name: str) -> None:
        """Every link of a site's fleet ends in one instant. Its TCP connections are reset. Nothing that a
        network does ends a QUIC connection: there the edges forget theirs, and the hub hears of it when they
        come back."""
        if self._transports.get(name, TRANSPORT) == "quic":
            self._fleets[name].cut()
        else:
            self.site(name).reset()

    @contextmanager
    def publishing_to(self, misbehaving: Sequence[str]) -> Iterator[None]:
        """Meanwhile what all nodes get is published to these as well."""
        self._published_to += misbehaving
        try:
            yield
        finally:
            for node_id in misbehaving:
                self._published_to.remove(node_id)

    def lifecycle(self, node_id: str) -> list[str]:
        """`connected` and `disconnected`, as subscribers were told of a node."""
        return [operation for told, operation in self._lifecycle if told == node_id]

    async def told(self, node_ids: Iterable[str], operation: str, within: float) -> None:
        """Returns when that is the last that subscribers were told of each node. Raises TimeoutError."""
        waiting = set(node_ids)
        async with asyncio.timeout(within):
            while waiting:
                await asyncio.sleep(TOLD_SECONDS)
                waiting = {one for one in waiting if self.lifecycle(one)[-1:] != [operation]}

    async def start(self) -> None:
        """Starts the fleets and waits until they are connected and quiet; then the publishers begin. Raises
        TimeoutError."""
        self._watching = [
            self.background.create_task(subscriber.run(), name="subscriber")
            for subscriber in self._subscribers
        ]
        for fleet in self._fleets.values():
            await fleet.start()
            fleet.hush()
        await self.scene.connected(CONNECT_SECONDS)
        await self._left_over.look_before()
        for fleet in self._fleets.values():
            fleet.talk()
        self._watching.append(self.background.create_task(self.scene.observer.run(), name="observer"))
        self._publishing = [
            self.background.create_task(publisher.run(self._pause_seconds), name="publisher")
            for publisher in self.scene.publishers
        ]
        self._directing = self.background.create_task(self.direct.run(), name="NO-ACK publisher")
        await asyncio.sleep(WARM_UP_SECONDS)

    async def publish(self, node_id: str, resources: Sequence[str]) -> None:
        """A new object at each of these resource paths, for one node, as fast as it is taken."""
        async with self.hub.dispatchers[0].open_channel() as channel:
            call = DispatcherServiceStub(channel).PublishStream()
            for first in range(0, len(resources), OBJECTS_AT_ONCE):
                some = resources[first : first + OBJECTS_AT_ONCE]
                requests = [self._request(node_id, resource) for resource in some]
                sent_at = self.clock.now()
                await call.write(PublishStreamRequest(requests=requests))
                answer = await call.read()
                assert isinstance(answer, PublishStreamResponse), "the dispatcher ended the stream"
                for request, response in zip(requests, answer.responses, strict=True):
                    assert [one.outcome for one in response.outcomes] == [OUTCOME_ACCEPTED], response
                    self.history.publishes.append(_taken_down(request, sent_at, self.clock.now()))
            call.cancel()

    def _request(self, node_id: str, resource: str) -> PublishRequest:
        version = str(self._versions.next())
        content = json.dumps({"metadata": {"uid": _uid(resource), "resourceVersion": version}})
        message = Message(
            id=f"{_uid(resource)}-{version}",
            source="edgecontroller",
            group="resource",
            operation="insert",
            resource=resource,
            resource_version=version,
            content=content.encode(),
        )
        return PublishRequest(message=message, node_ids=[node_id], ack_mode=ACK_MODE_ACK)

    async def pending(self) -> int:
        """Messages that the hub waits for."""
        async with self.hub.dispatchers[0].open_channel() as channel:
            return sum(node.pending for node in await outbox_nodes(channel))

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

    async def finish(self) -> None:
        """Ends the load, waits until all is quiet and takes down what there is; ends with the fleets
        stopped."""
        await self.checks.under_load(self.node_ids[0])
        for publisher in self.scene.publishers:
            publisher.stop()
        if self._directing:
            await _ended(self._directing)
        if self._publishing:
            _, unanswered = await asyncio.wait(self._publishing, timeout=ANSWERS_SECONDS)
            await _ended(*unanswered)
        for fleet in self._fleets.values():
            fleet.hush()
        history, ending = self.history, Ending(self.hub, self._misbehaving)
        for publisher in self.scene.publishers:
            history.publishes += [one for one in publisher.history if one.node_id not in self._misbehaving]
        await ending.settled(self.scene.fleets, SETTLE_SECONDS)
        await _ended(self._watching.pop())  # the observer, whose questions are tasks of the hub
        history.unclean += await self._left_over.breaches()
        others = self._fleets.get(OTHERS)
        if others and others.links_opened > len(others.node_ids):
            more = others.links_opened - len(others.node_ids)
            history.unclean.append(f"{more} links of edges were lost whose network was left alone")
        self._repeated = sum(fleet.report.repeated for fleet in self.scene.fleets)
        self.links_opened = {name: fleet.links_opened for name, fleet in self._fleets.items()}
        self._latencies = {name: fleet.latencies for name, fleet in self._fleets.items()}
        await ending.take_down(history, self.scene.fleets, guests=0)
        whole = [fleet for fleet in self.scene.fleets if fleet.links_opened == len(fleet.node_ids)]
        await self.checks.when_quiet(history, {node_id for fleet in whole for node_id in fleet.node_ids})
        await self.close()
        observer = self.scene.observer
        history.registry, history.changes, history.links = observer.registry, observer.changes, observer.links

    async def close(self) -> None:
        """Ends all tasks and fleets."""
        await _ended(*self._watching, *self._publishing, *([self._directing] if self._directing else []))
        for fleet in self._fleets.values():
            await fleet.stop()

    @property
    def measured(self) -> Row:
        """The scenario's row, when all is over."""
        assert self._row is not None, "the scenario is not over"
        return self._row

    def judged(self, verdict: Verdict) -> list[Row]:
        """Takes down what was measured: a row for all of it, or for each of its acts."""
        self.p99_ms = {name: one.quantiles_ms((0.99,))[0] for name, one in self._latencies.items()}
        weak = Latencies()
        for name, latencies in self._latencies.items():
            if name != OTHERS or len(self._latencies) == 1:
                weak.add_counts(latencies.take())
        p50, p99, most = weak.quantiles_ms((0.5, 0.99, 1.0))
        others = self._latencies.get(OTHERS)
        recoveries = [
            one.recovered_at - one.at for one in self.history.faults if one.recovered_at is not None
        ]
        self._row = Row(
            *(
                f"{self.title} ({PLAYED_BY})" if PLAYED_BY else self.title,
                len(self.node_ids),
                verdict.accepted,
                verdict.acknowledged,
            ),
            *(len(verdict.lost), len(verdict.stale_overwrites)),
            self._repeated,
            *(p50, p99, most),
            others_p99_ms=others.quantiles_ms((0.99,))[0] if others else None,
            recovery_seconds=max(recoveries, default=None),
            note=self.note or self._compared(),
        )
        found = {"lost": len(verdict.lost), "stale": len(verdict.stale_overwrites)}
        return [msgspec.structs.replace(act, **found) for act in self.acts] or [self._row]

    def _compared(self) -> str:
        """What sites measured that differ by their transport alone."""
        if not self._transports:
            return ""
        told = (f"{transport} {self.p99_ms[site]:.0f} ms" for site, transport in self._transports.items())
        return f"p99 {', '.join(told)}"


def _uid(resource: str) -> str:
    return resource.replace("/", "-")


def _taken_down(request: PublishRequest, sent_at: float, answered_at: float) -> Publish:
    message = request.message
    return Publish(
        node_id=request.node_ids[0],
        resource=message.resource,
        uid=_uid(message.resource),
        version=int(message.resource_version),
        operation=message.operation,
        outcome=Outcome.ACCEPTED,
        sent_at=sent_at,
        answered_at=answered_at,
    )


def _launcher(namespace: Namespace, module_of: Callable[[str], str], clock: SteppedClock | None) -> Launch:
    def launch(name: str) -> list[str]:
        module = module_of(name)
        return launch_in(namespace, *(clock.launched(module) if clock else [module]))

    return launch


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
    transports: Mapping[str, str] | None = None,
    observe_seconds: float = 0.3,
    limit_total: int = 0,
    hub_clock: SteppedClock | None = None,
    edge_clock: SteppedClock | None = None,
    misbehaving: Sequence[str] = (),
) -> AsyncIterator[Scenario]:
    """A hub in the cloud of the lab, and fleets: so many `edges` at each site by name (sites that the lab has
    not are made). Nothing is started of the fleets until `Scenario.start`.

    At the end the invariants are held against all that happened, the row is recorded, and a breach raises
    AssertionError. Nodes that are `misbehaving` are published to and not judged; the caller plays them.
    """
    certificates = data / "certificates"
    await asyncio.to_thread(create_server_certificate, certificates, [lab.cloud_address])
    misbehaving = [*misbehaving, RUDE]
    names = [f"edge-{number}" for number in range(1, sum(edges.values()) + 1)]
    await asyncio.to_thread(create_node_certificates, certificates, [*names, *misbehaving])
    for name in edges:
        if name not in lab.sites:
            lab.add_site(name)
    flags = {service: list((hub_flags or {}).get(service, ())) for service in SERVICES}
    flags["sessions"] += ["--limit-total", str(limit_total)]
    hub_context = running_hub(
        *(data, certificates, (HubPorts(),)),
        flags=flags,
        launch=_launcher(lab.cloud, lambda name: service_arguments(name)[1], hub_clock),
        host=lab.cloud_address,
    )
    async with hub_context as hub:
        scenario = Scenario(
            *(lab, hub, title, edges, data),
            publishers=publishers,
            pause_seconds=pause_seconds,
            edge_flags=edge_flags,
            transports=transports or {},
            observe_seconds=observe_seconds,
            limit_total=limit_total,
            edge_clock=edge_clock,
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
    for row in scenario.judged(verdict):
        record(row)
    breaches = {
        name: found for name, found in (verdict.breaches() | scenario.checks.breaches).items() if found
    }
    assert breaches == {}, f"{title}: {breaches}\nlogs: {data / 'logs'}"
    assert verdict.accepted > 0, f"{title}: nothing was put to the test"
