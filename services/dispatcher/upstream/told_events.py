"""Lifecycle events on their way to subscribers, and what is reported of them to sessions."""

import asyncio
from collections.abc import Callable, Iterable, Sequence

from cloudhub.v1.resources_pb2 import DispatcherResources
from cloudhub.v1.sessions_pb2 import LifecycleEvent
from services.dispatcher.upstream.lifecycle_events import EventCopies, event_message
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.parcel import Kind, Parcel
from services.dispatcher.upstream.routing import EVENTS_MODULE


class ToldEvents:
    """Makes a copy of each event for each module that is `served`; gives to `done` the ids of those whose
    copies are all settled."""

    def __init__(
        self,
        metrics: UpstreamMetrics,
        served: Callable[[], Iterable[str]],
        done: Callable[[Sequence[str]], None],
    ) -> None:
        self._metrics = metrics
        self._served = served
        self._report = done
        self._copies = EventCopies()
        self._done: list[str] = []
        self._some_done = asyncio.Event()

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.events_unsettled += len(self._copies)
        held.events_remembered += self._copies.remembered

    def copies(self, event: LifecycleEvent) -> list[Parcel]:
        """To be queued; none if it is told already."""
        if self._copies.is_done(event.event_id):
            # It was settled, but sessions did not hear of it.
            self._done.append(event.event_id)
            self._some_done.set()
            return []
        modules = dict.fromkeys([EVENTS_MODULE, *self._served()])
        if not self._copies.opened(event.event_id, len(modules)):
            return []
        self._metrics.events.labels(event.kind).inc()
        message = event_message(event)
        size_bytes = message.ByteSize()
        return [
            Parcel(module, event.node_id, event.epoch, message, size_bytes, Kind.EVENT) for module in modules
        ]

    def settled(self, parcel: Parcel) -> None:
        """A copy of an event is done with: a subscriber had it, or it found no room."""
        if self._copies.settled(parcel.message.id):
            self._done.append(parcel.message.id)
            self._some_done.set()

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            await self._some_done.wait()
            self._some_done.clear()
            done, self._done = self._done, []
            self._metrics.events_done.inc(len(done))
            self._report(done)
