"""Who may be connected to a port that many may dial and nobody needs for long. Pure."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


class Crowd(Generic[Item]):
    """At most `max_connections`, by their networks (`rate_limit.network_of`). A newcomer always gets in:
    where there is no room, the oldest connection of the network with the most goes, his own network's if none
    has more than he would have. So whoever opens many cuts his own."""

    def __init__(self, max_connections: int) -> None:
        self._max = max_connections
        self._of: dict[str, OrderedDict[Item, None]] = {}
        self._network: dict[Item, str] = {}

    def __len__(self) -> int:
        return len(self._network)

    def admit(self, item: Item, network: str) -> Item | None:
        """Who has to be cut for it, forgotten already; None if there was room."""
        gone = None
        if len(self._network) >= self._max:
            largest = max(self._of, key=lambda one: len(self._of[one]))
            own = self._of.get(network)
            whose = self._of[largest] if own is None or len(self._of[largest]) > len(own) + 1 else own
            gone = next(iter(whose))
            self.leave(gone)
        self._network[item] = network
        self._of.setdefault(network, OrderedDict())[item] = None
        return gone

    def all(self) -> tuple[Item, ...]:
        """Those that are connected."""
        return tuple(self._network)

    def leave(self, item: Item) -> None:
        """It is gone; harmless for what is not known."""
        network = self._network.pop(item, None)
        if network is not None:
            del self._of[network][item]
            if not self._of[network]:
                del self._of[network]
