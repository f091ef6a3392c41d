"""A dispatcher as connectors see it: an in-process LinkService that tests script."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from cloudhub.v1 import link_pb2, link_pb2_grpc, message_pb2


class LinkDispatcher(link_pb2_grpc.LinkServiceServicer):
    """Keeps everything connectors send and sends what tests say.

    By default every announced link is admitted and every transfer granted, with epochs counting up from
    `first_epoch`.
    """

    def __init__(
        self, dispatcher_id: str = "dispatcher-1", lease_seconds: float = 15.0, first_epoch: int = 101
    ) -> None:
        self.dispatcher_id = dispatcher_id
        self.lease_seconds = lease_seconds
        self.admit = True
        self.grant = True
        self.receipts = True
        self._may_greet = asyncio.Event()
        self._may_greet.set()
        self.hellos: list[link_pb2.ConnectorHello] = []
        self.announcements: list[link_pb2.LinkAnnouncement] = []
        self.transfers: list[link_pb2.LinkTransfer] = []
        self.written: list[link_pb2.WrittenReport] = []
        self.upstream: list[link_pb2.UpstreamFrame] = []
        self.activity: list[link_pb2.ActivityReport] = []
        self.ended: list[link_pb2.LinkEnd] = []
        self.batches: list[link_pb2.ConnectorBatch] = []
        self.heartbeats = 0
        self.streams = 0
        self.streams_ended = 0
        self.epochs: dict[int, int] = {}
        self.port = 0
        self.next_epoch = first_epoch
        self._changed = asyncio.Event()
        self._out: asyncio.Queue[link_pb2.DispatcherBatch | None] = asyncio.Queue()
        self._numbers: dict[tuple[int, bool], int] = {}

    @asynccontextmanager
    async def running(self, port: int = 0) -> AsyncIterator["LinkDispatcher"]:
        """Serves on a free port, or the one given, until the block is left."""
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        link_pb2_grpc.add_LinkServiceServicer_to_server(self, server)
        self.port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        try:
            yield self
        finally:
            await server.stop(0)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    # What tests do.

    def send(self, batch: link_pb2.DispatcherBatch) -> None:
        """Sends a batch as it is."""
        self._out.put_nowait(batch)

    def end_stream(self) -> None:
        """Ends the stream from the dispatcher's side."""
        self._out.put_nowait(None)

    def message(
        self,
        link: int,
        message: message_pb2.Message,
        *,
        direct: bool = False,
        epoch: int | None = None,
        repeats: int = 0,
    ) -> link_pb2.DownstreamFrame:
        """A frame with the lane's next number and the link's epoch."""
        key = (link, direct)
        self._numbers[key] = self._numbers.get(key, 0) + 1
        return link_pb2.DownstreamFrame(
            link=link,
            epoch=self.epochs[link] if epoch is None else epoch,
            number=self._numbers[key],
            direct=direct,
            message=message.SerializeToString(),
            repeats=repeats,
        )

    def send_messages(self, link: int, *messages: message_pb2.Message, direct: bool = False) -> None:
        """Sends messages to a link in one batch."""
        self.send(
            link_pb2.DispatcherBatch(
                downstream=[self.message(link, message, direct=direct) for message in messages]
            )
        )

    async def send_and_wait(self, message: message_pb2.Message, repeats: int = 0) -> int:
        """Sends a message to link 1; its number, once the connector says that it is written."""
        frame = self.message(1, message, repeats=repeats)
        self.send(link_pb2.DispatcherBatch(downstream=[frame]))
        await self.until(lambda: self.written and self.written[-1].acknowledged_through >= frame.number)
        return frame.number

    def close_link(self, link: int, reason: link_pb2.CloseReason.ValueType, detail: str = "") -> None:
        """Asks the connector to close a link."""
        self.send(
            link_pb2.DispatcherBatch(
                closes=[link_pb2.LinkClose(link=link, epoch=self.epochs[link], reason=reason, detail=detail)]
            )
        )

    def beat(self, lease_age_seconds: float = 0.0) -> None:
        """A heartbeat that says how old the lease is."""
        self.send(link_pb2.DispatcherBatch(heartbeat=True, lease_age_seconds=lease_age_seconds))

    def drain(self) -> None:
        """Asks for every link to be transferred."""
        self.send(link_pb2.DispatcherBatch(draining=True))

    def refuse(
        self,
        link: int,
        reason: link_pb2.RefusalReason.ValueType,
        close_reason: link_pb2.CloseReason.ValueType = link_pb2.CLOSE_REASON_UNSPECIFIED,
    ) -> None:
        """Refuses an announcement or a transfer."""
        self.give_verdict(link, link_pb2.Refusal(reason=reason, close_reason=close_reason))

    @property
    def hold_hello(self) -> bool:
        """Whether connectors get no answer to their hello; those that wait get it when that ends."""
        return not self._may_greet.is_set()

    @hold_hello.setter
    def hold_hello(self, held: bool) -> None:
        if held:
            self._may_greet.clear()
        else:
            self._may_greet.set()

    def give_verdict(self, link: int, refusal: link_pb2.Refusal | None = None) -> int:
        """Admits or refuses; answers the epoch (0 if refused)."""
        epoch = 0
        if refusal is None:
            epoch, self.next_epoch = self.next_epoch, self.next_epoch + 1
            self.epochs[link] = epoch
            self._numbers.pop((link, False), None)
            self._numbers.pop((link, True), None)
        self.send(
            link_pb2.DispatcherBatch(verdicts=[link_pb2.LinkVerdict(link=link, epoch=epoch, refusal=refusal)])
        )
        return epoch

    async def until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Returns when the condition holds; it is looked at after every batch."""
        async with asyncio.timeout(seconds):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def announced(self, count: int = 1) -> link_pb2.LinkAnnouncement:
        """The announcement number `count`, waiting for it."""
        await self.until(lambda: len(self.announcements) >= count)
        return self.announcements[count - 1]

    async def asked(self, count: int = 1) -> link_pb2.LinkTransfer:
        """The transfer number `count`, waiting for it."""
        await self.until(lambda: len(self.transfers) >= count)
        return self.transfers[count - 1]

    # What connectors call.

    async def Attach(
        self, request_iterator: AsyncIterator[link_pb2.ConnectorBatch], context: Any
    ) -> AsyncIterator[link_pb2.DispatcherBatch]:
        self.streams += 1
        self._out = asyncio.Queue()
        reader = asyncio.create_task(self._read(request_iterator))
        try:
            await self._may_greet.wait()
            yield link_pb2.DispatcherBatch(
                hello=link_pb2.DispatcherHello(
                    dispatcher_id=self.dispatcher_id, name="test", lease_seconds=self.lease_seconds
                )
            )
            self._changed.set()
            while (batch := await self._out.get()) is not None:
                yield batch
        finally:
            reader.cancel()
            self.streams_ended += 1
            self._changed.set()

    async def _read(self, batches: AsyncIterator[link_pb2.ConnectorBatch]) -> None:
        async for batch in batches:
            self._note(batch)
        self._out.put_nowait(None)

    def _note(self, batch: link_pb2.ConnectorBatch) -> None:
        self.batches.append(batch)
        if batch.HasField("hello"):
            self.hellos.append(batch.hello)
        self.announcements.extend(batch.announcements)
        self.transfers.extend(batch.transfers)
        self.written.extend(batch.written)
        self.upstream.extend(batch.upstream)
        self.activity.extend(batch.activity)
        self.ended.extend(batch.ended)
        self.heartbeats += batch.heartbeat
        if self.admit:
            for announcement in batch.announcements:
                self.give_verdict(announcement.link)
        if self.grant:
            for transfer in batch.transfers:
                self.give_verdict(transfer.link.link)
        if self.receipts and batch.upstream:
            through = {frame.link: frame for frame in batch.upstream}
            self.send(
                link_pb2.DispatcherBatch(
                    receipts=[
                        link_pb2.Receipt(link=link, epoch=frame.epoch, through=frame.number)
                        for link, frame in through.items()
                    ]
                )
            )
        self._changed.set()
