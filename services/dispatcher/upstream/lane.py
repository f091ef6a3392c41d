"""The queue of one node's messages for one module. No I/O."""

from collections import OrderedDict
from collections.abc import Iterable

from services.dispatcher.upstream.parcel import Parcel

Turns = OrderedDict["Lane", None]
"""Lanes that have something to hand out, in the order of their tickets."""


class Lane:
    """Parcels in the order of arrival, and who holds earlier ones.

    While a subscriber holds parcels of the lane it is the lane's `owner` (0: nobody) and the only one
    to get more: `handed` many in a row so far, and none any more while the lane is `draining`. `turns` is
    where the lane stands in line, with `ticket` as its place. `relayed` counts the waiting parcels that
    other dispatchers keep. `returned` are held ones, by their delivery ids, that the owner does not want:
    they are put back when it has settled the others.
    """

    __slots__ = (
        "_last",
        "_waiting",
        "draining",
        "handed",
        "held",
        "module",
        "node_id",
        "owner",
        "relayed",
        "returned",
        "ticket",
        "turns",
    )

    def __init__(self, module: str, node_id: str) -> None:
        self.module = module
        self.node_id = node_id
        self.draining = False
        self.handed = 0
        self.held = 0
        self.owner = 0
        self.relayed = 0
        self.returned: dict[int, Parcel] = {}
        self.ticket = 0
        self.turns: Turns | None = None
        self._waiting: OrderedDict[int, Parcel] = OrderedDict()
        self._last: dict[str, Parcel] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def is_promised(self) -> bool:
        """Whether it has an owner that holds nothing of it yet."""
        return bool(self.owner) and not self.held

    def mergeable(self, newcomer: Parcel) -> Parcel | None:
        """The waiting report that `newcomer` may replace: the last of its resource, of the same session."""
        if not newcomer.merge_key:
            return None
        last = self._last.get(newcomer.resource)
        if last is None or not last.merge_key or last.epoch != newcomer.epoch:
            return None
        return last

    def append(self, parcel: Parcel) -> None:
        """At the end."""
        self._waiting[parcel.number] = parcel
        self._last[parcel.resource] = parcel

    def insert_by_epoch(self, parcel: Parcel) -> None:
        """Before everything of later sessions."""
        last = next(reversed(self._waiting.values()), None)
        self._waiting[parcel.number] = parcel
        if last is None or last.epoch <= parcel.epoch:
            return  # by far the most frequent case
        later = [number for number, other in self._waiting.items() if other.epoch > parcel.epoch]
        for number in later:
            self._waiting.move_to_end(number)

    def put_back(self, parcel: Parcel) -> None:
        """At the front. A parcel that a subscriber has seen is not merged any more."""
        self._waiting[parcel.number] = parcel
        self._waiting.move_to_end(parcel.number, last=False)

    def waiting(self) -> Iterable[Parcel]:
        """Those that wait, in order."""
        return self._waiting.values()

    def first(self) -> Parcel:
        """The one that `pop` takes."""
        return next(iter(self._waiting.values()))

    def pop(self) -> Parcel:
        """The first one."""
        _, parcel = self._waiting.popitem(last=False)
        self._forget(parcel)
        return parcel

    def remove(self, parcel: Parcel) -> None:
        """One from anywhere."""
        del self._waiting[parcel.number]
        self._forget(parcel)

    def _forget(self, parcel: Parcel) -> None:
        if self._last.get(parcel.resource) is parcel:
            del self._last[parcel.resource]
