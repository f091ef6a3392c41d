"""The owner's own look at the outbox: it finds whatever no hint told."""

import asyncio

from services.dispatcher.delivery import Delivery
from services.dispatcher.outbox.contract import Outbox
from services.dispatcher.peers.laggards import pages, still_behind
from services.dispatcher.peers.metrics import PeerMetrics
from services.runtime.errors import StoreUnavailable
from services.runtime.logs import get_log

_log = get_log(__name__)

SWEEP_SECONDS = 1.0
NODES_PER_PAGE = 1000


class Sweep:
    """Compares last seqs of all live nodes, about every second, where other dispatchers may write to the
    database. A node that two looks find behind is read again. `run` must be awaited by the owner."""

    def __init__(
        self,
        delivery: Delivery,
        outbox: Outbox,
        metrics: PeerMetrics,
        interval_seconds: float = SWEEP_SECONDS,
    ) -> None:
        self._delivery = delivery
        self._outbox = outbox
        self._metrics = metrics
        self._interval_seconds = interval_seconds
        self._seen: dict[str, int] = {}

    async def run(self) -> None:
        """Sweeps until cancelled."""
        failing = False
        while True:
            await asyncio.sleep(self._interval_seconds)
            try:
                await self.once()
                failing = False
            except StoreUnavailable as error:
                self._metrics.sweep_failures.inc()
                if not failing:
                    _log.warning("sweep.store_unavailable", error=str(error))
                failing = True

    async def once(self) -> int:
        """One look at every live node; how many are read again. Raises StoreUnavailable."""
        found = 0
        before, self._seen = self._seen, {}
        for page in pages(list(self._delivery.sessions), NODES_PER_PAGE):
            stored = await self._outbox.last_seqs(page)
            behind, seen = still_behind(self._delivery.last_seqs(page), stored, before)
            self._seen.update(seen)
            for node_id in behind:
                self._delivery.reread(node_id)
            found += len(behind)
        self._metrics.swept.inc(found)
        return found
