"""The other dispatchers: they come and go with what sessions says of leases."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from cloudhub.v1.dispatcher_pb2 import NodeOutcome, Outcome
from cloudhub.v1.peer_pb2 import DirectMessage
from cloudhub.v1.resources_pb2 import DispatcherResources
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.dispatcher.peers.arrivals import Arrivals
from services.dispatcher.peers.locations import Locations
from services.dispatcher.peers.metrics import PeerMetrics
from services.dispatcher.peers.peer import NoPublishes, Peer, Publishes
from services.dispatcher.upstream.relays import Relays
from services.runtime.clock import Clock
from services.runtime.errors import StartupError, Unavailable
from services.runtime.logs import get_log
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

_log = get_log(__name__)

# Just after a start; a peer that does not come within so long is as good as away.
ARRIVAL_SECONDS = 3.0


class Peers:
    """A `Peer` per other dispatcher with a lease. `run` must be awaited by the owner."""

    def __init__(
        self,
        own: DispatcherPeer,
        relays: Relays,
        metrics: PeerMetrics,
        clock: Clock,
        arrived: Callable[[], None] = lambda: None,
        security: Security = PLAINTEXT_LOOPBACK,
    ) -> None:
        self.own = own
        self._arrivals = Arrivals(own.dispatcher_id, arrived, ARRIVAL_SECONDS)
        self.locations = Locations()
        # Set by the composition root before a peer comes: the two know each other.
        self.publishes: Publishes = NoPublishes()
        # The last list of all dispatchers with a lease, and when it came on the monotonic clock.
        self.listed: frozenset[str] = frozenset()
        self.listed_at = -math.inf
        self._clock = clock
        self._security = security
        self._relays = relays
        self._metrics = metrics
        self._peers: dict[str, Peer] = {}
        self._gone: list[Peer] = []
        # Those that `security` does not let it dial.
        self.refused: dict[str, DispatcherPeer] = {}
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return len(self._peers)

    def __iter__(self) -> Iterator[Peer]:
        return iter(list(self._peers.values()))

    def get(self, dispatcher_id: str) -> Peer | None:
        """None if no such dispatcher has a lease, as far as is known."""
        return self._peers.get(dispatcher_id)

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.peers += len(self._peers)
        held.hints += sum(peer.hints_waiting for peer in self._peers.values())
        held.locations += len(self.locations)

    # -- who is there ------------------------------------------------------------------------------

    def seen(self, dispatchers: Sequence[DispatcherPeer]) -> None:
        """The list of a lease renewal: all dispatchers with a lease, this one included. An empty one
        comes from a registry that tells nobody's."""
        listed = {one.dispatcher_id: one for one in dispatchers if one.address}
        if not dispatchers:
            return
        self.listed = frozenset(one.dispatcher_id for one in dispatchers)
        self.listed_at = self._clock.monotonic()
        self._arrivals.listed(self.listed)
        for dispatcher_id in self._peers.keys() - listed.keys():
            self._gone.append(self._peers.pop(dispatcher_id))
        self.refused = {key: one for key, one in self.refused.items() if key in listed}
        for one in listed.values():
            self._add(one)
        self._metrics.known.set(len(self._peers))
        self._changed.set()

    def introduced(self, dispatcher: DispatcherPeer) -> None:
        """It called here, and its relay is served: it may have a lease that the last list did not show."""
        self._arrivals.attached(dispatcher.dispatcher_id)
        if dispatcher.dispatcher_id and dispatcher.address:
            self._add(dispatcher)
            self._metrics.known.set(len(self._peers))
            self._changed.set()

    def _add(self, who: DispatcherPeer) -> None:
        known = who.dispatcher_id == self.own.dispatcher_id or who.dispatcher_id in self._peers
        if not known and self._may_dial(who):
            self._peers[who.dispatcher_id] = Peer(
                who,
                self.own,
                self._relays,
                self._metrics,
                self.locations.forget,
                self.publishes,
                self._security,
            )

    def _may_dial(self, who: DispatcherPeer) -> bool:
        """Told once: the list comes again and again."""
        try:
            self._security.check_address("the address of another dispatcher,", who.address)
        except StartupError as error:
            if who.dispatcher_id not in self.refused:
                self.refused[who.dispatcher_id] = who
                _log.error("peer.refused", peer=who.dispatcher_id, address=who.address, error=str(error))
            return False
        return True

    async def run(self) -> None:
        """Keeps a running task per peer until cancelled."""
        tasks: dict[Peer, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as group:
            group.create_task(self._arrivals.run(), name="arrivals")
            while True:
                await self._changed.wait()
                self._changed.clear()
                gone, self._gone = self._gone, []
                for peer in gone:
                    task = tasks.pop(peer, None)
                    if task is not None:
                        task.cancel()
                        peer.gone()
                        _log.info("peer.gone", peer=peer.who.dispatcher_id, address=peer.who.address)
                for peer in self._peers.values():
                    if peer not in tasks:
                        tasks[peer] = group.create_task(peer.run(), name=f"peer {peer.who.dispatcher_id}")

    # -- what publishing asks ----------------------------------------------------------------------

    async def send_direct(
        self, dispatcher_id: str, messages: Sequence[DirectMessage]
    ) -> Sequence[NodeOutcome]:
        """One outcome per message, in order. Raises Unavailable if that dispatcher cannot be reached."""
        peer = self._peers.get(dispatcher_id)
        try:
            if peer is None:
                raise Unavailable(
                    "PEER_UNAVAILABLE", f"the node's dispatcher {dispatcher_id} is not known to be there"
                )
            outcomes = await peer.direct(messages)
        except Unavailable:
            self._metrics.forwarded.labels("unavailable").inc(len(messages))
            raise
        for outcome, count in Counter(one.outcome for one in outcomes).items():
            name = Outcome.Name(outcome).removeprefix("OUTCOME_").lower()
            self._metrics.forwarded.labels(name).inc(count)
        return outcomes
