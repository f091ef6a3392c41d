"""Everything that takes part in a run, and one look at all of it."""

from dataclasses import dataclass
from itertools import chain

from chaos.fleets import FleetProcess
from chaos.observer import Observer
from chaos.publisher import Publisher
from chaos.recovery import Vitals
from demo.hub import Hub


@dataclass(frozen=True, slots=True)
class Scene:
    """Made when the hub runs; whoever makes it starts and stops the rest."""

    hub: Hub
    fleets: list[FleetProcess]
    guests: FleetProcess
    publishers: list[Publisher]
    observer: Observer

    @property
    def links(self) -> int:
        """Links that the nodes say they have, guests aside."""
        return sum(fleet.report.links for fleet in self.fleets)

    @property
    def links_opened(self) -> int:
        """Since the run began, guests aside."""
        return sum(fleet.links_opened for fleet in self.fleets)

    def vitals(self, now: float) -> Vitals:
        """How the hub does."""
        return Vitals(
            at=now,
            links=self.links,
            sessions=self.observer.active_sessions,
            accepted=sum(publisher.accepted for publisher in self.publishers),
            stored=tuple(chain.from_iterable(fleet.stored for fleet in self.fleets)),
            pending=self.observer.pending,
        )
