"""Keeps uploads: stores them in group commits, hands them on, loads what memory had no room for."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from sqlalchemy import Connection, Table

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.routing import ROUTER
from services.dispatcher.upstream.upload_intake import IntakeBounds, PauseReads, Upload, UploadIntake
from services.dispatcher.upstream.upload_window import Load, SettledIds, UploadWindow, WindowBounds
from services.dispatcher.upstream.uploads import (
    LoadedUploads,
    LoadWanted,
    UploadRow,
    delete_uploads,
    load_uploads,
    store_uploads,
    stored_uploads,
)
from services.runtime.backoff import Backoff
from services.runtime.clock import Clock
from services.runtime.errors import StoreUnavailable
from services.runtime.logs import get_log
from services.runtime.store import Store

MOST_PER_COMMIT = 1024
MOST_BYTES_PER_COMMIT = 8 * 1024 * 1024
RETRY = Backoff(first_seconds=0.05, most_seconds=1.0)

T = TypeVar("T")

log = get_log(__name__)


class LinkPort(Protocol):
    """What uploads ask of a link."""

    def pause(self, node_id: str, epoch: int, paused: bool) -> None:
        """Stop or go on reading."""
        ...

    def close(self, node_id: str, epoch: int, detail: str) -> None:
        """End the link: its uploads found no room in time."""
        ...

    def reply(self, node_id: str, epoch: int, request: Message, operation: str, content: str) -> None:
        """Answer an upload that asked for it."""
        ...


class UploadKeeper:
    """The durable half of the upstream. `queue` takes parcels for subscribers, in their order.

    An upload is answered and queued after its row is on disk, never before; its row is deleted after
    a subscriber settled it.
    """

    def __init__(
        self,
        *,
        links: LinkPort,
        store: Store,
        table: Table,
        clock: Clock,
        metrics: UpstreamMetrics,
        queue: Callable[[Iterable[Parcel]], None],
        pause_seconds: float,
        most_rows: int,
        window: WindowBounds | None = None,
    ) -> None:
        self._links = links
        self._store = store
        self._table = table
        self._clock = clock
        self._metrics = metrics
        self._queue = queue
        self._most_rows = most_rows
        self._bytes_per_load = (window or WindowBounds()).bytes_per_load
        self._intake = UploadIntake(IntakeBounds(pause_seconds))
        self._window = UploadWindow(window or WindowBounds())
        self._settled = SettledIds()
        self._deletes: deque[Parcel] = deque()
        self._early_events: list[tuple[Parcel, int]] = []
        self._opened = False
        self._rows = 0
        # A row's n is `base + place`: places of this process begin at 1, those of earlier rows are below.
        self._base = 0
        self._last_place = 0
        self._to_write = asyncio.Event()
        self._to_load = asyncio.Event()
        self._pauses_changed = asyncio.Event()

    # -- what the upstream tells ---------------------------------------------------------------

    def receive(self, node_id: str, epoch: int, message: Message, size_bytes: int) -> None:
        """An upload came in; the keeper owns `message` from here on."""
        if (node_id, message.id) in self._settled:
            self._repeated(node_id, epoch, message)
            return
        refusal = self._intake.refusal(node_id, size_bytes)
        if refusal:
            self._metrics.dropped.labels(refusal).inc()
            if message.sync:
                self._links.reply(
                    node_id, epoch, message, "error", "the hub is overloaded: send it again later"
                )
            return
        self._last_place += 1
        upload = Upload(node_id, epoch, self._last_place, message, size_bytes)
        self._window.expect(node_id, upload.place)
        self._carry_out(self._intake.add(upload, self._clock.monotonic()))
        self._to_write.set()

    def event(self, parcel: Parcel) -> None:
        """A lifecycle event for the subscribers of uploads: it keeps its place among them."""
        if self._opened:
            self._queue(self._window.pass_event(parcel, self._last_place))
        else:
            self._early_events.append((parcel, self._last_place))

    def settled(self, parcels: Sequence[Parcel]) -> None:
        """Subscribers are done with these uploads."""
        now = self._clock.monotonic()
        for parcel in parcels:
            self._settled.add(parcel.node_id, parcel.message.id, now)
            self._window.settled(parcel)
            self._deletes.append(parcel)
        self._metrics.uploads_settled.inc(len(parcels))
        self._to_write.set()

    def link_ended(self, node_id: str, epoch: int) -> None:
        """The link's session is over; what it sent is stored all the same."""
        self._intake.link_ended(node_id, epoch)

    # -- at work -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._close_overdue(), name="uploads-overdue")
            await self._open()
            tasks.create_task(self._write(), name="uploads-write")
            tasks.create_task(self._load(), name="uploads-load")

    async def _open(self) -> None:
        found = await self._read(partial(stored_uploads, table=self._table), self._troubled)
        self._carry_out(self._intake.stored([]))
        self._base = max(self._clock.wall_ms() * 1000, found.last_n)
        self._rows = found.rows
        self._metrics.uploads_rows.set(self._rows)
        for node_id, last_n in found.last_by_node.items():
            self._window.found(node_id, -self._base, last_n - self._base)
        self._opened = True
        for parcel, place in self._early_events:
            self._queue(self._window.pass_event(parcel, place))
        self._early_events.clear()
        self._to_load.set()

    async def _read(self, work: Callable[[Connection], T], on_failure: Callable[[], None]) -> T:
        attempt = 0
        while True:
            try:
                return await self._store.read(work)
            except StoreUnavailable:
                attempt += 1
                self._metrics.store_failures.inc()
                on_failure()
                await asyncio.sleep(RETRY.random_delay(attempt))

    def _troubled(self) -> None:
        self._carry_out(self._intake.troubled("the store does not answer", self._clock.monotonic()))

    async def _write(self) -> None:
        attempt = 0
        while True:
            if not (self._intake or self._deletes):
                await self._to_write.wait()
            self._to_write.clear()
            try:
                await self._commit_once()
                attempt = 0
            except StoreUnavailable as error:
                attempt += 1
                self._metrics.store_failures.inc()
                if attempt == 1:
                    log.warning("uploads.store_unavailable", detail=error.detail)
                self._troubled()
                await asyncio.sleep(RETRY.random_delay(attempt))

    async def _commit_once(self) -> None:
        free = self._most_rows - self._rows
        batch = self._intake.batch(min(free, MOST_PER_COMMIT), MOST_BYTES_PER_COMMIT) if free > 0 else []
        deletes = list(islice(self._deletes, MOST_PER_COMMIT))
        if not batch and not deletes:
            self._carry_out(self._intake.troubled("the store of uploads is full", self._clock.monotonic()))
            await self._to_write.wait()
            return
        rows = [
            UploadRow(
                upload.node_id, self._base + upload.place, upload.epoch, upload.size_bytes, upload.message
            )
            for upload in batch
            if (upload.node_id, upload.message.id) not in self._settled
        ]
        gone = [(parcel.node_id, self._base + parcel.place) for parcel in deletes]

        def work(connection: Connection) -> set[tuple[str, int]]:
            delete_uploads(connection, self._table, gone)
            return store_uploads(connection, self._table, rows)

        stored = await self._store.write(work)
        for _ in deletes:
            self._deletes.popleft()
        self._rows += len(stored) - len(deletes)
        self._metrics.uploads_rows.set(self._rows)
        self._after_commit(batch, stored)

    def _after_commit(self, batch: Sequence[Upload], stored: set[tuple[str, int]]) -> None:
        self._carry_out(self._intake.stored(batch))
        for upload in batch:
            is_new = (upload.node_id, self._base + upload.place) in stored
            if not is_new:
                self._repeated(upload.node_id, upload.epoch, upload.message)
            elif upload.message.sync:
                self._links.reply(upload.node_id, upload.epoch, upload.message, "response", "OK")
            parcel = self._parcel(
                upload.node_id, upload.epoch, upload.place, upload.size_bytes, upload.message
            )
            self._queue(self._window.stored(parcel, is_new=is_new))
        self._metrics.uploads_stored.inc(len(stored))
        # Settled uploads (whose rows went with this commit) made room, or new ones went to disk only.
        self._to_load.set()

    async def _load(self) -> None:
        while True:
            await self._to_load.wait()
            self._to_load.clear()
            while loads := self._window.wanted():
                # That reads fail stops no link: what they would bring is on disk already.
                loaded = await self._read(partial(self._load_all, loads), lambda: None)
                for load, found in zip(loads, loaded, strict=True):
                    self._take_loaded(load, found)

    def _load_all(self, loads: Sequence[Load], connection: Connection) -> list[LoadedUploads]:
        wanted = (
            LoadWanted(load.node_id, self._base + load.after, load.limit, self._bytes_per_load)
            for load in loads
        )
        return [load_uploads(connection, self._table, one) for one in wanted]

    def _take_loaded(self, load: Load, found: LoadedUploads) -> None:
        parcels = []
        for row in found.rows:
            parcel = self._parcel(row.node_id, row.epoch, row.n - self._base, row.size_bytes, row.message)
            # Stored before this process began: an earlier one may have handed it on.
            parcel.redelivered = parcel.place <= 0
            parcels.append(parcel)
        for n in found.unreadable:
            self._metrics.uploads_unreadable.inc()
            log.error("uploads.unreadable", node_id=load.node_id, n=n)
        reached = found.reached - self._base
        if found.is_all:
            reached = max(reached, load.through)
        self._queue(self._window.loaded(load, parcels, reached))

    async def _close_overdue(self) -> None:
        while True:
            self._pauses_changed.clear()
            deadline = self._intake.deadline()
            try:
                async with asyncio.timeout(
                    None if deadline is None else max(0.0, deadline - self._clock.monotonic())
                ):
                    await self._pauses_changed.wait()
            except TimeoutError:
                for close in self._intake.overdue(self._clock.monotonic()):
                    self._metrics.link_closes.inc()
                    self._links.close(close.node_id, close.epoch, close.detail)

    # -- small parts ---------------------------------------------------------------------------

    def _parcel(self, node_id: str, epoch: int, place: int, size_bytes: int, message: Message) -> Parcel:
        resource = message.resource
        message.resource = f"node/{node_id}/{resource}"
        return Parcel(ROUTER, node_id, epoch, message, size_bytes, Kind.UPLOAD, resource, place=place)

    def _repeated(self, node_id: str, epoch: int, message: Message) -> None:
        self._metrics.uploads_repeated.inc()
        if message.sync:
            self._links.reply(node_id, epoch, message, "response", "OK")

    def _carry_out(self, effects: Sequence[PauseReads]) -> None:
        for effect in effects:
            if effect.paused:
                self._metrics.link_pauses.inc()
            self._links.pause(effect.node_id, effect.epoch, effect.paused)
        if effects:
            self._pauses_changed.set()
