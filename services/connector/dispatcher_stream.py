"""The stream to one dispatcher: attaches, keeps it alive, attaches again."""

import asyncio
from typing import Protocol

import grpc

from cloudhub.v1 import link_pb2, link_pb2_grpc
from services.connector.edge_link import EdgeLink, LinkStream
from services.connector.metrics import ConnectorMetrics
from services.connector.outgoing import OutgoingBatches
from services.runtime.backoff import Backoff
from services.runtime.logs import get_log
from services.runtime.rpc import error_reason, open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, Security

_log = get_log("connector.dispatcher")
_HELLO_TIMEOUT = 10.0
_LEASE_SECONDS = 15.0
# Links stop reading while this much waits for the stream, and go on at half of it.
_CONGESTED_BYTES = 16 * 1024 * 1024
_BACKOFF = Backoff(0.1, 3.0)

_Call = grpc.aio.StreamStreamCall[link_pb2.ConnectorBatch, link_pb2.DispatcherBatch]


class StreamLost(Exception):
    """The stream is over; `reason` is the metric label."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StreamUser(Protocol):
    """Who lives on the streams."""

    def received(self, stream: LinkStream, batch: link_pb2.DispatcherBatch) -> None:
        """A batch came."""
        ...

    def attachment_changed(self, stream: LinkStream, attached: bool) -> None:
        """The stream is up, or lost with everything on it."""
        ...

    def fitness_changed(self, stream: LinkStream) -> None:
        """The dispatcher of an attached stream can have links, or no longer."""
        ...


class DispatcherStream:
    """One dispatcher by its address. `run` is awaited by the owner; `finish` ends it cleanly."""

    def __init__(
        self,
        address: str,
        hello: link_pb2.ConnectorHello,
        user: StreamUser,
        metrics: ConnectorMetrics,
        backoff: Backoff = _BACKOFF,
        security: Security = PLAINTEXT_LOOPBACK,
    ) -> None:
        self.address = address
        self.dispatcher_id = ""
        self.attached = False
        self.draining = False
        # Its lease was not renewed for a lease: sessions may have given it up.
        self.late = False
        self._retired = False
        self._told_draining = False
        self._work = asyncio.Event()
        self.outgoing = OutgoingBatches(self._work.set)
        self._hello = hello
        self._user = user
        self._metrics = metrics
        self._backoff = backoff
        self._security = security
        self._waiting: set[EdgeLink] = set()
        self._last_heard_at = 0.0
        self._finishing = False
        # Set while no stream is up.
        self._idle = asyncio.Event()
        self._idle.set()

    # edge_link.LinkStream.

    @property
    def fit(self) -> bool:
        return self.attached and not self.draining and not self.late

    @property
    def congested(self) -> bool:
        return self.outgoing.waiting_bytes > _CONGESTED_BYTES

    def wait_for_room(self, link: EdgeLink) -> None:
        self._waiting.add(link)
        self._metrics.read_pauses.labels("stream").inc()

    async def run(self) -> None:
        """Attaches until `finish`, cancellation, or the loss of a stream that was retired."""
        attempt = 0
        async with open_channel(self.address, self._security) as channel:
            stub: link_pb2_grpc.LinkServiceAsyncStub = link_pb2_grpc.LinkServiceStub(channel)  # type: ignore[assignment,unused-ignore]
            while not (self._finishing or self._retired):
                self.outgoing = OutgoingBatches(self._work.set)
                if self._told_draining:
                    self.outgoing.draining()
                call = stub.Attach()
                try:
                    await self._attach(call)
                except StreamLost as lost:
                    attempt = 1 if self.attached else attempt + 1
                    await self._lost(lost, attempt)
                finally:
                    call.cancel()
                    self._detached()
                if not self._finishing and not self._retired:
                    await asyncio.sleep(self._backoff.random_delay(attempt))

    @property
    def finishing(self) -> bool:
        """Whether `finish` was called."""
        return self._finishing

    def retire(self, retired: bool) -> None:
        """Whether the dispatcher's address is gone from where it was found: then a stream that is up stays
        until it is lost, and is not made anew."""
        self._retired = retired

    def tell_draining(self) -> None:
        """Tells the dispatcher, now and whenever the stream is made anew, that the connector drains."""
        self._told_draining = True
        self.outgoing.draining()

    async def finish(self, seconds: float) -> None:
        """Lets what is queued go out and the dispatcher end the stream, for at most `seconds`."""
        self._finishing = True
        self._work.set()
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            _log.warning("dispatcher.unfinished", address=self.address, seconds=seconds)

    async def _attach(self, call: _Call) -> None:
        """Serves one stream; always ends in StreamLost."""
        try:
            async with asyncio.timeout(_HELLO_TIMEOUT):
                await _write(call, link_pb2.ConnectorBatch(hello=self._hello))
                first = await _read(call)
        except TimeoutError:
            raise StreamLost("no_hello", f"no answer within {_HELLO_TIMEOUT:g} s") from None
        if not first.HasField("hello"):
            raise StreamLost("no_hello", "the first batch has no hello")
        lease = first.hello.lease_seconds if first.hello.lease_seconds > 0 else _LEASE_SECONDS
        self.dispatcher_id = first.hello.dispatcher_id
        self.attached, self.draining, self.late = True, False, False
        self._idle.clear()
        self._last_heard_at = asyncio.get_running_loop().time()
        _log.info("dispatcher.attached", address=self.address, dispatcher=self.dispatcher_id, lease=lease)
        self._user.attachment_changed(self, True)
        self._user.received(self, first)
        lost: StreamLost | None = None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read_batches(call, lease), name=f"read {self.address}")
                group.create_task(self._write_batches(call), name=f"write {self.address}")
                group.create_task(self._beat(lease), name=f"beat {self.address}")
        except* StreamLost as losses:
            found = losses.exceptions[0]
            lost = found if isinstance(found, StreamLost) else None
        raise lost or StreamLost("ended", "the stream ended")

    async def _read_batches(self, call: _Call, lease: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            batch = await _read(call)
            self._last_heard_at = loop.time()
            self._user.received(self, batch)
            if batch.heartbeat or batch.draining:
                self._judge(batch, lease)

    def _judge(self, batch: link_pb2.DispatcherBatch, lease: float) -> None:
        fit = self.fit
        self.draining = self.draining or batch.draining
        if batch.heartbeat:
            self.late = batch.lease_age_seconds > lease
        if self.fit != fit:
            _log.info(
                "dispatcher.fit" if self.fit else "dispatcher.unfit",
                address=self.address,
                draining=self.draining,
                late=self.late,
            )
            self._user.fitness_changed(self)

    async def _write_batches(self, call: _Call) -> None:
        while True:
            await self._work.wait()
            self._work.clear()
            while taken := self.outgoing.take():
                batch, elements = taken
                self._metrics.batch_elements.observe(elements)
                if batch.upstream:
                    self._metrics.frames_received.inc(len(batch.upstream))
                    self._metrics.bytes_received.inc(sum(frame.size_bytes for frame in batch.upstream))
                await _write(call, batch)
                if self._waiting and self.outgoing.waiting_bytes < _CONGESTED_BYTES // 2:
                    waiting, self._waiting = self._waiting, set()
                    for link in waiting:
                        link.stream_has_room()
            if self._finishing:
                await call.done_writing()

    async def _beat(self, lease: float) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(lease / 3)
            if loop.time() - self._last_heard_at > lease:
                raise StreamLost("silent", f"nothing came for {lease:g} s")
            self.outgoing.heartbeat()

    async def _lost(self, lost: StreamLost, attempt: int) -> None:
        if self._finishing:
            return
        self._metrics.streams_lost.labels(lost.reason).inc()
        # The first failure is news; the backoff's repetitions are in the metric.
        if attempt == 1:
            detail = await self._security.explain(self.address) or lost.detail
            _log.warning("dispatcher.lost", address=self.address, reason=lost.reason, detail=detail)

    def _detached(self) -> None:
        self._waiting.clear()
        if self.attached:
            self.attached = False
            self._user.attachment_changed(self, False)
            self._idle.set()


async def _read(call: _Call) -> link_pb2.DispatcherBatch:
    try:
        batch = await call.read()
    except grpc.aio.AioRpcError as error:
        raise StreamLost(error_reason(error).lower(), error.details() or "") from None
    if not isinstance(batch, link_pb2.DispatcherBatch):
        raise StreamLost("ended", "the dispatcher ended the stream")
    return batch


async def _write(call: _Call, batch: link_pb2.ConnectorBatch) -> None:
    try:
        await call.write(batch)
    except grpc.aio.AioRpcError as error:
        raise StreamLost(error_reason(error).lower(), error.details() or "") from None
    except asyncio.InvalidStateError as error:
        raise StreamLost("ended", str(error)) from None
