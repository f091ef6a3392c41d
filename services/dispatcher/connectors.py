"""The dispatcher's end of a connector's stream: what goes out is batched, never waited for."""

import asyncio
from collections import deque
from typing import Any

from cloudhub.v1.link_pb2 import (
    CloseReason,
    ConnectorQuestion,
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
from services.dispatcher.connector_questions import StreamQuestions
from services.dispatcher.connector_room import ConnectorRoom, RoomLimits
from services.dispatcher.sizes import ELEMENT_BYTES

# Far below what one gRPC message may have (runtime.rpc.MOST_MESSAGE_BYTES); an element larger than that goes
# alone, and none is larger than sizes.MAX_BODY_BYTES.
MOST_BATCH_FRAMES = 512
MOST_BATCH_BYTES = 4 * 1024 * 1024
MAX_BATCH_ELEMENTS = 4096


class ConnectorStream:
    """One attached connector. What queues here is bounded by `room`."""

    def __init__(
        self,
        connector_id: str,
        name: str,
        address: str = "",
        limits: RoomLimits | None = None,
        version: str = "",
    ) -> None:
        self.connector_id = connector_id
        self.name = name
        self.address = address
        self.version = version
        # It takes no new links.
        self.connector_drains = False
        # Filled by `openings` and `link_servicer`: link -> Opening or NodeSession.
        self.links: dict[int, Any] = {}
        # Whoever waits in it is a NodeSession.
        self.room: ConnectorRoom[Any] = ConnectorRoom(limits)
        self.questions = StreamQuestions(self._question)
        self._full: list[DispatcherBatch] = []
        self._sizes: deque[int] = deque()
        self._batch = DispatcherBatch()
        self._batch_bytes = 0
        self._batch_elements = 0
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
        self._room(ELEMENT_BYTES).verdicts.append(LinkVerdict(link=link, epoch=epoch))

    def refuse(self, link: int, refusal: Refusal) -> None:
        """The link's verdict: refused."""
        verdict = LinkVerdict(link=link, refusal=refusal)
        self._room(ELEMENT_BYTES + verdict.ByteSize()).verdicts.append(verdict)

    def send(
        self,
        link: int,
        epoch: int,
        number: int,
        body: bytes,
        *,
        direct: bool,
        traceparent: str = "",
        repeats: int = 0,
    ) -> None:
        """An encoded message to the edge; `traceparent` replaces the message's own. `repeats`: the number
        that it had when it was last sent over the link."""
        if traceparent:
            body += Message(traceparent=traceparent).SerializeToString()  # the last value of a field counts
        batch = self._room(len(body) + ELEMENT_BYTES)
        batch.downstream.add(
            link=link, epoch=epoch, number=number, direct=direct, message=body, repeats=repeats
        )
        if len(batch.downstream) >= MOST_BATCH_FRAMES:
            self._seal()

    def receipt(self, link: int, epoch: int, through: int) -> None:
        """Upstream frames of the link up to this number are taken over."""
        self._room(ELEMENT_BYTES).receipts.append(Receipt(link=link, epoch=epoch, through=through))

    def read_control(self, link: int, epoch: int, *, paused: bool) -> None:
        """Stop or go on reading from the link."""
        control = ReadControl(link=link, epoch=epoch, paused=paused)
        self._room(ELEMENT_BYTES).read_controls.append(control)

    def probe(self, link: int, epoch: int, *, ping: bool = False) -> None:
        """Ask how long the link has been silent, and with `ping` its edge for a sign of life."""
        self._room(ELEMENT_BYTES).probes.append(Probe(link=link, epoch=epoch, ping=ping))

    def close(self, link: int, epoch: int, reason: CloseReason.ValueType, detail: str) -> None:
        """Close the link: the last that is said of it."""
        close = LinkClose(link=link, epoch=epoch, reason=reason, detail=detail)
        self._room(ELEMENT_BYTES + close.ByteSize()).closes.append(close)

    def _question(self, question: ConnectorQuestion) -> None:
        self._room(ELEMENT_BYTES + question.ByteSize()).questions.append(question)

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

    def _room(self, size_bytes: int) -> DispatcherBatch:
        """The batch for an element of at most that size: the last one, unless it would become too large."""
        full = self._batch_bytes + size_bytes > MOST_BATCH_BYTES or self._batch_elements >= MAX_BATCH_ELEMENTS
        if full and self._batch_elements:
            self._seal()
        self._batch_bytes += size_bytes
        self._batch_elements += 1
        self.room.queued_bytes += size_bytes
        self._wake.set()
        return self._batch

    def _seal(self) -> None:
        self._full.append(self._batch)
        self._sizes.append(self._batch_bytes)
        self._batch, self._batch_bytes, self._batch_elements = DispatcherBatch(), 0, 0

    async def next_batches(self) -> list[DispatcherBatch]:
        """Waits until something is queued and takes all of it, in order."""
        await self._wake.wait()
        self._wake.clear()
        self._seal()
        full, self._full = self._full, []
        return full

    def passed_on(self) -> None:
        """The stream has taken the next one of the batches that `next_batches` gave."""
        self.room.queued_bytes -= self._sizes.popleft()
