"""One stock edge: its link, and what goes over it."""

import asyncio
import json
import ssl
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec
import structlog

from edge import protocol
from edge.black_hole import BlackHole
from edge.link import Link
from edge.node import MessageIds
from edge.protocol import Header, Kind, MalformedFrame, Message, Route
from edge.reconnect import LinkEnd
from edge.settings import EdgeSettings
from edge.store import Change
from edge.transport import EdgeLink
from edge.writer import Writer
from harness.stock_edge.dialling import KEEPALIVE_SECONDS, Dialling
from harness.stock_edge.flow import Inbound, SendRate
from harness.stock_edge.rules import decide, reparsed
from harness.stock_edge.talk import Saying, Talk

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class Counters:
    """What one node has seen since the process started."""

    links_opened: int = 0
    dials_failed: int = 0
    dialled_seconds: float = 0.0
    """How long the present link, or the last one, was dialled for: from the first dial on, in seconds of its
    own time."""
    received: int = 0
    acknowledged: int = 0
    swallowed: Counter[str] = field(default_factory=Counter)
    malformed: int = 0
    lost_with_link: int = 0
    """Messages of its own that were written to a link that had ended."""
    uploads_confirmed: int = 0


class StockNode:
    """`run` must be awaited by the fleet that made it; `on_sent` gets what was acknowledged when it is."""

    def __init__(
        self,
        node_id: str,
        settings: EdgeSettings,
        writer: Writer,
        ids: MessageIds,
        *,
        pace: float,
        edged: bool,
        on_link: Callable[["StockNode", bool], None],
        on_sent: Callable[[Sequence[Change]], None],
    ) -> None:
        self.node_id = node_id
        self.counters = Counters()
        self.is_hushed = False
        """Whether it leaves out what it would ask by itself."""
        self.inbound: Inbound[Message] = Inbound()
        self._settings = settings
        # The CA is read once: another one in its place is never seen.
        self._authority = settings.ca.read_text()
        self._context = self._tls()
        self._writer = writer
        self._ids = ids
        self._pace = pace
        self._on_link = on_link
        self._on_sent = on_sent
        self._dialling = Dialling(pace)
        self._talk = Talk(node_id, ids.next, edged=edged, pace=pace)
        self._link: Link | None = None
        self._opened = False
        self._dialled_at: float | None = None
        self._is_storing = False
        self._uploads = 0
        self._keepalive_at = 0.0
        self._rate = SendRate(0.0, pace)
        self._outgoing: deque[tuple[bytes, Change | None]] = deque()
        self._send_timer: asyncio.TimerHandle | None = None
        self._noticed = asyncio.Event()
        self._rest_is_over = asyncio.Event()
        self._stopped = asyncio.Event()
        self._black_hole = BlackHole(lambda: self._link)

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # as Go's verifier does
        context.load_verify_locations(cadata=self._authority)
        context.load_cert_chain(*settings.certificate_files(self.node_id))
        return context

    # Life

    async def run(self, dials: asyncio.Semaphore) -> None:
        """Dials in rounds until stopped."""
        while not self._stopped.is_set():
            dial = self._dialling.next()
            await self._rest(dial.after_seconds)
            await self._black_hole.over()
            if self._stopped.is_set():
                return
            if self._dialled_at is None:
                self._dialled_at = asyncio.get_running_loop().time()
            end = await self._one_link(dials, dial.uses)
            log.info("link.ended", node=self.node_id, cause=end.cause, code=end.code, detail=end.detail)

    async def _rest(self, seconds: float) -> None:
        if seconds > 0:
            try:
                async with asyncio.timeout(seconds):
                    await self._stopped.wait()
            except TimeoutError:
                pass

    async def _one_link(self, dials: asyncio.Semaphore, uses: int) -> LinkEnd:
        settings = self._settings
        headers = [
            (name, value) for name, value in settings.headers(self.node_id).items() if name != "Connectionuse"
        ]
        headers += [("Connectionuse", "msg")] * uses
        link = self._link = Link(settings.url(settings.servers[0], self.node_id), headers, self)
        self._noticed.clear()
        try:
            async with dials:
                if self._stopped.is_set():
                    return LinkEnd("stopped")
                await link.dial(self._context, settings.open_seconds)
            end = await link.ended
            if self._opened:
                self._on_link(self, False)
                # It does not know: nobody looks at the socket until something is written to it.
                await self._noticed.wait()
                self._dialling.lost()
            else:
                self.counters.dials_failed += 1
            return end
        finally:
            link.abort(LinkEnd("stopped"))
            self._link = None
            self._close()

    def _close(self) -> None:
        self._opened = False
        self.inbound.clear()
        self._outgoing.clear()
        self._talk.closed()
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def stop(self) -> None:
        """Lets `run` end; the link is cut."""
        self._stopped.set()
        self._noticed.set()
        self._black_hole.end()
        if self._link is not None:
            self._link.abort(LinkEnd("stopped"))

    def certificate_renewed(self) -> None:
        """It cuts its own link without a close frame, and is away for as long as after any other end."""
        self._context = self._tls()
        if self._link is not None:
            self._link.abort(LinkEnd("cut", "the certificate was renewed"))
            self._noticed.set()

    def cut(self) -> None:
        """Drops the link as a broken network would."""
        if self._link is not None:
            self._link.abort(LinkEnd("cut"))

    def block(self, seconds: float) -> None:
        """Behaves as behind a black hole for so long."""
        self._black_hole.begin(seconds)

    def tick(self, now: float) -> None:
        """Does what has become due, on the loop's clock."""
        if not self._opened:
            return
        if now >= self._keepalive_at:
            self._keepalive_at = now + KEEPALIVE_SECONDS / self._pace
            self._queue(protocol.keepalive(self._ids.next(), _now_ms()))
        next_at = self._talk.next_at
        if next_at is not None and next_at <= now and not self.is_hushed:
            self._say(self._talk.due(now))

    # What the link tells

    def link_opened(self, link: EdgeLink) -> None:
        """A keepalive at once, then what it asks by itself."""
        now = asyncio.get_running_loop().time()
        self._opened = True
        self._rate = SendRate(now, self._pace)
        self.counters.links_opened += 1
        if self._dialled_at is not None:
            self.counters.dialled_seconds = (now - self._dialled_at) * self._pace
            self._dialled_at = None
        self._keepalive_at = now + KEEPALIVE_SECONDS / self._pace
        self._queue(protocol.keepalive(self._ids.next(), _now_ms()))
        self._say(self._talk.opened(now))
        log.info("link.opened", node=self.node_id, links=self.counters.links_opened)
        self._on_link(self, True)

    def frame_received(self, link: EdgeLink, frame: bytes) -> None:
        """Puts a message into the queue; a frame that it cannot decode is the end of the link."""
        try:
            message = protocol.decode(frame)
            content = reparsed(bytes(message.content))
        except MalformedFrame as error:
            self.counters.malformed += 1
            link.abort(LinkEnd("malformed", str(error)))
            return
        self.counters.received += 1
        self.inbound.put(msgspec.structs.replace(message, content=msgspec.Raw(content)))
        self._handle()

    def _handle(self) -> None:
        """Handles what is in the queue, one at a time: the next when the last is stored."""
        while not self._is_storing and (message := self.inbound.take()) is not None:
            step = decide(message, self._talk)
            if step.kind is Kind.ANSWER:
                self._talk.answered(
                    message.header.parent_msg_id,
                    message.route.operation,
                    bytes(message.content),
                    asyncio.get_running_loop().time(),
                )
            if step.kind is Kind.SWALLOW:
                self.counters.swallowed[step.reason] += 1
            elif step.acknowledge or step.kind is not Kind.ANSWER:
                self._is_storing = True
                self._writer.change(Change(self.node_id, message, step, _now_ms(), self._link))

    def stored(self, change: Change, *, durable: bool) -> None:
        """What was handled last is in both stores, or was lost to a failing one."""
        self._is_storing = False
        if durable and change.step.acknowledge and change.link is self._link and self._opened:
            self.counters.acknowledged += 1
            traceparent = change.message.header.traceparent
            self._queue(
                protocol.acknowledgement(change.message, self._ids.next(), _now_ms(), traceparent), change
            )
        self._handle()

    # What it sends

    async def upload(self, data: bytes, resource: str = "telemetry") -> None:
        """User data (one JSON value), once: nobody repeats it. Numbers grow, over restarts too."""
        self._uploads = max(self._uploads + 1, time.time_ns() // 1000)
        content = b'{"number":%d,"at_ms":%d,"data":%s}' % (self._uploads, _now_ms(), data)
        self._send(Route("servicebus", "user", "upload", resource), content)

    def report_status(self, resource: str, content: bytes) -> None:
        """The status of a pod, as a request that carries a patch."""
        self._send(
            Route("edged", "meta", "patch", resource.replace("podstatus", "podpatch")),
            json.dumps(content.decode()).encode(),
        )

    def _send(self, route: Route, content: bytes) -> None:
        self._queue(
            protocol.encode(
                Message(Header(self._ids.next(), timestamp=_now_ms()), route, msgspec.Raw(content))
            )
        )

    def _say(self, sayings: Sequence[Saying]) -> None:
        for one in sayings:
            self._queue(
                protocol.encode(
                    Message(
                        Header(one.message_id, timestamp=_now_ms()),
                        Route(one.source, one.group, one.operation, one.resource),
                        msgspec.Raw(json.dumps(one.content).encode()),
                    )
                )
            )

    def _queue(self, frame: bytes, change: Change | None = None) -> None:
        if not self._opened:
            return
        self._outgoing.append((frame, change))
        self._flush()

    def _flush(self) -> None:
        link = self._link
        if link is None or not self._opened or self._send_timer is not None:
            return
        if link.ended.done():
            # The first write that fails; what it had to say is lost.
            self.counters.lost_with_link += len(self._outgoing)
            self._outgoing.clear()
            self._noticed.set()
            return
        loop = asyncio.get_running_loop()
        count = self._rate.take(len(self._outgoing), loop.time())
        sent = [self._outgoing.popleft() for _ in range(count)]
        if sent:
            link.send([frame for frame, _ in sent])
            changes = [change for _, change in sent if change is not None]
            if changes:
                self._on_sent(changes)
        if self._outgoing:
            self._send_timer = loop.call_later(self._rate.next_in(), self._go_on)

    def _go_on(self) -> None:
        self._send_timer = None
        self._flush()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
