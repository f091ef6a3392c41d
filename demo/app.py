"""The demo put together: hub, fleet, cloud program, bad network, table, verdict."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import grpc
from rich.console import Console

from demo.checker import Verdict, check
from demo.commands import commands, ctl_command
from demo.databases import Engine, running_databases
from demo.display import Display, Figures
from demo.exclusive import exclusive
from demo.fleet import Fleet, running_fleet
from demo.fleets import Fleets
from demo.hub import Hub, running_hub
from demo.latency import RecentLatencies
from demo.ledger import Ledger
from demo.manifests import Manifest, load_manifests
from demo.network import BadNetwork
from demo.operator import HubFigures, Operator
from demo.ports import HubPorts, choose_ports
from demo.processes import Child, ProcessFault
from demo.settings import DemoSettings
from demo.subscriber import Subscriber
from demo.workload import Workload
from edge.certificates import create_node_certificates, create_server_certificate
from services.runtime.rpc import NO_ANSWER

CONNECT_SECONDS = 60.0
REFRESH_SECONDS = 0.5
_MAX_NAMED = 5
LATENCY_SECONDS = 10.0
PROGRESS_SECONDS = 3.0


class Demo:
    """One run of the demo. `stop` asks it to end; it then settles and gives its verdict."""

    def __init__(self, settings: DemoSettings, console: Console) -> None:
        self._settings = settings
        self._console = console
        self._stop = asyncio.Event()
        self._ledger = Ledger()
        self.running = False
        """Up and publishing: `stop` leads to a verdict."""

    def stop(self) -> None:
        """Publishes no more."""
        self._stop.set()

    @property
    def stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stop.is_set()

    async def run(self) -> Verdict:
        """Starts everything, works, stops everything. Raises FolderInUse, ProcessFault and others of this
        folder, each with a text for people."""
        settings = self._settings
        manifests = load_manifests(settings.manifests)
        with exclusive(settings.data, "--data"):
            # The last one has to get its own.
            certified = [f"edge-{number}" for number in range(1, settings.nodes)]
            self._say("making certificates, where they are missing")
            await asyncio.to_thread(create_server_certificate, settings.certificates)
            await asyncio.to_thread(create_node_certificates, settings.certificates, certified)
            ports = choose_ports(settings.replicas, HubPorts())
            self._say(f"data, certificates and logs: {settings.data}")
            for number, replica in enumerate(ports):
                self._tell_taken(HubPorts().of_replica(number), replica)
            if settings.engine is Engine.POSTGRESQL:
                self._say("starting PostgreSQL")
            async with (
                running_databases(settings.engine, settings.data) as databases,
                running_hub(
                    *(settings.data, settings.certificates, ports, databases),
                    tls=settings.tls,
                    enrolments=settings.replicas,
                    tell=self._say,
                ) as hub,
                AsyncExitStack() as stack,
            ):
                dispatchers = [await stack.enter_async_context(one.open_channel()) for one in hub.dispatchers]
                sessions = await stack.enter_async_context(hub.sessions[0].open_channel())
                operator = Operator(dispatchers, sessions)
                # The one that joins gets a new token each time.
                certified_ids = frozenset(certified)
                operator.locked_out = certified_ids.intersection(await operator.revoked())
                self._tell_locked_out(hub, sorted(operator.locked_out))
                fleets = await self._start_fleets(stack, hub, operator)
                try:
                    async with _watched(hub, fleets):
                        # Publishes through one dispatcher, and hears through the last one.
                        return await self._work(
                            hub, fleets, dispatchers[0], dispatchers[-1], operator, manifests
                        )
                finally:
                    database = ", database" if settings.engine is Engine.POSTGRESQL else ""
                    self._say(f"stopping: edges, enrolment, connectors, dispatchers, sessions{database}")

    async def _start_fleets(self, stack: AsyncExitStack, hub: Hub, operator: Operator) -> Fleets:
        """All nodes but one are a fleet; the last one knows the address of enrolment and its token."""
        settings, logs = self._settings, self._settings.data / "logs"
        flags = ("--upload-every", "10", "--status-every", "10", "--by-version")
        fleets: list[tuple[Fleet, Path]] = []
        if settings.nodes > 1:
            nodes = settings.nodes - 1
            starting = running_fleet(
                *(nodes, hub.server, settings.certificates, settings.edges_database, logs / "edges.log"),
                *flags,
            )
            fleets.append((await stack.enter_async_context(starting), settings.edges_database))
        starting = running_fleet(
            *(1, hub.server if hub.ports[0].edges != HubPorts().edges else "", settings.joined_certificates),
            *(settings.joined_database, logs / "joining-edge.log"),
            *("--enrol", hub.enrolment_servers[0]),
            *flags,
            name="joining-edge",
            first=settings.nodes,
            token=await operator.join_token(f"edge-{settings.nodes}"),
        )
        fleets.append((await stack.enter_async_context(starting), settings.joined_database))
        return Fleets(fleets)

    async def _work(
        self,
        hub: Hub,
        fleets: Fleets,
        publishing: grpc.aio.Channel,
        subscribing: grpc.aio.Channel,
        operator: Operator,
        manifests: list[Manifest],
    ) -> Verdict:
        settings, loop = self._settings, asyncio.get_running_loop()
        node_ids = [one for one in fleets.node_ids if one not in operator.locked_out]
        took = await self._connected(fleets, operator.locked_out)
        self._say(f"{len(node_ids)} edge nodes connected in {took:.2f} s over {hub.server}")
        self._say(f"edge-{settings.nodes} enrolled at {hub.enrolment_servers[0]} by a join token")
        self._say("try:", *commands(hub, settings.certificates, manifests[0]))
        known = (await operator.figures()).last_seq > 0
        figures = Figures(nodes=len(node_ids), others=_others(fleets, settings.engine))
        self.running = True
        if settings.seconds:
            loop.call_later(settings.seconds, self._stop.set)
        with Display(self._console) as display:
            workload = Workload(publishing, manifests, node_ids, self._ledger, display.tell)
            subscriber = Subscriber(subscribing)
            network = BadNetwork(fleets, node_ids, display.tell)
            async with asyncio.TaskGroup() as group:
                refreshing = group.create_task(
                    self._refresh(display, figures, operator, fleets, subscriber, network), name="table"
                )
                receiving = group.create_task(subscriber.run(), name="subscriber")
                cutting = None
                if settings.cut_every:
                    cutting = group.create_task(network.run(settings.cut_every), name="bad network")

                async def whole_network() -> None:
                    if cutting is not None:
                        cutting.cancel()
                    fleets.heal()
                    display.tell("publishing stops, the network is whole; what is pending settles")

                await workload.run(self._stop, settings.update_every, known=known, settle=whole_network)
                await self._settled(operator)
                verdict = await check(self._ledger, operator, fleets.disks)
                await self._refresh_once(figures, operator, fleets, subscriber, network)
                display.show(figures)
                refreshing.cancel()
                receiving.cancel()
        if verdict.superseded:
            self._say(f"{verdict.superseded} were superseded by newer versions before their node had them")
        if verdict.replaced:
            self._say(f"{verdict.replaced} objects were replaced by another publisher's, under the same path")
        if verdict.unrecorded:
            self._say(f"{verdict.unrecorded} are pending at the hub although no node lacks what they carry")
        for reason, count in self._ledger.refused.items():
            self._say(f"{count} publishes were answered {reason}")
        return verdict

    async def _settled(self, operator: Operator) -> None:
        """Until nothing is pending but what is parked, or the time is over."""
        deadline = time.monotonic() + self._settings.settle
        while time.monotonic() < deadline:
            hub = await operator.figures()
            if not hub.unsettled:
                return
            await asyncio.sleep(0.2)

    async def _refresh(
        self,
        display: Display,
        figures: Figures,
        operator: Operator,
        fleets: Fleets,
        subscriber: Subscriber,
        network: BadNetwork,
    ) -> None:
        whole, cut = RecentLatencies(LATENCY_SECONDS), RecentLatencies(LATENCY_SECONDS)
        while True:
            await self._refresh_once(figures, operator, fleets, subscriber, network)
            now, taken = time.monotonic(), fleets.take_latencies()
            for recent, counts in zip((whole, cut), taken, strict=True):
                recent.add_counts(counts, now)
            figures.p50_ms, figures.p99_ms = whole.quantiles_ms((0.5, 0.99))
            (figures.cut_p99_ms,) = cut.quantiles_ms((0.99,))
            display.show(figures)
            await asyncio.sleep(REFRESH_SECONDS)

    async def _refresh_once(
        self,
        figures: Figures,
        operator: Operator,
        fleets: Fleets,
        subscriber: Subscriber,
        network: BadNetwork,
    ) -> None:
        try:
            figures.hub = await operator.figures()
        except grpc.aio.AioRpcError as error:
            if error.code() not in NO_ANSWER:
                raise
            # A service that is gone for good ends the demo elsewhere.
            figures.hub = HubFigures()
        report = fleets.report
        figures.links = report.links
        figures.acknowledged = fleets.acknowledged(self._ledger.versions)
        figures.cut_now = len(network.cut_now())
        figures.repeated = report.repeated
        figures.reconnects = max(0, report.links_opened - figures.nodes)
        figures.published, figures.refused = self._ledger.accepted, self._ledger.refused
        figures.upstream, figures.cuts = subscriber.received, network.cuts

    async def _connected(self, fleets: Fleets, locked_out: frozenset[str]) -> float:
        """Returns when every node that can has its link, and says now and then how many have."""
        waiting = asyncio.create_task(fleets.connected(CONNECT_SECONDS, locked_out), name="first connect")
        try:
            while not (await asyncio.wait([waiting], timeout=PROGRESS_SECONDS))[0]:
                wanted = len(fleets.node_ids) - len(locked_out)
                self._say(f"{fleets.report.links} of {wanted} edge nodes have a link, waiting for the others")
            return await waiting
        finally:
            waiting.cancel()

    def _tell_locked_out(self, hub: Hub, locked_out: Sequence[str]) -> None:
        for node_id in locked_out[:_MAX_NAMED]:
            self._say(
                f"{node_id} was revoked: it cannot connect, and nothing is published to it. Take that back:",
                f"  {ctl_command(hub, self._settings.certificates)} reinstate-node {node_id}",
            )
        if len(locked_out) > _MAX_NAMED:
            self._say(f"and {len(locked_out) - _MAX_NAMED} nodes more were revoked")

    def _tell_taken(self, wanted: HubPorts, chosen: HubPorts) -> None:
        for name in HubPorts.__dataclass_fields__:
            if getattr(chosen, name) != getattr(wanted, name):
                self._say(f"port {getattr(wanted, name)} is taken: {name} uses {getattr(chosen, name)}")

    def _say(self, *lines: str) -> None:
        for line in lines:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)


@asynccontextmanager
async def _watched(hub: Hub, fleets: Fleets) -> AsyncIterator[None]:
    """Ends its body with a ProcessFault when a child dies."""
    children = (*(instance.child for instance in hub.instances), *(fleet.child for fleet in fleets.all))
    try:
        async with asyncio.TaskGroup() as group:
            watchers = [group.create_task(child.died(), name=f"watch {child.name}") for child in children]
            yield
            for watcher in watchers:
                watcher.cancel()
    except BaseExceptionGroup as faults:
        # A call may fail an instant before the death of its server is noticed.
        death = _death_among(faults) or await _death_within(children, 1.0)
        if death is not None:
            raise death from None
        raise


def _death_among(error: BaseException) -> ProcessFault | None:
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_death_among, error.exceptions)), None)
    return error if isinstance(error, ProcessFault) else None


async def _death_within(children: Sequence[Child], seconds: float) -> ProcessFault | None:
    watchers = [asyncio.create_task(child.died(), name=f"watch {child.name}") for child in children]
    done, _ = await asyncio.wait(watchers, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for watcher in watchers:
        watcher.cancel()
    await asyncio.gather(*watchers, return_exceptions=True)
    return next((death for task in done if (death := _death_among(task.exception() or OSError()))), None)


def _others(fleets: Fleets, engine: Engine) -> tuple[str, ...]:
    """What processes the demo has beside those of the hub."""
    database = ("1 database",) if engine is Engine.POSTGRESQL else ()
    return (f"{len(fleets.all)} of edges", *database)
