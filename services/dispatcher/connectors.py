"""The dispatcher's end of a connector's stream: what goes out is batched, never waited for."""

import asyncio
from typing import Any

from cloudhub.v1.link_pb2 import (
    CloseReason,
    DispatcherBatch,
    DispatcherHello,
    LinkClose,
    LinkVerdict,
    Probe,
    ReadControl,
    Receipt,
    Refusal,
)
from cloudhub.v1.message_pb2 import Message

# Keeps one gRPC message far below the receivers' limit (runtime.rpc.MOST_MESSAGE_BYTES).
MOST_BATCH_FRAMES = 512
MOST_BATCH_BYTES = 4 * 1024 * 1024


class ConnectorStream:
    """One attached connector. What queues here is bounded by the windows of its links."""

    def __init__(self, connector_id: str, name: str, address: str = "") -> None:
        self.connector_id = connector_id
        self.name = name
        self.address = address
        # Filled by `openings` and `link_servicer`: link -> Opening or NodeSession.
        self.links: dict[int, Any] = {}
        self._full: list[DispatcherBatch] = []
        self._batch = DispatcherBatch()
        self._batch_bytes = 0
        self._wake = asyncio.Event()
        self._finished = False

    def hello(self, dispatcher_id: str, name: str, lease_seconds: float) -> None:
        """The first thing on a stream."""
        self._batch.hello.CopyFrom(
            DispatcherHello(dispatcher_id=dispatcher_id, name=name, lease_seconds=lease_seconds)
        )
        self._wake.set()

    def admit(self, link: int, epoch: int) -> None:
        """The link's verdict: admitted."""
        self._batch.verdicts.append(LinkVerdict(link=link, epoch=epoch))
        self._wake.set()

    def refuse(self, link: int, refusal: Refusal) -> None:
        """The link's verdict: refused."""
        self._batch.verdicts.append(LinkVerdict(link=link, refusal=refusal))
        self._wake.set()

    def send(
        self, link: int, epoch: int, number: int, body: bytes, *, direct: bool, traceparent: str = ""
    ) -> None:
        """An encoded message to the edge; `traceparent` replaces the message's own."""
        if traceparent:
            body += Message(traceparent=traceparent).SerializeToString()  # the last value of a field counts
        batch = self._batch
        batch.downstream.add(link=link, epoch=epoch, number=number, direct=direct, message=body)
        self._batch_bytes += len(body) + 64
        if len(batch.downstream) >= MOST_BATCH_FRAMES or self._batch_bytes >= MOST_BATCH_BYTES:
            self._seal()
        self._wake.set()

    def receipt(self, link: int, epoch: int, through: int) -> None:
        """Upstream frames of the link up to this number are taken over."""
        self._batch.receipts.append(Receipt(link=link, epoch=epoch, through=through))
        self._wake.set()

    def read_control(self, link: int, epoch: int, *, paused: bool) -> None:
        """Stop or go on reading from the link."""
        self._batch.read_controls.append(ReadControl(link=link, epoch=epoch, paused=paused))
        self._wake.set()

    def probe(self, link: int, epoch: int) -> None:
        """Ask how long the link has been silent."""
        self._batch.probes.append(Probe(link=link, epoch=epoch))
        self._wake.set()

    def close(self, link: int, epoch: int, reason: CloseReason.ValueType, detail: str) -> None:
        """Close the link. Nothing of the link may follow, so the batch ends behind it."""
        self._batch.closes.append(LinkClose(link=link, epoch=epoch, reason=reason, detail=detail))
        self._wake.set()

    def heartbeat(self, lease_age_seconds: float) -> None:
        """The stream lives; and so long ago this dispatcher's lease was renewed."""
        self._batch.heartbeat = True
        self._batch.lease_age_seconds = lease_age_seconds
        self._wake.set()

    def draining(self) -> None:
        """This dispatcher stops: links are to be transferred."""
        self._batch.draining = True
        self._wake.set()

    def finish(self) -> None:
        """Nothing follows what is queued."""
        self._finished = True
        self._wake.set()

    @property
    def finished(self) -> bool:
        """Whether the stream ends once everything taken so far is written."""
        return self._finished

    def _seal(self) -> None:
        self._full.append(self._batch)
        self._batch, self._batch_bytes = DispatcherBatch(), 0

    async def next_batches(self) -> list[DispatcherBatch]:
        """Waits until something is queued and takes all of it, in order."""
        await self._wake.wait()
        self._wake.clear()
        self._seal()
        full, self._full = self._full, []
        return full
