"""Everything that takes part in a run, and one look at all of it."""

import asyncio
from dataclasses import dataclass
from itertools import chain

from chaos.clock import RunClock
from chaos.fleets import FleetProcess
from chaos.observer import Observer
from chaos.publisher import Publisher
from chaos.recovery import Recovery, Vitals
from demo.hub import Hub

LOOK_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Scene:
    """Made when the hub runs; whoever makes it starts and stops the rest."""

    hub: Hub
    fleets: list[FleetProcess]
    publishers: list[Publisher]
    observer: Observer
    clock: RunClock

    @property
    def nodes(self) -> int:
        """Of all fleets."""
        return sum(len(fleet.node_ids) for fleet in self.fleets)

    @property
    def links(self) -> int:
        """Links that the nodes say they have."""
        return sum(fleet.report.links for fleet in self.fleets)

    @property
    def links_opened(self) -> int:
        """Since the run began."""
        return sum(fleet.links_opened for fleet in self.fleets)

    def vitals(self) -> Vitals:
        """How the hub does now."""
        return Vitals(
            at=self.clock.now(),
            links=self.links,
            sessions=self.observer.active_sessions,
            accepted=sum(publisher.accepted for publisher in self.publishers),
            stored=tuple(chain.from_iterable(fleet.stored for fleet in self.fleets)),
            pending=self.observer.pending,
        )

    async def connected(self, seconds: float) -> None:
        """Returns when every node has a link. Raises TimeoutError."""
        async with asyncio.timeout(seconds):
            while self.links < self.nodes:  # noqa: ASYNC110 - told by nobody
                await asyncio.sleep(LOOK_SECONDS)

    async def recovered(self, since: float, usual_pending: int, seconds: float) -> float | None:
        """When the hub had recovered from what happened at `since`; None if it did not within so long."""
        recovery = Recovery(since, usual_pending)
        while (vitals := self.vitals()).at < since + seconds:
            recovered_at = recovery.look(vitals)
            if recovered_at is not None:
                return recovered_at
            await asyncio.sleep(LOOK_SECONDS)
        return None
