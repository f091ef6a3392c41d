"""A dispatcher's upstream half alone: real store, real gRPC server, scripted links, test subscribers."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import grpc
from prometheus_client import CollectorRegistry
from sqlalchemy import Connection, Table

from cloudhub.v1.dispatcher_pb2 import (
    SubscribeRequest,
    SubscribeResponse,
    Subscription,
    UpstreamDelivery,
)
from cloudhub.v1.dispatcher_pb2_grpc import (
    DispatcherServiceServicer,
    DispatcherServiceStub,
    add_DispatcherServiceServicer_to_server,
)
from cloudhub.v1.link_pb2 import CloseReason
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.sessions_pb2 import LifecycleEvent
from services.dispatcher.outbox.schema import SCHEMA, uploads
from services.dispatcher.upstream.routing import classify
from services.dispatcher.upstream.settings import UpstreamSettings
from services.dispatcher.upstream.subscriptions import UpstreamServicer
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.clock import Clock, SystemClock
from services.runtime.errors import StoreUnavailable
from services.runtime.rpc import RpcServer, open_channel
from services.runtime.store import Store, open_store
from services.runtime.tracing import Tracing

T = TypeVar("T")
PATIENCE_SECONDS = 20.0


def report(
    name: str, text: str = "", *, message_id: str = "", operation: str = "update", sync: bool = False
) -> Message:
    """A status report of `default/podstatus/<name>` as an edge sends it."""
    return Message(
        id=message_id or f"{name}-{text}-{operation}",
        source="edged",
        group="resource",
        operation=operation,
        resource=f"default/podstatus/{name}",
        content=json.dumps(text).encode(),
        sync=sync,
    )


def upload(number: int, *, sync: bool = False) -> Message:
    """Upload `number` of an edge's user program."""
    return Message(
        id=f"upload-{number}",
        source="eventbus",
        group="user",
        operation="upload",
        resource="sensors/readings",
        content=str(number).encode(),
        sync=sync,
    )


def event(node_id: str, epoch: int, kind: str, event_id: str = "") -> LifecycleEvent:
    """A lifecycle event as sessions gives it."""
    return LifecycleEvent(
        event_id=event_id or f"{node_id}-{epoch}-{kind}",
        node_id=node_id,
        epoch=epoch,
        kind=kind,
        at_ms=epoch * 1000 + 7,
    )


class ScriptedEdge:
    """The links: remembers what was asked of them."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, int, Message]] = []
        self.pauses: list[tuple[str, int, bool]] = []
        self.closes: list[tuple[str, int, CloseReason.ValueType, str]] = []
        self.refusals: list[tuple[str, int, str]] = []
        self.safe: list[tuple[str, int, int]] = []
        self._changed = asyncio.Event()

    def answer(self, node_id: str, epoch: int, message: Message) -> None:
        self.answers.append((node_id, epoch, message))
        self._changed.set()

    def stored(self, frames: Iterable[tuple[str, int, int]]) -> None:
        self.safe.extend(frames)
        self._changed.set()

    def pause_reads(self, node_id: str, epoch: int, paused: bool) -> None:
        self.pauses.append((node_id, epoch, paused))
        self._changed.set()

    def close_link(self, node_id: str, epoch: int, reason: CloseReason.ValueType, detail: str) -> None:
        self.closes.append((node_id, epoch, reason, detail))
        self._changed.set()

    def refused(self, node_id: str, epoch: int, reason: str) -> None:
        self.refusals.append((node_id, epoch, reason))
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until what was asked fulfils `condition`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class UnsteadyStore(Store):
    """A store that can be told to fail: before it works, or after it has committed."""

    def __init__(self, inner: Store) -> None:
        self._inner = inner
        self.fails_before = False
        self.fail_after_commits = 0
        self.commits = 0
        self.attempted = asyncio.Event()

    @property
    def is_shared(self) -> bool:
        return self._inner.is_shared

    async def write(self, work: Callable[[Connection], T]) -> T:
        self.attempted.set()
        if self.fails_before:
            raise StoreUnavailable("told to fail")
        result = await self._inner.write(work)
        self.commits += 1
        if self.fail_after_commits:
            self.fail_after_commits -= 1
            raise StoreUnavailable("told to fail after the commit")
        return result

    async def read(self, work: Callable[[Connection], T]) -> T:
        if self.fails_before:
            raise StoreUnavailable("told to fail")
        return await self._inner.read(work)

    async def close(self) -> None:
        await self._inner.close()


@dataclass(slots=True)
class Hub:
    """One upstream half at work."""

    upstream: "WatchedUpstream"
    edge: ScriptedEdge
    store: UnsteadyStore
    registry: CollectorRegistry
    channel: grpc.aio.Channel
    task: asyncio.Task[None]
    table: Table
    done_events: list[str] = field(default_factory=list)
    done_changed: asyncio.Event = field(default_factory=asyncio.Event)

    def receive(self, node_id: str, epoch: int, message: Message, frame: int = 0) -> None:
        """A frame from an edge, routed as the link code does it."""
        self.upstream.receive(node_id, epoch, classify(message), message, message.ByteSize(), frame)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one of the upstream's metrics, 0 if it was never touched."""
        return self.registry.get_sample_value(f"cloudhub_dispatcher_upstream_{name}", labels) or 0.0

    async def until(self, condition: Callable[[], bool]) -> None:
        """Waits until what subscribers did, or the end of one, fulfils `condition`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not condition():
                self.upstream.changed.clear()
                await self.upstream.changed.wait()

    async def until_done(self, event_ids: Sequence[str]) -> None:
        """Waits until these events were reported as taken."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not set(event_ids) <= set(self.done_events):
                self.done_changed.clear()
                await self.done_changed.wait()

    async def crash(self) -> None:
        """Ends the work without any of the good byes."""
        self.task.cancel()
        await asyncio.wait([self.task])

    @asynccontextmanager
    async def subscriber(
        self, *modules: str, credit: int = 0, caller: str = "cloud"
    ) -> AsyncIterator["Subscriber"]:
        """A subscriber that is known to the hub, cancelled at the end. Raises AioRpcError if refused."""
        call: Any = DispatcherServiceStub(self.channel).Subscribe(metadata=(("caller", caller),))
        await call.write(
            SubscribeRequest(subscription=Subscription(modules=modules, max_unacknowledged=credit))
        )
        await call.initial_metadata()
        if call.done():
            await call.read()  # raises what it was refused with
        subscriber = Subscriber(call)
        try:
            yield subscriber
        finally:
            await subscriber.cancel()


class Subscriber:
    """A cloud program that receives and acknowledges by hand."""

    def __init__(self, call: Any) -> None:
        self.call = call
        self.batches: list[int] = []
        self._ready: list[UpstreamDelivery] = []

    async def next(self, count: int = 1) -> list[UpstreamDelivery]:
        """The next deliveries, without acknowledging them."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while len(self._ready) < count:
                response = await self.call.read()
                assert isinstance(response, SubscribeResponse), "the stream has ended"
                self.batches.append(len(response.deliveries))
                self._ready.extend(response.deliveries)
        taken, self._ready = self._ready[:count], self._ready[count:]
        return taken

    async def acknowledge(self, *deliveries: UpstreamDelivery | int) -> None:
        """Settles deliveries, or whatever ids are given."""
        ids = [one if isinstance(one, int) else one.delivery_id for one in deliveries]
        await self.call.write(SubscribeRequest(acknowledged=ids))

    async def take(self, count: int) -> list[UpstreamDelivery]:
        """The next deliveries, acknowledged one batch at a time."""
        taken: list[UpstreamDelivery] = []
        while len(taken) < count:
            one = await self.next()
            more = min(len(self._ready), count - len(taken) - 1)
            one += await self.next(more) if more else []
            await self.acknowledge(*one)
            taken += one
        return taken

    async def cancel(self) -> None:
        """The subscriber dies."""
        self.call.cancel()
        with_code = asyncio.ensure_future(self.call.code())
        await asyncio.wait([with_code], timeout=PATIENCE_SECONDS)


class WatchedUpstream(Upstream):
    """Tells when a subscriber acknowledged or went."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.changed = asyncio.Event()
        self._taken = asyncio.Event()

    async def until_taken(self) -> None:
        """Waits until the stream of a subscriber was given something to write."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._taken.wait()

    def take(self, subscriber_id: int, most: int, most_bytes: int) -> list[UpstreamDelivery]:
        deliveries = super().take(subscriber_id, most, most_bytes)
        if deliveries:
            self._taken.set()
        return deliveries

    def acknowledge(self, subscriber_id: int, delivery_ids: Iterable[int]) -> None:
        super().acknowledge(subscriber_id, delivery_ids)
        self.changed.set()

    def leave(self, subscriber_id: int) -> int:
        returned = super().leave(subscriber_id)
        self.changed.set()
        return returned


def _caller_of(context: grpc.aio.ServicerContext[Any, Any]) -> str:
    """Who calls, by a word of its own: there are no certificates here."""
    said = dict(context.invocation_metadata() or ()).get("caller", "cloud")
    return said if isinstance(said, str) else said.decode()


class _Servicer(DispatcherServiceServicer):
    """What the dispatcher's servicer does with Subscribe."""

    def __init__(self, upstream: Upstream) -> None:
        self._inner = UpstreamServicer(upstream, _caller_of)

    def Publish(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def PublishStream(self, request_iterator: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Subscribe(self, request_iterator: Any, context: Any) -> AsyncIterator[SubscribeResponse]:
        async for response in self._inner.Subscribe(request_iterator, context):
            yield response

    def FindUnknownNodes(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    def ExplainMessage(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


def database_url(folder: Path) -> str:
    """Where the upstream half of a folder keeps its uploads; replaced where another engine is tested."""
    return f"sqlite:///{folder / 'hub.db'}"


@asynccontextmanager
async def open_hub(
    folder: Path,
    *,
    settings: UpstreamSettings | None = None,
    clock: Clock | None = None,
    tracing: Tracing | None = None,
    cluster_ca: bytes | None = b"-----BEGIN CERTIFICATE-----\n",
    started: bool = True,
    unreadable: bool = False,
    holder: str = "dispatcher-0",
    is_shared: bool = False,
) -> AsyncIterator[Hub]:
    """An upstream half over the database in `folder`.

    With `started` false it takes in but does not work; with `unreadable` its store fails from the start.
    """
    store = UnsteadyStore(await open_store(database_url(folder), SCHEMA))
    store.fails_before = unreadable
    registry = CollectorRegistry()
    edge = ScriptedEdge()
    done: list[str] = []
    changed = asyncio.Event()

    def events_done(event_ids: Sequence[str]) -> None:
        done.extend(event_ids)
        changed.set()

    upstream = WatchedUpstream(
        edge=edge,
        store=store,
        uploads=uploads,
        holder=holder,
        is_shared=is_shared,
        clock=clock or SystemClock(),
        tracing=tracing or Tracing(None, "dispatcher"),
        registry=registry,
        settings=settings or UpstreamSettings(),
        events_done=events_done,
        cluster_ca=cluster_ca,
    )
    server = RpcServer("127.0.0.1:0", ["cloudhub.v1.DispatcherService"])
    add_DispatcherServiceServicer_to_server(_Servicer(upstream), server.grpc_server)
    await server.start()
    work = upstream.run() if started else asyncio.Event().wait()
    task: asyncio.Task[Any] = asyncio.ensure_future(work)
    try:
        async with open_channel(server.address) as channel:
            yield Hub(upstream, edge, store, registry, channel, task, uploads, done, changed)
    finally:
        await server.stop(0)
        task.cancel()
        ended, _ = await asyncio.wait([task])
        await store.close()
        for one in ended:
            if not one.cancelled():
                one.result()
