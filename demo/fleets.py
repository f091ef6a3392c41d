"""The fleets of a demo as one, whichever process a node is in."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.fleet import Fleet
from demo.fleet_worker import Report


@dataclass(frozen=True, slots=True)
class Disk:
    """What the nodes of one fleet store, for `demo.checker`."""

    database: Path
    node_ids: frozenset[str]


class Fleets:
    """Each of `fleets` beside the database of its nodes."""

    def __init__(self, fleets: Sequence[tuple[Fleet, Path]]) -> None:
        self.all = tuple(fleet for fleet, _ in fleets)
        self.disks = tuple(Disk(database, frozenset(fleet.node_ids)) for fleet, database in fleets)
        self.node_ids = [node_id for fleet in self.all for node_id in fleet.node_ids]
        self._fleet_of = {node_id: fleet for fleet in self.all for node_id in fleet.node_ids}

    @property
    def report(self) -> Report:
        """Sums of the last reports."""
        reports = [fleet.report for fleet in self.all]
        return Report(
            links=sum(one.links for one in reports),
            acknowledged=sum(one.acknowledged for one in reports),
            repeated=sum(one.repeated for one in reports),
            links_opened=sum(one.links_opened for one in reports),
            uploads_confirmed=sum(one.uploads_confirmed for one in reports),
            latencies={},
        )

    def take_latencies(self) -> list[dict[int, int]]:
        """From publish to acknowledgement, since this was last asked for."""
        return [fleet.latencies.take() for fleet in self.all]

    async def connected(self, seconds: float) -> float:
        """Waits until every node has a link; the longest time from a fleet's first dial.

        Raises FleetFault.
        """
        return max([await fleet.connected(seconds) for fleet in self.all])

    def cut(self, node_id: str) -> None:
        """Drops a node's link as a broken network would."""
        self._fleet_of[node_id].cut(node_id)

    def block(self, node_id: str, seconds: float) -> None:
        """Black-holes a node for so long."""
        self._fleet_of[node_id].block(node_id, seconds)

    def heal(self) -> None:
        """Ends all black holes."""
        for fleet in self.all:
            fleet.heal()
