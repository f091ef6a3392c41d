"""Carries out the faults of a schedule, and undoes them."""

import asyncio
import signal
from collections.abc import Sequence
from contextlib import ExitStack

import grpc

from chaos.fleets import FleetProcess
from chaos.observer import live_sessions
from chaos.publisher import Publisher
from chaos.schedule import DATABASE, EDGES, Fault, FaultKind
from chaos.standby import DatabaseServers
from chaos.wires import DispatcherWires
from demo.hub import Hub, Instance
from demo.processes import ProcessFault

MOST_STARTS = 5
MOST_OVERTAKES = 3
CUT_SECONDS = 0.6
"""Until a fleet has obeyed and says so."""
FILL_SECONDS = 1.1
"""Until each node has several messages in flight, so many of them for so long that they are due after a pause
of less than a lease."""
QUIET_SECONDS = 0.2
"""Until a dispatcher that hears nothing has written what it heard before."""
DEAF_SECONDS = 0.6
"""Until a dispatcher that woke has done what was due."""


class Faults:
    """`unclean` has a sentence for each process that died unasked, or did not end when it was told to.

    `overtakes` counts, by whether links moved in time. A busy machine misses one now and then; a run that
    missed all of them tried nothing.
    """

    def __init__(
        self,
        hub: Hub,
        fleets: list[FleetProcess],
        publishers: list[Publisher],
        wires: Sequence[DispatcherWires],
        database: DatabaseServers | None,
    ) -> None:
        self._hub = hub
        self._fleets = fleets
        self._publishers = publishers
        self._wires = wires
        self._database = database
        self._starting: set[Instance] = set()
        self.unclean: list[str] = []
        self.overtakes = {True: 0, False: 0}

    def target_of(self, fault: Fault) -> str:
        """The name of what it hits."""
        if fault.target == DATABASE:
            return DATABASE
        if fault.target == EDGES:
            return self._fleets[fault.replica].name
        return self._hub.of(fault.target)[fault.replica].name

    async def inject(self, fault: Fault) -> None:
        """Does it, holds it, undoes it: what was ended is started again, and not waited for."""
        if fault.target == DATABASE:
            assert self._database is not None, "there is no database server"
            if fault.kind is FaultKind.RESTART:
                await self._database.restart(fault.hold_seconds)
            elif fault.kind is FaultKind.SWITCHOVER:
                await self._database.switch_over()
            else:
                await self._database.fail_over()
        elif fault.target == EDGES:
            fleet = self._fleets[fault.replica]
            if fault.kind is FaultKind.CUT:
                fleet.cut()
            else:
                await fleet.kill()
                await asyncio.sleep(fault.hold_seconds)
                await fleet.start()
        else:
            await self._inject_into(self._hub.of(fault.target)[fault.replica], fault)

    async def _inject_into(self, instance: Instance, fault: Fault) -> None:
        child = instance.child
        if fault.kind in (FaultKind.PAUSE, FaultKind.LONG_PAUSE):
            child.signal(signal.SIGSTOP)
            try:
                await asyncio.sleep(fault.hold_seconds)
            finally:
                child.signal(signal.SIGCONT)
            return
        if fault.kind is FaultKind.OVERTAKE:
            for _ in range(MOST_OVERTAKES):
                has_moved = await self._overtake(fault.replica, fault.hold_seconds)
                self.overtakes[has_moved] += 1
                if has_moved:
                    return
            return
        if fault.kind is FaultKind.DRAIN:
            if not await instance.stop():
                self.unclean.append(f"{instance.name} did not end by itself when it was told to")
        else:
            await child.kill()
        await asyncio.sleep(fault.hold_seconds)
        self._starting.add(instance)
        await instance.launch()

    async def _overtake(self, replica: int, hold_seconds: float) -> bool:
        """Freezes a dispatcher, has some of its links move to another one that has just come, and has it
        wake with whole streams and without a word of that: what it sent before is due to be sent again (the
        edges of one fleet are frozen too), and answers are to be stored. Nothing keeps that from counting
        but the comparison of epochs. Whether links of the frozen edges moved in time."""
        silent, *_ = self._fleets
        following = (replica + 1) % len(self._hub.dispatchers)
        owner, newcomer = self._hub.dispatchers[replica], self._hub.dispatchers[following]
        own_wires, new_wires = self._wires[replica], self._wires[following]
        await newcomer.child.kill()
        self._starting.add(newcomer)
        with ExitStack() as undo:
            door = new_wires.from_connectors
            door.hold()
            undo.callback(door.release)
            await newcomer.launch()
            # Both connectors are at the door: once it opens, links move within milliseconds.
            await door.until_kept(len(self._hub.connectors))
            await newcomer.serving()
            for publisher in self._publishers:
                publisher.avoid(owner.address)
                undo.callback(publisher.avoid, "")
            silent.pause()
            undo.callback(silent.go_on)
            await asyncio.sleep(FILL_SECONDS)
            own_wires.hold()
            undo.callback(own_wires.release)
            # Frozen within a transaction it would keep the rows that the newcomer has to claim.
            await asyncio.sleep(QUIET_SECONDS)
            owner.child.signal(signal.SIGSTOP)
            undo.callback(owner.child.signal, signal.SIGCONT)
            door.release()
            await asyncio.sleep(hold_seconds)
            moved = await self._sessions_at(newcomer, silent)
            owner.child.signal(signal.SIGCONT)
            await asyncio.sleep(DEAF_SECONDS)
        await self._up(newcomer)
        self._starting.discard(newcomer)
        return moved > 0

    async def _sessions_at(self, dispatcher: Instance, fleet: FleetProcess) -> int:
        """How many nodes of a fleet have their session at a dispatcher, as the registry says."""
        async with self._hub.sessions[0].open_channel() as channel:
            try:
                sessions = await live_sessions(channel)
            except grpc.aio.AioRpcError:
                return 0
        return sum(
            one.node_id in fleet.node_ids and one.dispatcher_id.startswith(f"{dispatcher.name}-")
            for one in sessions
        )

    async def mend(self, fault: Fault) -> None:
        """Brings back what a fault left missing or lopsided, so that the next one finds it whole."""
        if self._database is not None:
            await self._database.mend()
        if fault.target == "connector":
            # The edges went to the other connectors: they choose anew.
            for fleet in self._fleets:
                fleet.cut()
            await asyncio.sleep(CUT_SECONDS)

    async def all_up(self) -> None:
        """Returns when every process is up. One that died after it had served once is a breach; one that
        could not start, as without its database, is started again, as whatever runs a hub does."""
        for fleet in self._fleets:
            if not fleet.is_running:
                self.unclean.append(f"{fleet.name} died unasked")
                await fleet.stop()
                await fleet.start()
        for instance in self._hub.instances:
            if not instance.child.running and instance not in self._starting:
                self.unclean.append(f"{instance.name} died unasked")
                self._starting.add(instance)
        for instance in tuple(self._starting):
            await self._up(instance)
            self._starting.discard(instance)

    async def _up(self, instance: Instance) -> None:
        for _ in range(MOST_STARTS):
            if not instance.child.running:
                await instance.launch()
            try:
                return await instance.serving()
            except ProcessFault:
                continue
        raise ProcessFault(f"{instance.name} did not start, {MOST_STARTS} times over")
