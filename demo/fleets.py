"""The fleets of a demo as one, whichever process a node is in."""

from collections import Counter
from collections.abc import Collection, Sequence
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

    def take_latencies(self) -> tuple[Counter[int], Counter[int]]:
        """From publish to acknowledgement, since this was last asked for: of messages whose network was
        whole, and of those that a cut held up."""
        whole: Counter[int] = Counter()
        cut: Counter[int] = Counter()
        for fleet in self.all:
            whole.update(fleet.latencies.take())
            cut.update(fleet.latencies_of_cut.take())
        return whole - cut, cut

    def acknowledged(self, versions: Collection[int]) -> int:
        """How many messages of these versions their nodes have acknowledged."""
        return sum(
            count for fleet in self.all for version, count in fleet.by_version.items() if version in versions
        )

    async def connected(self, seconds: float, without: Collection[str] = ()) -> float:
        """Waits until every node has a link, but for those that cannot; the longest time from a fleet's first
        dial. Raises FleetFault."""
        return max(
            [await fleet.connected(seconds, len(set(fleet.node_ids) & set(without))) for fleet in self.all]
        )

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
