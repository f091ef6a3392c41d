"""Takes over the stored uploads of dispatchers that are gone."""

import asyncio
import random

from services.dispatcher.peers.directory import Peers
from services.dispatcher.peers.gone_holders import GoneHolders
from services.dispatcher.upstream.upload_keeper import UploadKeeper
from services.runtime.clock import Clock
from services.runtime.errors import StoreUnavailable
from services.runtime.logs import get_log

_log = get_log(__name__)


class Inheritance:
    """Looks at the holders of uploads a few times per lease. `run` must be awaited by the owner."""

    def __init__(self, uploads: UploadKeeper, peers: Peers, clock: Clock, lease_seconds: float) -> None:
        self._uploads = uploads
        self._peers = peers
        self._clock = clock
        self._interval_seconds = lease_seconds / 3
        self._gone = GoneHolders(lease_seconds)

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            # Spread, so that of several dispatchers one is there first.
            await asyncio.sleep(self._interval_seconds * (0.5 + random.random()))
            try:
                await self.once()
            except StoreUnavailable as error:
                _log.debug("inheritance.store_unavailable", error=str(error))

    async def once(self) -> None:
        """One look. Raises StoreUnavailable."""
        holders = await self._uploads.other_holders()
        peers = self._peers
        for holder in self._gone.observe(holders, peers.listed, peers.listed_at, self._clock.monotonic()):
            rows = await self._uploads.inherit(holder)
            if rows:
                _log.info("peer.inherited", peer=holder or "released", uploads=rows)
