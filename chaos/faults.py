"""Carries out the faults of a schedule, and undoes them."""

import asyncio
import signal

from chaos.fleets import FleetProcess
from chaos.schedule import DATABASE, EDGES, Fault, FaultKind
from chaos.standby import DatabasePair
from demo.hub import Hub, Instance


class Faults:
    """`unclean` has a sentence for each process that died unasked, or did not end when it was told to."""

    def __init__(self, hub: Hub, fleets: list[FleetProcess], database: DatabasePair | None) -> None:
        self._hub = hub
        self._fleets = fleets
        self._database = database
        self.unclean: list[str] = []

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
        if fault.kind is FaultKind.DRAIN:
            if not await instance.stop():
                self.unclean.append(f"{instance.name} did not end by itself when it was told to")
        else:
            await child.kill()
        await asyncio.sleep(fault.hold_seconds)
        await instance.launch()

    async def mend(self) -> None:
        """Brings back what may be missing for a while: the standby after a failover."""
        if self._database is not None:
            await self._database.mend()

    async def revive(self) -> None:
        """Starts again what died unasked, which is a breach."""
        for instance in self._hub.instances:
            if not instance.child.running:
                self.unclean.append(f"{instance.name} died unasked")
                await instance.launch()
        for fleet in self._fleets:
            if not fleet.is_running:
                self.unclean.append(f"{fleet.name} died unasked")
                await fleet.stop()
                await fleet.start()
