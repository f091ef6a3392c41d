"""One soak run: a hub, two sites, publishers and subscribers through some days; then quiet."""

import asyncio
import random
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from chaos.clock import RunClock
from chaos.ending import Ending, tracebacks
from chaos.fleets import FleetProcess
from chaos.history import FaultDone, History
from chaos.observer import Observer
from chaos.publisher import Publisher
from chaos.scene import Scene
from chaos.subscriber import Subscriber
from demo.databases import running_databases
from demo.hub import Hub, running_hub
from demo.manifests import Versions
from demo.ports import choose_ports
from edge.certificates import create_node_certificates, create_server_certificate
from soak.day import HOURS, Event, What, days
from soak.sampler import Sampler
from soak.samples import Happened, Record
from soak.settings import SoakSettings

CONNECT_SECONDS = 60.0
ANSWERS_SECONDS = 15.0
NIGHT_PAUSE_SECONDS = 2.0
UPDATE_PAUSE_SECONDS = 0.2
UPDATERS = 2
WEAK_NODES = 0.2
"""The part of the nodes whose links are weak at a time."""
WEAK_SECONDS = (3.0, 15.0)
"""Shorter and longer than the keepalive."""


class SoakRun:
    """Made for one run. `tell` gets a line for each thing that happens."""

    def __init__(self, settings: SoakSettings, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._clock = RunClock()
        self._say = tell
        self._chance = random.Random("soak")
        self._versions = Versions()
        self._updates: list[tuple[Publisher, asyncio.Task[None]]] = []
        self._updates_begun = 0
        self.history = History(0, 0)
        self.record = Record()
        self.node_ids = [f"edge-{number}" for number in range(1, settings.nodes + 1)]

    async def run(self) -> None:
        """Fills history and record. Raises ProcessFault or PostgresFault if what the run itself needs does
        not come up."""
        settings = self._settings
        shutil.rmtree(settings.data, ignore_errors=True)
        certificates = settings.data / "certificates"
        await asyncio.to_thread(create_server_certificate, certificates)
        await asyncio.to_thread(create_node_certificates, certificates, self.node_ids)
        async with (
            running_databases(settings.engine, settings.data) as databases,
            running_hub(
                *(settings.data, certificates, choose_ports(settings.replicas), databases),
                flags=settings.hub_flags,
                tls=settings.tls,
            ) as hub,
            AsyncExitStack() as stack,
        ):
            scene = self._scene(hub)
            for fleet in scene.fleets:
                stack.push_async_callback(fleet.stop)
            await self._work(scene)
            for instance in reversed(hub.instances):
                if not await instance.stop():
                    self.history.unclean.append(f"{instance.name} did not end by itself at the end")
        self.history.unclean += tracebacks(settings.data / "logs")

    def _tell(self, text: str) -> None:
        self.record.events.append(Happened(self._clock.now(), text))
        self._say(f"{self._clock.now():6.1f} s  {text}")

    def _scene(self, hub: Hub) -> Scene:
        settings = self._settings
        first = settings.nodes // 3
        own = (settings.data, hub.server, settings.fleet_flags)
        return Scene(
            hub,
            [_fleet("site-1", 1, first, *own), _fleet("site-2", first + 1, settings.nodes - first, *own)],
            [self._publisher(hub, "night")],
            Observer(hub, self._clock, settings.sample_seconds),
            self._clock,
        )

    def _publisher(self, hub: Hub, name: str) -> Publisher:
        addresses = [one.address for one in hub.dispatchers]
        return Publisher(name, addresses, self.node_ids, self._versions, self._clock, hub.security)

    async def _work(self, scene: Scene) -> None:
        settings, addresses = self._settings, [one.address for one in scene.hub.dispatchers]
        sampler = Sampler(scene, self._clock, settings.sample_seconds, settings.seconds / settings.days)
        async with asyncio.TaskGroup() as background:
            watching = [
                background.create_task(scene.observer.run(), name="observer"),
                background.create_task(
                    Subscriber(
                        *("subscriber", addresses, self.history.uploads_handed), security=scene.hub.security
                    ).run(),
                    name="subscriber",
                ),
            ]
            for fleet in scene.fleets:
                await fleet.start()
            await scene.connected(CONNECT_SECONDS)
            sampling = background.create_task(sampler.run(), name="sampler")
            (always,) = scene.publishers
            publishing = background.create_task(always.run(NIGHT_PAUSE_SECONDS), name="publisher")
            sampler.begin()
            await self._live(scene, background)
            await self._end_updates()
            await _ended(always, publishing)
            for publisher in scene.publishers:
                self.history.publishes += publisher.history
            await self._settle(scene)
            sampling.cancel()
            await Ending(scene.hub).take_down(self.history, scene.fleets, guests=0)
            for task in watching:
                task.cancel()
        observer = scene.observer
        self.history.registry, self.history.changes = observer.registry, observer.changes
        self.history.links = observer.links
        self.record.samples = sampler.samples

    async def _live(self, scene: Scene, background: asyncio.TaskGroup) -> None:
        """Everything that happens, each thing at its hour, or as soon after it as the one before is over."""
        settings, began = self._settings, self._clock.now()
        day_seconds = settings.seconds / settings.days
        for day, event in days(settings.days):
            at = began + (day + event.hour / HOURS) * day_seconds
            await asyncio.sleep(max(0.0, at - self._clock.now()))
            self._tell(f"day {day + 1}, {event.hour:04.1f} h: {event}")
            await self._happens(event, scene, background)
        await asyncio.sleep(max(0.0, began + settings.seconds - self._clock.now()))

    async def _happens(self, event: Event, scene: Scene, background: asyncio.TaskGroup) -> None:
        first, second = scene.fleets
        since, opened = self._clock.now(), scene.links_opened
        match event.what:
            case What.LEAVE:
                second.leave()
                return
            case What.RETURN:
                second.come_back()
            case What.UPDATE:
                self._begin_updates(scene, background)
                return
            case What.CALM:
                await self._end_updates()
                return
            case What.CUT:
                first.cut()
            case What.WEAK:
                self._weaken(scene)
                return
            case What.RESTART:
                for instance in scene.hub.of(event.service):
                    if not await instance.stop():
                        self.history.unclean.append(f"{instance.name} did not end by itself")
                    await instance.start()
        usual = max(2 * scene.observer.pending, 2 * self._settings.nodes)
        recovered_at = await scene.recovered(since, usual, self._settings.recover_seconds)
        if recovered_at is None:
            self._tell(f"NOT recovered: {scene.vitals()}")
        reconnects = scene.links_opened - opened
        target = event.service or "edges"
        self.history.faults.append(FaultDone(event.what.value, target, since, recovered_at, reconnects))

    def _begin_updates(self, scene: Scene, background: asyncio.TaskGroup) -> None:
        for _ in range(UPDATERS):
            self._updates_begun += 1
            publisher = self._publisher(scene.hub, f"update-{self._updates_begun}")
            scene.publishers.append(publisher)
            task = background.create_task(publisher.run(UPDATE_PAUSE_SECONDS), name="updates")
            self._updates.append((publisher, task))

    async def _end_updates(self) -> None:
        updates, self._updates = self._updates, []
        await asyncio.gather(*(_ended(publisher, task) for publisher, task in updates))

    def _weaken(self, scene: Scene) -> None:
        for fleet in scene.fleets:
            for node_id in self._chance.sample(fleet.node_ids, int(WEAK_NODES * len(fleet.node_ids))):
                fleet.black_hole(node_id, self._chance.uniform(*WEAK_SECONDS))

    async def _settle(self, scene: Scene) -> None:
        settings = self._settings
        scene.fleets[1].come_back()
        self._tell("no more events, no more publishes: what is pending settles")
        settled = await Ending(scene.hub).settled(scene.fleets, settings.settle_seconds)
        self._tell("all is quiet" if settled else f"not quiet within {settings.settle_seconds:g} s")


def _fleet(name: str, first: int, nodes: int, data: Path, server: str, flags: list[str]) -> FleetProcess:
    return FleetProcess(data, name, first, nodes, server, *flags)


async def _ended(publisher: Publisher, task: asyncio.Task[None]) -> None:
    """Its last round is answered, or given up."""
    publisher.stop()
    _, unanswered = await asyncio.wait([task], timeout=ANSWERS_SECONDS)
    for one in unanswered:
        one.cancel()
    await asyncio.gather(task, return_exceptions=True)
