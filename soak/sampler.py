"""Asks every process of the hub what it holds, again and again."""

import asyncio
from collections.abc import Sequence

import grpc

from chaos.clock import RunClock
from chaos.resources import read_resources
from chaos.scene import Scene
from demo.hub import Instance
from demo.latency import Latencies
from soak.day import HOURS
from soak.samples import ProcessSample, Sample


class Sampler:
    """`run` must be awaited by the owner."""

    def __init__(self, scene: Scene, clock: RunClock, every_seconds: float, day_seconds: float) -> None:
        self._scene = scene
        self._clock = clock
        self._every_seconds = every_seconds
        self._day_seconds = day_seconds
        self._began: float | None = None
        self.samples: list[Sample] = []

    def begin(self) -> None:
        """The first day begins now; nothing was sampled before."""
        self._began = self._clock.now()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            if self._began is not None:
                self.samples.append(await self._sample(self._began))
            await asyncio.sleep(self._every_seconds)

    async def _sample(self, began: float) -> Sample:
        processes = await self._processes(self._scene.hub.instances)
        at, latencies = self._clock.now(), Latencies()
        for fleet in self._scene.fleets:
            latencies.add_counts(fleet.latencies.take())
        p50, p99 = latencies.quantiles_ms((0.5, 0.99))
        day, rest = divmod(at - began, self._day_seconds)
        return Sample(
            at=at,
            day=int(day),
            hour=rest / self._day_seconds * HOURS,
            links=self._scene.links,
            pending=self._scene.observer.pending,
            accepted=sum(publisher.accepted for publisher in self._scene.publishers),
            p50_ms=p50,
            p99_ms=p99,
            processes=processes,
        )

    async def _processes(self, instances: Sequence[Instance]) -> list[ProcessSample]:
        found = await asyncio.gather(*map(_asked, instances))
        return [one for one in found if one is not None]


async def _asked(instance: Instance) -> ProcessSample | None:
    """None: it did not answer, for example because it is being restarted."""
    pid = instance.child.pid
    try:
        held = await read_resources(
            *(instance.name.rpartition("-")[0], instance.address, instance.security), collect_garbage=False
        )
    except grpc.aio.AioRpcError:
        return None
    return ProcessSample(
        instance.name,
        pid,
        held.resident_bytes,
        held.memory_blocks,
        held.counts["tasks"],
        held.counts["threads"],
        held.counts["file_descriptors"],
    )
