"""The upstream half of a dispatcher: what nodes say goes to cloud modules, in order, once taken in."""

import asyncio
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import CollectorRegistry
from sqlalchemy import Table

from cloudhub.v1.dispatcher_pb2 import UpstreamDelivery
from cloudhub.v1.link_pb2 import CloseReason
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.resources_pb2 import DispatcherResources
from cloudhub.v1.sessions_pb2 import LifecycleEvent
from services.dispatcher.upstream.answers import answer
from services.dispatcher.upstream.merging import merge_key
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.node_queues import NodeQueues, Stuck
from services.dispatcher.upstream.parcel import MAX_GROWTH_BYTES, Kind, Parcel, delivered_bytes
from services.dispatcher.upstream.relays import Relays
from services.dispatcher.upstream.room import Bounds
from services.dispatcher.upstream.routing import (
    ROUTER,
    CaRequest,
    DurableUpload,
    Noise,
    Route,
    ToModule,
    wants_answer,
)
from services.dispatcher.upstream.settings import UpstreamSettings
from services.dispatcher.upstream.shares import Amount
from services.dispatcher.upstream.spans import UpstreamSpans
from services.dispatcher.upstream.subscriber_shares import Subscribed, SubscriberShares
from services.dispatcher.upstream.told_events import ToldEvents
from services.dispatcher.upstream.upload_accounts import UploadAccounts
from services.dispatcher.upstream.upload_keeper import UploadKeeper
from services.dispatcher.upstream.upload_store import UploadStore
from services.runtime.clock import Clock
from services.runtime.errors import Ended, HubError
from services.runtime.logs import get_log
from services.runtime.store import Store
from services.runtime.tracing import Tracing

OVERLOADED = "the hub is overloaded: send it again later"
# How often is looked for subscribers that settle nothing, in parts of the time they have.
LOOKS_PER_TIME = 20

log = get_log(__name__)


@dataclass(slots=True)
class Seat:
    """A subscriber at work. `wake` is set when there may be something for it, and when it has `ended`: then
    it is one no more, for the reason given. `subscribed` is its part of its caller's share."""

    number: int
    subscribed: Subscribed | None = None
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ended: HubError | None = None


class EdgePort(Protocol):
    """The links, as the upstream half needs them. Calls for an epoch that is gone change nothing."""

    def answer(self, node_id: str, epoch: int, message: Message) -> None:
        """Send a message of the hub's own over the direct lane."""
        ...

    def stored(self, frames: Iterable[tuple[str, int, int]]) -> None:
        """Uploads by (node, epoch, frame number) are stored, or need not be."""
        ...

    def pause_reads(self, node_id: str, epoch: int, paused: bool) -> None:
        """Stop or go on reading from the link."""
        ...

    def close_link(self, node_id: str, epoch: int, reason: CloseReason.ValueType, detail: str) -> None:
        """End the link's session."""
        ...

    def refused(self, node_id: str, epoch: int, reason: str) -> None:
        """Something that the edge sent goes nowhere: tell it in the node's history."""
        ...


class Upstream:
    """Takes what links deliver and hands it to subscribers (see `subscriptions`).

    All methods but `run` are synchronous and quick; they are called from the event loop's thread.
    """

    def __init__(
        self,
        *,
        edge: EdgePort,
        store: Store,
        uploads: Table,
        holder: str,
        is_shared: bool,
        clock: Clock,
        tracing: Tracing,
        registry: CollectorRegistry,
        settings: UpstreamSettings,
        events_done: Callable[[Sequence[str]], None],
        cluster_ca: bytes | None,
    ) -> None:
        self._edge = edge
        self._clock = clock
        self._cluster_ca = cluster_ca
        self.metrics = UpstreamMetrics(registry)
        self._spans = UpstreamSpans(tracing)
        self._queues = NodeQueues(
            Bounds(
                settings.most_waiting_per_node,
                settings.most_waiting_bytes_per_node,
                settings.most_waiting_total,
                settings.most_waiting_bytes_total,
                settings.most_events_per_node,
                settings.most_events_total,
            )
        )
        self.relays = Relays(self._queues, self._queue, self.metrics)
        self._events = ToldEvents(self.metrics, self._queues.served, events_done)
        self.shares = SubscriberShares(settings.max_subscriptions)
        self._seats: dict[int, Seat] = {}
        self._ack_seconds = settings.subscriber_ack_seconds
        self._max_delivery_bytes = settings.max_delivery_bytes
        self._surely_fits_bytes = settings.max_delivery_bytes - MAX_GROWTH_BYTES
        # A dispatcher that shares its work has to hear first what the others' subscribers want.
        self._knows_who_serves = not is_shared
        self._relaying: set[int] = set()  # subscribers that are other dispatchers
        upload_store = UploadStore(store, uploads, holder, is_shared=is_shared)
        self.uploads = UploadKeeper(
            links=self,
            store=upload_store,
            accounts=UploadAccounts(
                upload_store,
                clock,
                self.metrics,
                Amount(settings.max_node_upload_rows, settings.max_node_upload_bytes),
                Amount(settings.max_upload_rows, settings.max_upload_bytes),
            ),
            clock=clock,
            metrics=self.metrics,
            queue=self._queue,
            pause_seconds=settings.upload_pause_seconds,
        )
        self.metrics.waiting.set_function(lambda: self._queues.waiting)
        self.metrics.unsettled_bytes.set_function(lambda: self._queues.room.size_bytes)
        self.metrics.subscribers.set_function(lambda: self._queues.subscribers)
        self.metrics.modules.set_function(lambda: self.shares.modules)
        self.metrics.oldest_unacknowledged.set_function(self._oldest_unacknowledged_seconds)

    async def run(self) -> None:
        """Stores uploads and reports settled events until cancelled; awaited by the app."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.uploads.run(), name="uploads")
            tasks.create_task(self._events.run(), name="events-done")
            tasks.create_task(self._end_stuck(), name="stuck-subscribers")

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.upstream_queues += self._queues.lanes
        held.upstream_waiting += self._queues.waiting
        held.upstream_unsettled += self._queues.room.messages
        self._events.count(held)
        held.subscribers += self._queues.subscribers
        self.uploads.count(held)

    # -- from the links ------------------------------------------------------------------------

    def session_opened(self, event: LifecycleEvent) -> None:
        """Tells `connected`; call it before any message of that session."""
        self._tell(event)

    def session_closed(self, event: LifecycleEvent) -> None:
        """Tells `disconnected`; call it after the session's last message."""
        self.uploads.link_ended(event.node_id, event.epoch)
        self._tell(event)

    def session_left(self, node_id: str, epoch: int) -> None:
        """The session goes on under another epoch, or waits for its link; call it after its last message."""
        self.uploads.link_ended(node_id, epoch)

    def adopt_events(self, events: Sequence[LifecycleEvent]) -> None:
        """Tells events that another dispatcher left; those told already are not told again."""
        for event in events:
            self._tell(event)

    def receive(
        self, node_id: str, epoch: int, route: Route, message: Message, size_bytes: int, frame: int
    ) -> None:
        """A message but keepalives and acknowledgements. It belongs to the upstream from here on; when an
        upload is safe, `EdgePort.stored` tells by the number of its `frame`."""
        if size_bytes > self._surely_fits_bytes and self._is_refused(node_id, epoch, route, message, frame):
            return
        match route:
            case ToModule(module):
                self.metrics.received.labels("module").inc()
                self._to_module(module, node_id, epoch, message, size_bytes)
            case DurableUpload():
                self.metrics.received.labels("upload").inc()
                self._spans.received(message, ROUTER, node_id, epoch)
                self.uploads.receive(node_id, epoch, message, size_bytes, frame)
            case CaRequest():
                self.metrics.received.labels("ca").inc()
                self._answer_ca(node_id, epoch, message)
            case Noise(reason):
                self.metrics.received.labels("noise").inc()
                self.metrics.noise.labels(reason).inc()
            case _:
                raise ValueError(f"{type(route).__name__} is the link's to handle")

    def _is_refused(self, node_id: str, epoch: int, route: Route, message: Message, frame: int) -> bool:
        """Whether it is more than a subscriber may be sent: its stream would break over it, again and again.
        If so, that is told."""
        if not isinstance(route, ToModule | DurableUpload):
            return False
        size_bytes, most = delivered_bytes(node_id, message), self._max_delivery_bytes
        if size_bytes <= most:
            return False
        detail = f"a message of {size_bytes} bytes as subscribers get it, allowed are {most}"
        self.metrics.dropped.labels("message_too_large").inc()
        self._edge.refused(
            node_id, epoch, f"message_too_large: {detail}: {message.operation} {message.resource}"
        )
        is_upload = isinstance(route, DurableUpload)
        if wants_answer(message) or (is_upload and message.sync):
            self.reply(node_id, epoch, message, "error", detail)
        if is_upload:
            self._edge.stored([(node_id, epoch, frame)])
        return True

    def _to_module(self, module: str, node_id: str, epoch: int, message: Message, size_bytes: int) -> None:
        is_request = wants_answer(message)
        if is_request and not self._queues.is_served(module) and self._knows_who_serves:
            self._answer_unserved(module, node_id, epoch, message, message.resource)
            return
        self._spans.received(message, module, node_id, epoch)
        key = merge_key(message)
        resource = message.resource
        message.resource = f"node/{node_id}/{resource}"
        self._put(
            Parcel(module, node_id, epoch, message, size_bytes, Kind.MESSAGE, resource, key, is_request)
        )
        self._wake()

    def _answer_unserved(
        self, module: str, node_id: str, epoch: int, message: Message, resource: str
    ) -> None:
        self.metrics.answered.labels("no_subscriber").inc()
        self._reply(node_id, epoch, message, resource, "error", f"nobody serves module {module} now")

    def all_arrived(self) -> None:
        """Just after a start others may serve what nobody serves here, and so requests wait; now those are
        here, and the requests that still nobody serves are answered so."""
        self._knows_who_serves = True
        for parcel in self._queues.drop_unserved_requests():
            self._answer_unserved(
                parcel.module, parcel.node_id, parcel.epoch, parcel.message, parcel.resource
            )

    def _answer_ca(self, node_id: str, epoch: int, message: Message) -> None:
        if self._cluster_ca is None:
            # No `error`: an edge writes what it gets into the file of its CA.
            self.metrics.unanswered.labels("no_ca").inc()
        else:
            self.metrics.answered.labels("ca").inc()
            self.reply(node_id, epoch, message, "response", self._cluster_ca.decode("ascii"))

    # -- to the links --------------------------------------------------------------------------

    def reply(self, node_id: str, epoch: int, request: Message, operation: str, content: str) -> None:
        """Answers a request whose resource is as the edge wrote it."""
        self._reply(node_id, epoch, request, request.resource, operation, content)

    def _reply(
        self, node_id: str, epoch: int, request: Message, resource: str, operation: str, content: str
    ) -> None:
        message = answer(
            request,
            resource=resource,
            message_id=str(uuid.uuid4()),
            at_ms=self._clock.wall_ms(),
            content=content,
            operation=operation,
        )
        self._edge.answer(node_id, epoch, message)

    def stored(self, frames: Iterable[tuple[str, int, int]]) -> None:
        """Passes on which uploads are safe."""
        self._edge.stored(frames)

    def pause(self, node_id: str, epoch: int, paused: bool) -> None:
        """Passes on what uploads ask of a link."""
        self._edge.pause_reads(node_id, epoch, paused)

    def close(self, node_id: str, epoch: int, detail: str) -> None:
        """Closes a link whose uploads found no room."""
        self._edge.close_link(node_id, epoch, CloseReason.CLOSE_REASON_OVERLOADED, detail)

    # -- queues --------------------------------------------------------------------------------

    def _tell(self, event: LifecycleEvent) -> None:
        for parcel in self._events.copies(event):
            if parcel.module == ROUTER:
                self.uploads.event(parcel)
            else:
                self._put(parcel)
        self._wake()

    def _queue(self, parcels: Iterable[Parcel]) -> None:
        for parcel in parcels:
            self._put(parcel)
        self._wake()

    def _put(self, parcel: Parcel) -> None:
        put = self._queues.put(parcel, by_epoch=parcel.kind is not Kind.MESSAGE)
        if put.merged:
            self.metrics.merged.inc()
        for lost, bound in put.dropped:
            self.metrics.dropped.labels(bound).inc()
            if lost.kind is Kind.EVENT:
                self._events.settled(lost)
            elif lost.wants_answer:
                self._reply(lost.node_id, lost.epoch, lost.message, lost.resource, "error", OVERLOADED)

    def _wake(self) -> None:
        for subscriber_id in self._queues.woken():
            self._seats[subscriber_id].wake.set()

    # -- for the subscribers -------------------------------------------------------------------

    def served(self) -> list[str]:
        """The modules that have a subscriber, here or at another dispatcher."""
        return self._queues.served()

    def subscribe(
        self,
        modules: Sequence[str],
        most_unacknowledged: int,
        *,
        is_relay: bool = False,
        subscribed: Subscribed | None = None,
    ) -> Seat:
        """A subscriber comes, or another dispatcher that has some; `subscribed` goes back with it."""
        seat = Seat(self._queues.subscribe(modules, most_unacknowledged, is_relay=is_relay), subscribed)
        self._seats[seat.number] = seat
        seat.wake.set()
        if is_relay:
            self._relaying.add(seat.number)
        else:
            self.relays.subscribers_changed()
        return seat

    def resubscribe(self, subscriber_id: int, modules: Sequence[str], most_unacknowledged: int) -> None:
        """The subscribers of another dispatcher have changed."""
        self._queues.resubscribe(subscriber_id, modules, most_unacknowledged)
        self._wake()

    def give_back(self, subscriber_id: int, delivery_ids: Iterable[int]) -> None:
        """Another dispatcher has nobody for these any more; ids it does not hold change nothing."""
        self.metrics.unknown_acknowledgements.inc(self._queues.give_back(subscriber_id, delivery_ids))
        self._wake()

    def take(self, subscriber_id: int, most: int, most_bytes: int) -> list[UpstreamDelivery]:
        """What the subscriber gets now; empty if nothing is there or it holds as much as it may."""
        deliveries: list[UpstreamDelivery] = []
        now_ms = self._clock.wall_ms()
        again = 0
        now = self._clock.monotonic()
        for delivery_id, parcel in self._queues.take(subscriber_id, most, most_bytes, now):
            parcel.handed_at_ms = now_ms
            again += parcel.redelivered
            deliveries.append(
                UpstreamDelivery(
                    delivery_id=delivery_id,
                    module=parcel.module,
                    node_id=parcel.node_id,
                    epoch=parcel.epoch,
                    redelivered=parcel.redelivered,
                    message=parcel.message,
                )
            )
        if subscriber_id in self._relaying:
            self.metrics.relayed_away.inc(len(deliveries))
        else:
            self.metrics.handed.inc(len(deliveries))
            self.metrics.redelivered.inc(again)
        return deliveries

    def acknowledge(self, subscriber_id: int, delivery_ids: Iterable[int]) -> None:
        """The subscriber is done with these; ids it does not hold are counted and change nothing."""
        settled, unknown = self._queues.settle(subscriber_id, delivery_ids, self._clock.monotonic())
        is_relay = subscriber_id in self._relaying
        if not is_relay:
            self.metrics.settled.inc(len(settled))
        self.metrics.unknown_acknowledgements.inc(unknown)
        uploads: list[Parcel] = []
        for parcel in settled:
            if not is_relay:
                self._spans.handed_over(parcel)  # else recorded where its subscriber is
            if parcel.kind is Kind.UPLOAD:
                uploads.append(parcel)
            elif parcel.kind is Kind.RELAYED:
                self.relays.settled(parcel)
            elif parcel.kind is Kind.EVENT:
                self._events.settled(parcel)
        if uploads:
            self.uploads.settled(uploads)
        self._wake()

    def leave(self, subscriber_id: int) -> int:
        """The subscriber is gone; what it held goes to others. Gives back how much that was."""
        seat = self._seats.pop(subscriber_id)
        if seat.subscribed is not None:
            self.shares.leave(seat.subscribed)
        returned = self._queues.leave(subscriber_id)
        if subscriber_id in self._relaying:
            self._relaying.discard(subscriber_id)
        else:
            self.relays.subscribers_changed()
        self._wake()
        return len(returned)

    def _oldest_unacknowledged_seconds(self) -> float:
        oldest_at = self._queues.oldest_unsettled_at()
        return 0.0 if oldest_at is None else self._clock.monotonic() - oldest_at

    async def _end_stuck(self) -> None:
        while True:
            await asyncio.sleep(self._ack_seconds / LOOKS_PER_TIME)
            while stuck := self._queues.stuck(self._clock.monotonic(), self._ack_seconds):
                # One at a time: the last one that is left with its modules stays, however slow.
                self._end(stuck[0])

    def _end(self, stuck: Stuck) -> None:
        seat = self._seats[stuck.subscriber_id]
        seat.ended = Ended(
            "NO_ACKNOWLEDGEMENT",
            f"{stuck.held} deliveries were held for {stuck.seconds:.0f} s without an acknowledgement, "
            f"allowed are {self._ack_seconds:g} s, and go to another subscriber: subscribe again, and "
            "acknowledge sooner or ask for fewer at a time (max_unacknowledged)",
        )
        self.metrics.subscribers_ended.labels("no_acknowledgement").inc()
        log.warning(
            "subscription.stuck", subscriber=seat.number, held=stuck.held, seconds=round(stuck.seconds, 1)
        )
        self.leave(seat.number)
        seat.wake.set()
