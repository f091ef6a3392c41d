"""Lifecycle events that no subscriber has seen: how many may wait, which is given up at a bound. No I/O.

With nobody to ask for them they would pile up. Where all together are too many, the module with the most
gives one up, and of it the node with the most: a module that nobody takes from, or a node that comes and
goes all the time, costs the others nothing.
"""

from collections import OrderedDict

from services.dispatcher.upstream.parcel import Parcel

_Waiting = OrderedDict[int, Parcel]
"""Oldest first, by their number."""


class _ModuleEvents:
    """Those of one module, by node."""

    __slots__ = ("count", "lanes", "nodes_with")

    def __init__(self) -> None:
        self.count = 0
        self.lanes: dict[str, _Waiting] = {}
        # How many -> nodes that have so many, those first that have had so for longest.
        self.nodes_with: dict[int, OrderedDict[str, None]] = {}

    def changed(self, node_id: str, before: int, after: int) -> None:
        """A node has more or fewer."""
        self.count += after - before
        if before:
            nodes = self.nodes_with[before]
            del nodes[node_id]
            if not nodes:
                del self.nodes_with[before]
        if after:
            self.nodes_with.setdefault(after, OrderedDict())[node_id] = None
        else:
            del self.lanes[node_id]


class EventRoom:
    """`max_per_lane` of a node for one module, `max_total` in all."""

    def __init__(self, max_per_lane: int, max_total: int) -> None:
        self._max_per_lane = max_per_lane
        self._max_total = max_total
        self._count = 0
        self._modules: dict[str, _ModuleEvents] = {}

    def __len__(self) -> int:
        return self._count

    def add(self, parcel: Parcel) -> None:
        """One waits."""
        module = self._modules.get(parcel.module)
        if module is None:
            module = self._modules[parcel.module] = _ModuleEvents()
        lane = module.lanes.setdefault(parcel.node_id, OrderedDict())
        lane[parcel.number] = parcel
        module.changed(parcel.node_id, len(lane) - 1, len(lane))
        self._count += 1

    def remove(self, parcel: Parcel) -> None:
        """It does not any more; no error if it did not."""
        module = self._modules.get(parcel.module)
        lane = module.lanes.get(parcel.node_id) if module else None
        if module is None or lane is None or lane.pop(parcel.number, None) is None:
            return
        module.changed(parcel.node_id, len(lane) + 1, len(lane))
        self._count -= 1
        if not module.count:
            del self._modules[parcel.module]

    def excess(self, newcomer: Parcel) -> tuple[str, Parcel] | None:
        """Which bound is passed, and the event that is given up for it; None if all fit."""
        lane = self._modules[newcomer.module].lanes[newcomer.node_id]
        if len(lane) > self._max_per_lane:
            return "node_events", _oldest(lane)
        if self._count > self._max_total:
            module = max(self._modules.values(), key=lambda one: one.count)
            node_id = next(iter(module.nodes_with[max(module.nodes_with)]))
            return "total_events", _oldest(module.lanes[node_id])
        return None


def _oldest(lane: _Waiting) -> Parcel:
    # An adopted event may come after those of later sessions.
    return min(lane.values(), key=lambda parcel: (parcel.epoch, parcel.number))
