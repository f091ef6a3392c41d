"""Group commit: everything received while the last transaction ran goes into the next one.

The store is blocking and works in one thread; the event loop only hands it batches. What waits
for durability is told afterwards, in the order of arrival: stored before acknowledged.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

import structlog

from edge.outbox import SetAside, Upload
from edge.store import Batch, Change, StoreFault

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

# A transaction no longer than this keeps acknowledgements prompt; links bound what can wait.
MOST_CHANGES_PER_BATCH = 1024


class Commits(Protocol):
    """What the writer needs of a store."""

    def commit(self, batch: Batch) -> None:
        """Blocks until the batch is durable. Raises StoreFault; then nothing was written."""


class Writer:
    """Feeds a store. `run` must be awaited by the owner; `on_durable` and `on_failed` get each batch."""

    def __init__(
        self,
        store: Commits,
        on_durable: Callable[[Batch], None],
        on_failed: Callable[[Batch, StoreFault], None],
    ) -> None:
        self._store = store
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._batch = Batch()
        self._wake = asyncio.Event()
        self._stopping = False
        self.commits = 0

    def change(self, change: Change) -> None:
        """Queues a received message. The sender's link bounds how many."""
        self._batch.changes.append(change)
        self._wake.set()

    def upload(self, upload: Upload) -> None:
        """Queues an upload of our own."""
        self._batch.uploads.append(upload)
        self._wake.set()

    def settle(self, upload: Upload) -> None:
        """Queues the removal of a confirmed upload."""
        self._batch.settled.append(upload)
        self._wake.set()

    def set_aside(self, refused: SetAside) -> None:
        """Queues that an upload is kept apart."""
        self._batch.set_aside.append(refused)
        self._wake.set()

    def stop(self) -> None:
        """Lets `run` end when everything queued is written."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Writes until stopped. A running transaction is always awaited."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "edge-store") as thread:
            while self._batch or not self._stopping:
                await self._wake.wait()
                self._wake.clear()
                while self._batch:
                    batch = self._take()
                    try:
                        await loop.run_in_executor(thread, self._store.commit, batch)
                    except StoreFault as fault:
                        self._on_failed(batch, fault)
                        continue
                    self.commits += 1
                    self._on_durable(batch)

    def _take(self) -> Batch:
        batch, self._batch = self._batch, Batch()
        if len(batch.changes) > MOST_CHANGES_PER_BATCH:
            self._batch.changes = batch.changes[MOST_CHANGES_PER_BATCH:]
            del batch.changes[MOST_CHANGES_PER_BATCH:]
            # Kept with the rest, so that nothing overtakes what was queued before it.
            self._batch.settled, batch.settled = batch.settled, []
            self._batch.set_aside, batch.set_aside = batch.set_aside, []
        return batch
