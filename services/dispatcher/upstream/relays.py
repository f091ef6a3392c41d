"""What other dispatchers hand to the subscribers of this one (PeerService.Relay, the caller's side)."""

import asyncio
from collections.abc import Callable, Iterable

from cloudhub.v1.peer_pb2 import RelayRequest, RelayResponse
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.node_queues import NodeQueues
from services.dispatcher.upstream.parcel import Kind, Parcel

# Deliveries that one other dispatcher may have out here. Never above what the subscribers here may hold
# together: more would wait here, while a subscriber elsewhere might take it.
MOST_CREDIT = 1024


class RelayEnd:
    """One stream from another dispatcher: what is to be said on it. `wake` is set when there is something.

    Deliveries of a module that was given back may be overtaken by later ones that were on their way. So
    those are given back as well, until the other dispatcher has heard the subscription of `until`.
    """

    __slots__ = ("acknowledged", "changed", "number", "returned", "subscription", "until", "wake")

    def __init__(self, number: int) -> None:
        self.number = number
        self.acknowledged: list[int] = []
        self.returned: list[int] = []
        self.subscription = 0  # number of the last one said
        self.changed = True  # it is out of date
        self.until: dict[str, int] = {}  # module -> number
        self.wake = asyncio.Event()

    def give_back(self, module: str, delivery_id: int) -> None:
        """Nobody here wants it: said together with a new subscription."""
        self.returned.append(delivery_id)
        self.until[module] = self.subscription + 1
        self.changed = True
        self.wake.set()

    def say(self, wanted: Callable[[], tuple[list[str], int]]) -> RelayRequest:
        """All there is to say, once."""
        request = RelayRequest(acknowledged=self.acknowledged, returned=self.returned)
        if self.changed:
            self.changed = False
            self.subscription += 1
            modules, credit = wanted()
            request.subscription.number = self.subscription
            request.subscription.modules.extend(modules)
            request.subscription.max_unacknowledged = credit
        self.acknowledged.clear()
        self.returned.clear()
        return request


class Relays:
    """Parcels that other dispatchers keep until a subscriber here has settled them."""

    def __init__(
        self, queues: NodeQueues, queue: Callable[[Iterable[Parcel]], None], metrics: UpstreamMetrics
    ) -> None:
        self._queues = queues
        self._queue = queue
        self._metrics = metrics
        self._ends: dict[int, RelayEnd] = {}

    def open(self) -> RelayEnd:
        """A stream begins."""
        end = RelayEnd(self._queues.open_relay())
        self._ends[end.number] = end
        return end

    def close(self, end: RelayEnd) -> None:
        """It is over: the other dispatcher hands on anew what was not acknowledged."""
        del self._ends[end.number]
        self._queues.close_relay(end.number)

    def wanted(self) -> tuple[list[str], int]:
        """The modules that subscribers here want, and how many deliveries of a stream may be out."""
        return self._queues.served_here(), min(MOST_CREDIT, self._queues.credit_here())

    def subscribers_changed(self) -> None:
        """Tells every stream what is wanted now; gives back what nobody here wants any more."""
        for parcel in self._queues.withdraw_unserved():
            self._ends[parcel.relay].give_back(parcel.module, parcel.place)
        for end in self._ends.values():
            end.changed = True
            end.wake.set()

    def received(self, end: RelayEnd, response: RelayResponse) -> None:
        """Messages of nodes at the other dispatcher."""
        if end.until:
            end.until = {name: until for name, until in end.until.items() if until > response.subscription}
        served = set(self._queues.served_here())
        parcels: list[Parcel] = []
        for one in response.deliveries:
            if one.module not in served or one.module in end.until:
                end.give_back(one.module, one.delivery_id)
                continue
            parcels.append(
                Parcel(
                    one.module,
                    one.node_id,
                    one.epoch,
                    one.message,
                    one.message.ByteSize(),
                    Kind.RELAYED,
                    place=one.delivery_id,
                    relay=end.number,
                    redelivered=one.redelivered,
                )
            )
        self._metrics.relayed_here.inc(len(parcels))
        self._queue(parcels)

    def settled(self, parcel: Parcel) -> None:
        """A subscriber here is done with it. If its stream is over, nobody is told: it comes again."""
        end = self._ends.get(parcel.relay)
        if end is not None:
            end.acknowledged.append(parcel.place)
            end.wake.set()
