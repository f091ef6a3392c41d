"""Loads stored uploads that memory had no room for, as subscribers settle what is there."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.parcel import Parcel, upload_parcel
from services.dispatcher.upstream.upload_store import UploadStore
from services.dispatcher.upstream.upload_window import Load, SettledIds, UploadWindow
from services.dispatcher.upstream.uploads import LoadedUploads, TakenOver, epoch_and_n
from services.runtime.backoff import Backoff
from services.runtime.errors import StoreUnavailable
from services.runtime.logs import get_log

RETRY = Backoff(first_seconds=0.05, most_seconds=1.0)

T = TypeVar("T")

log = get_log(__name__)


async def until_done(
    work: Callable[[], Awaitable[T]], metrics: UpstreamMetrics, failed: Callable[[], None] = lambda: None
) -> T:
    """What `work` gives, tried until the store answers; `failed` is called whenever it does not."""
    attempt = 0
    while True:
        try:
            return await work()
        except StoreUnavailable:
            attempt += 1
            metrics.store_failures.inc()
            failed()
            await asyncio.sleep(RETRY.random_delay(attempt))


class UploadLoader:
    """Brings into the `window` what it wants. `settled_before` gets uploads that are on disk still though a
    subscriber is done with them."""

    def __init__(
        self,
        store: UploadStore,
        window: UploadWindow,
        settled: SettledIds,
        metrics: UpstreamMetrics,
        *,
        queue: Callable[[Iterable[Parcel]], None],
        settled_before: Callable[[Parcel], None],
    ) -> None:
        self._store = store
        self._window = window
        self._settled = settled
        self._metrics = metrics
        self._queue = queue
        self._settled_before = settled_before
        self._inherited: dict[str, int] = {}  # node -> place: up to there somebody else may have handed on
        self._to_load = asyncio.Event()

    def wake(self) -> None:
        """There may be room, or something on disk."""
        self._to_load.set()

    def taken_over(self, taken: Sequence[TakenOver]) -> None:
        """These rows are this dispatcher's now."""
        for one in taken:
            self._inherited[one.node_id] = max(one.last, self._inherited.get(one.node_id, 0))
            self._window.found(one.node_id, one.first, one.last)
        if taken:
            rows = sum(one.rows for one in taken)
            self._metrics.uploads_inherited.inc(rows)
            log.info("uploads.inherited", nodes=len(taken), rows=rows)
            self._to_load.set()

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            await self._to_load.wait()
            self._to_load.clear()
            while loads := self._window.wanted():
                # That reads fail stops no link: what they would bring is on disk already.
                chosen = loads
                loaded = await until_done(
                    lambda: self._store.load(chosen),  # noqa: B023  # awaited at once
                    self._metrics,
                )
                for load, found in zip(loads, loaded, strict=True):
                    self._take(load, found)

    def _take(self, load: Load, found: LoadedUploads) -> None:
        parcels = []
        inherited = self._inherited.get(load.node_id, 0)
        for row in found.rows:
            parcel = upload_parcel(row.node_id, row.epoch, row.place, row.size_bytes, row.message)
            if (row.node_id, row.message.id) in self._settled:
                self._settled_before(parcel)  # its deletion is under way, or it is a repeat stored elsewhere
                continue
            # An earlier process or another dispatcher may have handed it on.
            parcel.redelivered = row.place <= inherited
            parcels.append(parcel)
        for place in found.unreadable:
            self._metrics.uploads_unreadable.inc()
            log.error("uploads.unreadable", node_id=load.node_id, n=epoch_and_n(place)[1])
        reached = found.reached
        if found.is_all:
            reached = max(reached, load.through)
        self._queue(self._window.loaded(load, parcels, reached))
        if self._inherited.get(load.node_id, 0) <= reached:
            self._inherited.pop(load.node_id, None)
