"""One chaos run: hub, fleets, publishers, subscribers, faults; then quiet, and the history of it all."""

import asyncio
import shutil
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass

from chaos.applicants import Applicants, certificates_of
from chaos.clock import RunClock
from chaos.ending import Ending, grown, resident_mib, tracebacks
from chaos.faults import Faults
from chaos.fleets import FleetProcess
from chaos.history import FaultDone, History
from chaos.hostile.edges import HOSTILE_NODES
from chaos.hostile.party import HostileParty
from chaos.observer import Observer
from chaos.patroni import PatroniPair
from chaos.publisher import Publisher
from chaos.scene import Scene
from chaos.schedule import Stage, schedule
from chaos.settings import NODE_PREFIX, ChaosSettings, EdgeKind, StoreKind
from chaos.standby import DatabasePair, DatabaseServers
from chaos.subscriber import Subscriber
from chaos.wires import running_wires
from chaos.writes import rows_left, session_writes
from demo.databases import Databases, sqlite_databases
from demo.hub import Hub, running_hub
from demo.manifests import Versions
from demo.ports import HOST, choose_ports
from edge.certificates import create_node_certificates, create_server_certificate

GUESTS_SECONDS = 1.0
"""After each fault guests contend for the sessions that it leaves, for so long."""
WARM_UP_SECONDS = 3.0
CONNECT_SECONDS = 60.0
ANSWERS_SECONDS = 15.0


@dataclass(frozen=True, slots=True)
class _ChaosScene(Scene):
    guests: FleetProcess
    applicants: Applicants
    token_id: str
    """By which the second fleet enrols."""
    party: HostileParty | None


class ChaosRun:
    """Made for one run. `tell` gets a line for each thing that happens."""

    def __init__(self, settings: ChaosSettings, tell: Callable[[str], None]) -> None:
        self._settings = settings
        self._clock = RunClock()
        self._say = tell
        self.history = History(settings.seed, settings.limit_total)
        self.node_ids = [f"{NODE_PREFIX}{number}" for number in range(1, settings.nodes + 1)]

    async def run(self) -> None:
        """Fills the history. Raises ProcessFault, PostgresFault or TimeoutError if what the run itself needs
        does not come up."""
        settings = self._settings
        shutil.rmtree(settings.data, ignore_errors=True)
        certificates = settings.data / "certificates"
        await asyncio.to_thread(create_server_certificate, certificates)
        # The nodes of the second fleet are not among them: they enrol.
        certified = [*self.node_ids[: settings.nodes // 2], *settings.guest_ids, *settings.hostile_ids]
        await asyncio.to_thread(create_node_certificates, certificates, certified)
        async with AsyncExitStack() as stack:
            database, databases = await self._databases(stack)
            ports = choose_ports(settings.replicas)
            wires = await stack.enter_async_context(
                running_wires(
                    [f"{HOST}:{replica.dispatcher}" for replica in ports],
                    [f"{HOST}:{replica.sessions}" for replica in ports],
                )
            )
            flags = settings.hub_flags
            flags["connector"] += ["--dispatchers", ",".join(one.from_connectors.address for one in wires)]
            for number, one in enumerate(wires, 1):
                replicas = ",".join(wire.address for wire in one.to_sessions)
                flags[f"dispatcher-{number}"] = [
                    "--sessions",
                    replicas,
                    "--advertise",
                    one.from_peers.address,
                ]
            hub = await stack.enter_async_context(
                running_hub(
                    *(settings.data, certificates, ports, databases),
                    flags=flags,
                    tls=settings.tls,
                    enrolments=1,
                )
            )
            applicants = Applicants(hub, certificates / "ca.crt", settings.data / "applicants", settings.seed)
            stack.callback(applicants.close)
            scene = await self._scene(hub, applicants)
            faults = Faults(hub, scene.fleets, scene.publishers, wires, database)
            for fleet in (*scene.fleets, scene.guests):
                stack.push_async_callback(fleet.stop)
            await self._work(scene, faults)
            await self._take_down_enrolment(scene)
            for instance in reversed(hub.instances):
                if not await instance.stop():
                    faults.unclean.append(f"{instance.name} did not end by itself at the end")
            self.history.writes = await session_writes(databases.dispatcher)
            self.history.counts += await rows_left(databases.dispatcher, HOSTILE_NODES)
            if faults.overtakes[False] and not faults.overtakes[True]:
                missed = faults.overtakes[False]
                faults.unclean.append(f"no link moved while a dispatcher was frozen, {missed} times over")
            self.history.unclean += [*faults.unclean, *tracebacks(settings.data / "logs")]

    def _tell(self, text: str) -> None:
        self._say(f"{self._clock.now():6.1f} s  {text}")

    async def _databases(self, stack: AsyncExitStack) -> tuple[DatabaseServers | None, Databases]:
        data = self._settings.data
        store = self._settings.store
        if store is StoreKind.SQLITE:
            return None, sqlite_databases(data)
        pair: DatabaseServers = (PatroniPair if store is StoreKind.PATRONI else DatabasePair)(
            data / "postgres"
        )
        stack.push_async_callback(pair.close)
        await pair.start(data / "logs")
        self._tell("a PostgreSQL primary and its synchronous standby are up")
        return pair, pair.databases

    async def _scene(self, hub: Hub, applicants: Applicants) -> _ChaosScene:
        settings = self._settings
        second = self.node_ids[settings.nodes // 2 :]
        token, token_id = await applicants.make_token(f"{NODE_PREFIX}*", len(second))
        half = settings.nodes // 2
        data, flags = settings.data, settings.fleet_flags
        own = (*flags, "--upload-every", "2", "--status-every", "2")
        dispatchers, versions = [one.address for one in hub.dispatchers], Versions()
        return _ChaosScene(
            hub,
            [
                FleetProcess(data, "edges-1", 1, half, hub.server, *own),
                FleetProcess(
                    *(data, "edges-2", half + 1, len(second), hub.server),
                    *("--enrol", hub.enrolment_servers[0]),
                    *own,
                    token=token,
                ),
            ],
            [
                Publisher(
                    f"publisher-{number}", dispatchers, self.node_ids, versions, self._clock, hub.security
                )
                for number in range(1, settings.publishers + 1)
            ],
            Observer(hub, self._clock, node_id_prefix=NODE_PREFIX),
            self._clock,
            FleetProcess(data, "guests", settings.nodes + 1, settings.guests, hub.server, *flags),
            applicants,
            token_id,
            HostileParty(hub, data / "certificates", self.node_ids, settings.seed, self._clock)
            if settings.hostile
            else None,
        )

    async def _work(self, scene: _ChaosScene, faults: Faults) -> None:
        settings, history = self._settings, self.history
        dispatchers = [one.address for one in scene.hub.dispatchers]
        async with asyncio.TaskGroup() as background:
            watching = [background.create_task(scene.observer.run(), name="observer")]
            watching += [
                background.create_task(
                    Subscriber(
                        *(f"subscriber-{number}", dispatchers, history.uploads_handed),
                        security=scene.hub.security,
                    ).run(),
                    name=f"subscriber {number}",
                )
                for number in range(1, settings.subscribers + 1)
            ]
            for fleet in scene.fleets:
                await fleet.start()
            await self._connected(scene)
            self._tell(f"{settings.nodes} nodes are connected")
            await scene.guests.start()
            scene.guests.leave()
            publishing = [
                background.create_task(publisher.run(settings.publish_pause_seconds), name="publisher")
                for publisher in scene.publishers
            ]
            await asyncio.sleep(WARM_UP_SECONDS)
            before = resident_mib(scene.hub)
            playing = background.create_task(scene.party.run(), name="hostile") if scene.party else None
            await self._break_things(scene, faults, background)
            if scene.party and playing:
                await self._end_of_party(scene.party, playing)
            await scene.guests.stop()
            for publisher in scene.publishers:
                publisher.stop()
            _, unanswered = await asyncio.wait(publishing, timeout=ANSWERS_SECONDS)
            for task in unanswered:
                task.cancel()
            await asyncio.gather(*publishing, return_exceptions=True)
            for publisher in scene.publishers:
                history.publishes += publisher.history
            await scene.applicants.answered(ANSWERS_SECONDS)
            await self._settle(scene)
            history.counts += grown(before, resident_mib(scene.hub))
            for task in watching:
                task.cancel()
        observer = scene.observer
        history.registry, history.changes, history.links = observer.registry, observer.changes, observer.links

    async def _end_of_party(self, party: HostileParty, playing: asyncio.Task[None]) -> None:
        """What its acts left goes; that it does not is a breach."""
        party.stop()
        await playing
        self._tell(f"{party.played} hostile acts were played")
        self.history.acts = party.done
        self.history.unclean += await party.clear_away()

    async def _settle(self, scene: _ChaosScene) -> None:
        """Waits until all is quiet, then takes down what there is; ends with the fleets stopped."""
        settings, ending = self._settings, Ending(scene.hub)
        self._tell("no more faults, no more publishes: what is pending settles")
        settled = await ending.settled(scene.fleets, settings.settle_seconds)
        self._tell("all is quiet" if settled else f"not quiet within {settings.settle_seconds:g} s")
        await ending.take_down(self.history, scene.fleets, settings.guests)

    async def _take_down_enrolment(self, scene: _ChaosScene) -> None:
        """Enters who has which certificate, what is on record, and who gets a link by it; the fleets are
        stopped."""
        history, applicants, enrolled = self.history, scene.applicants, scene.fleets[1]
        own = await asyncio.to_thread(
            certificates_of, self._settings.data / "certificates", enrolled.node_ids, scene.token_id
        )
        history.certificates_held = [*own, *applicants.held]
        history.tokens, history.certificates_listed = await applicants.listed()
        there = {one.node_id for one in history.final_sessions}
        history.connected = [node_id for node_id in enrolled.node_ids if node_id in there]
        history.connected += await applicants.connected()
        history.unclean += applicants.unclean

    async def _connected(self, scene: _ChaosScene) -> None:
        """Returns when every node has a link; that they have none for long is a breach."""
        try:
            await scene.connected(CONNECT_SECONDS)
        except TimeoutError:
            text = f"only {scene.links} nodes had a link within {CONNECT_SECONDS:g} s"
            self.history.unclean.append(text)
            self._tell(text)

    async def _break_things(self, scene: _ChaosScene, faults: Faults, background: asyncio.TaskGroup) -> None:
        """Fault after fault, each recovered from before the next, until the time is over. Each comes in the
        middle of enrolments."""
        settings, clock = self._settings, self._clock
        stage = Stage(settings.replicas, len(scene.fleets), settings.lease_seconds, settings.store)
        end = clock.now() + settings.seconds
        usual_pending = max(2 * scene.observer.pending, settings.nodes)
        for fault in schedule(settings.seed, stage):
            if self._is_enough(scene, clock.now() >= end):
                return
            self._tell(str(fault))
            opened = scene.links_opened
            await scene.applicants.rush(background)
            async with asyncio.TaskGroup() as group:
                injected = group.create_task(faults.inject(fault), name=str(fault))
                group.create_task(_contend(scene.guests), name="guests")
                if not fault.leaves_others(
                    settings.replicas, edges_know_all=settings.edges is EdgeKind.AGENT
                ):
                    # Nobody can do that work meanwhile, so the time for the recovery begins then.
                    await injected
                counts_from = clock.now()
                recovered_at = await self._recovered(counts_from, scene, usual_pending)
            # What was ended or paused is back: that must break nothing either.
            if recovered_at is not None and not await self._recovered(clock.now(), scene, usual_pending):
                recovered_at = None
            reconnects = scene.links_opened - opened
            done = FaultDone(fault.name, faults.target_of(fault), counts_from, recovered_at, reconnects)
            self.history.faults.append(done)
            so_far = f" ({self._injected(scene)} of {settings.faults})" if settings.faults else ""
            self._tell(_told(done) + so_far)
            await faults.all_up()
            await faults.mend(fault)
            await self._connected(scene)
            await asyncio.sleep(fault.calm_seconds)

    def _is_enough(self, scene: _ChaosScene, time_is_over: bool) -> bool:
        if not self._settings.faults:
            return time_is_over
        return self._injected(scene) >= self._settings.faults

    def _injected(self, scene: _ChaosScene) -> int:
        """Faults so far, hostile acts among them."""
        return len(self.history.faults) + (scene.party.played if scene.party else 0)

    async def _recovered(self, since: float, scene: _ChaosScene, usual_pending: int) -> float | None:
        """When the hub had recovered from what happened at `since`; None if it did not in time."""
        recovered_at = await scene.recovered(since, usual_pending, self._settings.recover_seconds)
        if recovered_at is None:
            self._tell(f"not recovered: {scene.vitals()}")
        return recovered_at


async def _contend(guests: FleetProcess) -> None:
    guests.come_back()
    await asyncio.sleep(GUESTS_SECONDS)
    guests.leave()


def _told(done: FaultDone) -> str:
    if done.recovered_at is None:
        return f"NOT recovered from {done.kind}"
    took = done.recovered_at - done.at
    return f"recovered from {done.kind} after {took:.1f} s, {done.reconnects} links opened anew"
