"""Keeps uploads: stores them in group commits, hands them on, loads what memory had no room for."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Protocol

from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.resources_pb2 import DispatcherResources
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.parcel import Parcel, upload_parcel
from services.dispatcher.upstream.upload_accounts import COUNT_SECONDS, UploadAccounts
from services.dispatcher.upstream.upload_intake import (
    Batch,
    IntakeBounds,
    PauseReads,
    Upload,
    UploadIntake,
)
from services.dispatcher.upstream.upload_loader import RETRY, UploadLoader, until_done
from services.dispatcher.upstream.upload_store import Change, Changed, UploadStore
from services.dispatcher.upstream.upload_window import SettledIds, UploadWindow, WindowBounds
from services.dispatcher.upstream.uploads import epoch_and_n, place_of
from services.runtime.clock import Clock
from services.runtime.errors import StoreUnavailable
from services.runtime.line_budget import LineBudget
from services.runtime.logs import get_log

MOST_PER_COMMIT = 1024
MOST_BYTES_PER_COMMIT = 8 * 1024 * 1024
# Sessions whose nodes' earlier rows are known to be here; one that was forgotten is looked at again.
MOST_SESSIONS_KNOWN = 65_536

log = get_log(__name__)


class LinkPort(Protocol):
    """What uploads ask of a link."""

    def pause(self, node_id: str, epoch: int, paused: bool) -> None:
        """Stop or go on reading."""
        ...

    def close(self, node_id: str, epoch: int, detail: str) -> None:
        """End the link: its uploads found no room in time."""
        ...

    def stored(self, frames: Iterable[tuple[str, int, int]]) -> None:
        """These uploads, by (node, epoch, frame number), are stored, or need not be."""
        ...

    def reply(self, node_id: str, epoch: int, request: Message, operation: str, content: str) -> None:
        """Answer an upload that asked for it."""
        ...


class UploadKeeper:
    """The durable half of the upstream. `queue` takes parcels for subscribers, in their order.

    An upload is answered and queued after its row is on disk, never before; its row is deleted after
    a subscriber settled it. Each node has its share of the store (`shares`): one that has no room for an
    upload is told so at once if it asked for an answer, else its link pauses (`UploadIntake`). Where other
    dispatchers store in the same table, each is the `holder` of its rows: what a node sent to another one is
    taken over with the first upload that its new session brings here, so that its order goes on.
    """

    def __init__(
        self,
        *,
        links: LinkPort,
        store: UploadStore,
        accounts: UploadAccounts,
        clock: Clock,
        metrics: UpstreamMetrics,
        queue: Callable[[Iterable[Parcel]], None],
        pause_seconds: float,
        window: WindowBounds | None = None,
    ) -> None:
        self._links = links
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._queue = queue
        self._accounts, self._shares = accounts, accounts.shares
        self._intake = UploadIntake(IntakeBounds(pause_seconds))
        self._window = UploadWindow(window or WindowBounds())
        self._settled = SettledIds()
        self._refused_lines = LineBudget()
        self._deletes: deque[Parcel] = deque()
        self._loader = UploadLoader(
            store, self._window, self._settled, metrics, queue=queue, settled_before=self._delete
        )
        self._early_events: list[tuple[Parcel, int]] = []
        self._opened = False
        self._last_n = clock.wall_ms() * 1000
        self._sessions: dict[str, int] = {}  # node -> epoch, whose earlier rows are here
        self._to_write = asyncio.Event()
        self._committed = asyncio.Event()
        self._pauses_changed = asyncio.Event()
        metrics.uploads_nodes_full.set_function(lambda: self._intake.full)

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.uploads_unstored += len(self._intake)
        held.uploads_in_memory += self._window.in_memory
        held.uploads_remembered += len(self._settled)

    # -- what the upstream tells ---------------------------------------------------------------

    def receive(self, node_id: str, epoch: int, message: Message, size_bytes: int, frame: int) -> None:
        """An upload came in as this frame of its link; the keeper owns `message` from here on."""
        if (node_id, message.id) in self._settled:
            self._repeated(node_id, epoch, message)
            self._links.stored([(node_id, epoch, frame)])
            return
        refusal = self._intake.refusal(node_id, size_bytes)
        if refusal:
            self._metrics.dropped.labels(refusal).inc()
            if message.sync:
                self._links.reply(
                    node_id, epoch, message, "error", "the hub is overloaded: send it again later"
                )
            self._links.stored([(node_id, epoch, frame)])
            return
        if self._store.is_shared and self._sessions.get(node_id) != epoch:
            self._accounts.arrived(node_id)
        self._last_n = max(self._last_n + 1, self._clock.wall_ms() * 1000)
        upload = Upload(node_id, epoch, place_of(epoch, self._last_n), message, size_bytes, frame)
        self._window.expect(node_id, upload.place)
        self._carry_out(self._intake.add(upload, self._clock.monotonic()))
        self._to_write.set()

    def event(self, parcel: Parcel) -> None:
        """A lifecycle event for the subscribers of uploads: it keeps its place among them."""
        place = place_of(parcel.epoch, self._last_n)
        if self._opened:
            self._queue(self._window.pass_event(parcel, place))
        else:
            self._early_events.append((parcel, place))

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
        """The link's session is over; what it sent is stored all the same, as far as there is room."""
        self._intake.link_ended(node_id, epoch)
        if self._sessions.get(node_id) == epoch:
            del self._sessions[node_id]

    # -- other holders -------------------------------------------------------------------------

    async def other_holders(self) -> list[str]:
        """Dispatchers that hold rows of the table. Raises StoreUnavailable."""
        return await self._store.other_holders()

    async def inherit(self, former: str) -> int:
        """Takes over what a holder that is gone has left, whole nodes at a time; how many rows. Raises
        StoreUnavailable."""
        total = 0
        while taken := await self._store.inherit_some(former):
            for one in taken:
                self._shares.add(one.node_id, one.size_bytes, one.rows)
            self._loader.taken_over(taken)
            total += sum(one.rows for one in taken)
        return total

    async def flush(self) -> None:
        """Returns when what was taken in is stored, as far as there is room, and what was settled is gone."""
        while self._intake.is_ready or self._deletes:
            self._committed.clear()
            await self._committed.wait()

    async def release(self) -> None:
        """This dispatcher stops: others may have its rows at once. Raises StoreUnavailable."""
        await self._store.release()

    # -- at work -------------------------------------------------------------------------------

    async def run(self) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._give_up_overdue(), name="uploads-overdue")
            await self._open()
            tasks.create_task(self._write(), name="uploads-write")
            tasks.create_task(self._loader.run(), name="uploads-load")
            tasks.create_task(self._ask_to_count(), name="uploads-count")

    async def _open(self) -> None:
        taken = await until_done(self._store.open, self._metrics, self._troubled)
        self._carry_out(self._intake.stored([]))
        for one in taken:
            self._shares.add(one.node_id, one.size_bytes, one.rows)
        await self._accounts.count()
        self._loader.taken_over(taken)
        self._opened = True
        for parcel, place in self._early_events:
            self._queue(self._window.pass_event(parcel, place))
        self._early_events.clear()
        self._loader.wake()

    def _troubled(self) -> None:
        self._carry_out(self._intake.troubled("the store does not answer", self._clock.monotonic()))

    async def _ask_to_count(self) -> None:
        while True:
            await asyncio.sleep(COUNT_SECONDS)
            self._accounts.is_due = True
            self._to_write.set()

    async def _write(self) -> None:
        attempt = 0
        while True:
            if not (self._intake.is_ready or self._deletes or self._accounts.is_due):
                await self._to_write.wait()
            self._to_write.clear()
            try:
                if self._accounts.is_due:
                    await self._accounts.count()
                    self._carry_out(self._intake.room_made(self._shares))
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
        await self._accounts.count_arrived()
        deletes = list(islice(self._deletes, MOST_PER_COMMIT))
        for parcel in deletes:  # they go first, so what they leave is free
            self._shares.remove(parcel.node_id, parcel.size_bytes)
        batch = self._intake.batch(MOST_PER_COMMIT, MOST_BYTES_PER_COMMIT, self._shares)
        if not batch and not deletes:
            return
        come = {
            one.node_id: one.epoch
            for one in (*batch.uploads, *(upload for upload, _ in batch.unfit))
            if self._store.is_shared and self._sessions.get(one.node_id) != one.epoch
        }
        change = Change(
            rows=[
                self._store.row(
                    one.node_id, epoch_and_n(one.place)[1], one.epoch, one.size_bytes, one.message
                )
                for one in batch.uploads
                if (one.node_id, one.message.id) not in self._settled
            ],
            gone=[(parcel.node_id, parcel.place) for parcel in deletes],
            unfit=[(one.node_id, one.message.id) for one, _ in batch.unfit],
            come=list(come),
        )
        try:
            changed = await self._store.change(change)
        except StoreUnavailable:
            for one in batch.uploads:
                self._shares.remove(one.node_id, one.size_bytes)
            for parcel in deletes:
                self._shares.add(parcel.node_id, parcel.size_bytes)
            raise
        for _ in deletes:
            self._deletes.popleft()
        self._remember(come)
        for taken in changed.taken:
            if taken.node_id not in come:  # else it was counted before
                self._shares.add(taken.node_id, taken.size_bytes, taken.rows)
        self._loader.taken_over(changed.taken)
        self._after_commit(batch, changed)
        if deletes:
            self._carry_out(self._intake.room_made(self._shares))
        self._committed.set()

    def _remember(self, come: dict[str, int]) -> None:
        self._sessions.update(come)
        while len(self._sessions) > MOST_SESSIONS_KNOWN:
            del self._sessions[next(iter(self._sessions))]

    def _after_commit(self, batch: Batch, changed: Changed) -> None:
        self._carry_out(self._intake.stored(batch.uploads))
        self._links.stored((upload.node_id, upload.epoch, upload.frame) for upload in batch.uploads)
        for upload in batch.uploads:
            key = (upload.node_id, upload.place)
            is_new = key in changed.stored
            if not is_new:
                self._shares.remove(upload.node_id, upload.size_bytes)
            if key in changed.refused:
                self._refused(upload, changed.refused[key])
                continue
            if not is_new:
                self._repeated(upload.node_id, upload.epoch, upload.message)
            elif upload.message.sync:
                self._links.reply(upload.node_id, upload.epoch, upload.message, "response", "OK")
            parcel = upload_parcel(
                upload.node_id, upload.epoch, upload.place, upload.size_bytes, upload.message
            )
            self._queue(self._window.stored(parcel, is_new=is_new))
        self._metrics.uploads_stored.inc(len(changed.stored))
        if batch.unfit:
            self._judge(batch.unfit, changed.repeated)
        # Settled uploads (whose rows went with this commit) made room, or new ones went to disk only.
        self._loader.wake()

    def _refused(self, upload: Upload, detail: str) -> None:
        """The database will never take it: it is given up, and who asked for an answer gets one."""
        self._metrics.dropped.labels("stored_refused").inc()
        facts = self._refused_lines.take(upload.node_id, self._clock.monotonic())
        if facts is not None:
            log.error(
                "uploads.refused",
                node_id=upload.node_id,
                message_id=upload.message.id,
                detail=detail,
                **facts,
            )
        if upload.message.sync:
            self._links.reply(
                upload.node_id,
                upload.epoch,
                upload.message,
                "error",
                "the hub's database refuses it for good",
            )
        self._queue(self._window.given_up(upload.node_id))

    def _judge(self, unfit: Sequence[tuple[Upload, str]], repeated: set[tuple[str, str]]) -> None:
        """What had no room: a repeat needs none, who asked for an answer gets one, others have to wait."""
        done: list[Upload] = []
        waiting: list[tuple[Upload, str]] = []
        for upload, bound in unfit:
            if (upload.node_id, upload.message.id) in repeated:
                self._repeated(upload.node_id, upload.epoch, upload.message)
            elif upload.message.sync:
                self._metrics.dropped.labels(f"stored_{bound}").inc()
                self._links.reply(
                    upload.node_id, upload.epoch, upload.message, "error", self._accounts.describe(bound)
                )
            else:
                waiting.append((upload, bound))
                continue
            done.append(upload)
        self._carry_out(self._intake.stored(done))
        self._links.stored((upload.node_id, upload.epoch, upload.frame) for upload in done)
        for upload in done:
            self._queue(self._window.given_up(upload.node_id))
        self._carry_out(self._intake.judged(waiting, self._clock.monotonic()))
        self._pauses_changed.set()  # also for a link that is gone

    async def _give_up_overdue(self) -> None:
        while True:
            self._pauses_changed.clear()
            deadline = self._intake.deadline()
            try:
                async with asyncio.timeout(
                    None if deadline is None else max(0.0, deadline - self._clock.monotonic())
                ):
                    await self._pauses_changed.wait()
            except TimeoutError:
                for given_up in self._intake.overdue(self._clock.monotonic(), self._accounts.describe):
                    for upload in given_up.dropped:
                        self._metrics.dropped.labels("stored_no_room").inc()
                        self._queue(self._window.given_up(upload.node_id))
                    if given_up.is_linked:
                        self._metrics.link_closes.inc()
                        self._links.close(given_up.node_id, given_up.epoch, given_up.detail)

    def _delete(self, parcel: Parcel) -> None:
        self._deletes.append(parcel)
        self._to_write.set()

    # -- small parts ---------------------------------------------------------------------------

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
