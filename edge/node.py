"""One edge node: keeps a link to the hub, applies what comes, sends what is its own."""

import asyncio
import os
import random
import ssl
import time
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import msgspec
import structlog

from edge import protocol
from edge.black_hole import BlackHole
from edge.content import ContentRefused, check_content, check_resource, check_size
from edge.link import Link
from edge.outbox import SetAside, Upload, UploadWindow
from edge.protocol import Header, Kind, MalformedFrame, Message, Route
from edge.quic_link import QuicLink
from edge.reconnect import OBJECTIONS, LinkEnd, Reconnect
from edge.servers import Servers
from edge.settings import EdgeSettings, SettingsFault
from edge.store import Change, StoreFault
from edge.transport import EdgeLink, FirstRoundTrip, TransportChoice
from edge.writer import Writer

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(__name__)

MOST_REQUESTS = 256
MOST_STATUS_REPORTS = 1000
_TOO_LARGE = 1009


class RequestFailed(Exception):
    """The hub answered a request with an error, or the link that carried it is gone."""


class OutboxFull(Exception):
    """So many uploads wait for the hub already that no more are taken."""


@dataclass(slots=True)
class Counters:
    """What one node has seen since the process started."""

    links_opened: int = 0
    dials_failed: int = 0
    received: int = 0
    acknowledged: int = 0
    swallowed: Counter[str] = field(default_factory=Counter)
    """Messages without effect, by reason."""
    malformed: int = 0
    not_stored: int = 0
    """Messages not acknowledged because the store failed."""
    uploads_stored: int = 0
    uploads_confirmed: int = 0
    uploads_refused: int = 0
    """Error answers to uploads; they are repeated."""
    uploads_set_aside: int = 0
    """Durable uploads that the hub does not take."""
    objections: int = 0
    """Links that the hub ended over something it was sent."""
    reports_refused: int = 0
    """Of these, over a status report or request that was too large for it."""
    reports_dropped: int = 0

    @property
    def reconnects(self) -> int:
        """Links opened after the first."""
        return max(0, self.links_opened - 1)


class MessageIds:
    """Unique message ids in the form of a UUID, cheap: random for the process, then counted."""

    def __init__(self) -> None:
        start = os.urandom(10).hex()
        self._prefix = f"{start[:8]}-{start[8:12]}-4{start[12:15]}-a{start[15:18]}-"
        self._last = 0

    def next(self) -> str:
        """A new id."""
        self._last += 1
        return f"{self._prefix}{self._last:012x}"


class EdgeAgent:
    """One node of a fleet. `run` must be awaited by the fleet that made it."""

    def __init__(
        self,
        node_id: str,
        settings: EdgeSettings,
        writer: Writer,
        ids: MessageIds,
        *,
        last_number: int = 0,
        on_link: Callable[["EdgeAgent", bool], None] = lambda _agent, _opened: None,
        on_set_aside: Callable[[SetAside], None] = lambda _refused: None,
        on_certificate_refused: Callable[[str], None] = lambda _node_id: None,
    ) -> None:
        self.node_id = node_id
        self.counters = Counters()
        self._settings = settings
        self._context: ssl.SSLContext = settings.tls(node_id)
        self._warn_of_key()
        self._servers = Servers(settings.servers)
        self._quic_servers = Servers(settings.quic_servers)
        self._transports = TransportChoice(settings.transport)
        self._round_trip = FirstRoundTrip()
        self._writer = writer
        self._ids = ids
        self._on_link = on_link
        self._on_set_aside = on_set_aside
        self._on_certificate_refused = on_certificate_refused
        self._link: EdgeLink | None = None
        self._dialled: Literal["websocket", "quic"] = "websocket"
        self._opened = False
        self._unstored = 0
        self._keepalive_at = 0.0
        self._window = UploadWindow(settings.uploads_in_flight, settings.repeat_seconds)
        self._last_number = last_number
        self._storing: dict[str, asyncio.Future[None]] = {}
        # Of the reports and requests that the present link has carried: bytes and resource.
        self._largest = (0, "")
        self._requests: dict[str, asyncio.Future[Message]] = {}
        self._reports: OrderedDict[str, bytes] = OrderedDict()
        self._stop = asyncio.Event()
        self._dial_now = asyncio.Event()
        self._black_hole = BlackHole(lambda: self._link)

    def __contains__(self, msg_id: object) -> bool:
        """Whether a request or upload of ours waits for an answer to `msg_id`."""
        return msg_id in self._requests or msg_id in self._window

    @property
    def connected(self) -> bool:
        """Whether the hub has admitted the present link."""
        return self._opened

    @property
    def uploads_waiting(self) -> int:
        """Durable uploads that the hub has not confirmed."""
        return len(self._window)

    # Life

    async def run(self, dials: asyncio.Semaphore) -> None:
        """Dials, and dials again, until stopped."""
        settings = self._settings
        reconnect = Reconnect(settings.first_delay_seconds, settings.most_delay_seconds)
        told = LinkEnd("")
        loop = asyncio.get_running_loop()
        while not self._stop.is_set():
            await self._black_hole.over()
            end = await self._one_link(dials)
            if end.cause == "stopped":
                break
            if self._dialled == "quic":
                self._round_trip.ended(end)
            if self._transports.ended(self._dialled, end, loop.time()):
                log.info("quic.blocked", node=self.node_id, detail=end.detail)
                continue
            delay = reconnect.delay(end, random.random())
            if (end.cause, end.detail, end.code) != (told.cause, told.detail, told.code) or end.open_seconds:
                log.info(
                    "link.ended",
                    node=self.node_id,
                    cause=end.cause,
                    code=end.code,
                    detail=end.detail,
                    open_seconds=round(end.open_seconds, 1),
                    again_in_seconds=round(delay, 1),
                )
                told = end
            self._dial_now.clear()
            if self._stop.is_set():
                break
            if end.certificate_refused:
                self._on_certificate_refused(self.node_id)
            try:
                async with asyncio.timeout(delay):
                    await self._dial_now.wait()
            except TimeoutError:
                pass

    async def _one_link(self, dials: asyncio.Semaphore) -> LinkEnd:
        settings, headers = self._settings, self._settings.headers(self.node_id)
        self._dialled = self._transports.next(asyncio.get_running_loop().time())
        link: Link | QuicLink
        if self._dialled == "quic":
            link = QuicLink(settings.quic_address(self._quic_servers.next(random.random())), headers, self)
        else:
            url = settings.url(self._servers.next(random.random()), self.node_id)
            link = Link(url, headers.items(), self)
        self._link = link
        self._unstored = 0
        self._largest = (0, "")
        try:
            async with dials:
                if self._stop.is_set():
                    return LinkEnd("stopped")
                if isinstance(link, QuicLink):
                    configuration = settings.quic_tls(self.node_id, self._round_trip.seconds)
                    await link.dial(configuration, settings.quic_open_seconds)
                else:
                    await link.dial(self._context, settings.open_seconds)
            end = await link.ended
            if end.cause == "closed" and end.code in OBJECTIONS:
                self._objected(end)
            return end
        finally:
            link.abort(LinkEnd("stopped"))
            self._link = None
            if self._opened:
                self._opened = False
                self._on_link(self, False)
            else:
                self.counters.dials_failed += 1
            for waiting in self._requests.values():
                if not waiting.done():
                    waiting.set_exception(RequestFailed("the link to the hub ended"))
            self._requests.clear()

    def _objected(self, end: LinkEnd) -> None:
        """The hub ended the link over what it was sent: an upload, unless none was in flight."""
        self.counters.objections += 1
        detail = f"{end.code} {end.detail}".strip()
        log.warning("link.objected", node=self.node_id, detail=detail, uploads=self._window.in_flight)
        size, resource = self._largest
        if end.code == _TOO_LARGE and size > max(map(_frame_bytes, self._window.sent()), default=0):
            self.counters.reports_refused += 1
            log.error("report.refused", node=self.node_id, resource=resource, bytes=size, reason=detail)
            return
        upload = self._window.objected()
        if upload is not None:
            self._set_aside(upload, f"the hub ended the link over it: {detail}")

    def _set_aside(self, upload: Upload, reason: str) -> None:
        self.counters.uploads_set_aside += 1
        log.error(
            "upload.set_aside",
            node=self.node_id,
            number=upload.number,
            resource=upload.resource,
            bytes=len(upload.content),
            reason=reason,
        )
        refused = SetAside(upload, reason)
        self._writer.set_aside(refused)
        self._on_set_aside(refused)

    def certificate_renewed(self) -> None:
        """Its files are new: the next dial shows them, and waits no longer. A link that is open stays."""
        try:
            self._context = self._settings.tls(self.node_id)
        except SettingsFault as fault:
            log.error("certificate.kept", node=self.node_id, detail=str(fault))
        else:
            self._warn_of_key()
            self._dial_now.set()

    def _warn_of_key(self) -> None:
        exposure = self._settings.key_exposure(self.node_id)
        if exposure:
            log.warning("private_key.exposed", node=self.node_id, detail=exposure)

    def stop(self) -> None:
        """Closes the link politely and lets `run` end."""
        self._stop.set()
        self._dial_now.set()
        self._black_hole.end()
        if self._link is not None:
            self._link.close()
        for storing in self._storing.values():
            if not storing.done():
                storing.set_exception(StoreFault("the agent stops"))
        self._storing.clear()

    def cut(self) -> None:
        """Drops the link as a broken network would: no close frame."""
        if self._link is not None:
            self._link.abort(LinkEnd("cut"))

    def block(self, seconds: float) -> None:
        """Behaves as behind a black hole for so long: reads nothing, sends nothing, dials nothing."""
        self._black_hole.begin(seconds)

    def tick(self, now: float) -> None:
        """Does what has become due; called about once a second with the loop's time."""
        link = self._link
        if link is None or not self._opened:
            return
        if now - link.received_at >= self._settings.silence_seconds:
            link.abort(LinkEnd("silent", f"nothing received for {now - link.received_at:.0f} s"))
        elif now >= self._keepalive_at:
            self._keepalive_at = now + self._settings.keepalive_seconds
            link.send([protocol.keepalive(self._ids.next(), _now_ms())])
            # The hub answers no keepalive; its pong is what proves the link is whole.
            link.ping()
        if self._window:
            self._send_uploads(now)

    # What the link tells

    def link_opened(self, link: EdgeLink) -> None:
        """Speaks first: a keepalive at once, then what waited for a link."""
        now = asyncio.get_running_loop().time()
        self._opened = True
        self.counters.links_opened += 1
        self._keepalive_at = now + self._settings.keepalive_seconds
        link.send([protocol.keepalive(self._ids.next(), _now_ms()), *self._reports.values()])
        for resource, report in self._reports.items():
            self._carries(resource, report)
        self._reports.clear()
        self._window.start_over()
        self._send_uploads(now)
        log.info("link.opened", node=self.node_id, links=self.counters.links_opened)
        self._on_link(self, True)

    def frame_received(self, link: EdgeLink, frame: bytes) -> None:
        """Decides on a message; what must be durable first goes to the writer."""
        try:
            message = protocol.decode(frame)
        except MalformedFrame as error:
            self.counters.malformed += 1
            link.abort(LinkEnd("malformed", str(error)))
            return
        self.counters.received += 1
        step = protocol.decide(message, self)
        if step.kind is Kind.SWALLOW:
            self.counters.swallowed[step.reason] += 1
            return
        if step.kind is Kind.ANSWER:
            self._answered(message)
        if step.acknowledge:
            self._unstored += 1
            if self._unstored == self._settings.most_unstored:
                link.pause("disk")
            self._writer.change(Change(self.node_id, message, step, _now_ms(), link))

    def _answered(self, message: Message) -> None:
        msg_id = message.header.parent_msg_id
        failed = message.route.operation == "error"
        request = self._requests.pop(msg_id, None)
        if request is not None:
            if request.done():
                return
            if failed:
                request.set_exception(RequestFailed(bytes(message.content).decode(errors="replace")))
            else:
                request.set_result(message)
        elif failed:
            self.counters.uploads_refused += 1
        else:
            now = asyncio.get_running_loop().time()
            upload = self._window.confirm(msg_id, now)
            if upload is not None:
                self.counters.uploads_confirmed += 1
                self._writer.settle(upload)
                self._send_uploads(now)

    # What the writer tells

    def stored(self, change: Change, *, durable: bool) -> None:
        """A message of ours is durable, or was lost to a failing store."""
        link = self._link
        if link is not None and change.link is link:
            self._unstored -= 1
            if self._unstored == self._settings.most_unstored // 2:
                link.resume("disk")
        if durable:
            self.counters.acknowledged += 1
        else:
            self.counters.not_stored += 1

    def upload_stored(self, upload: Upload, fault: StoreFault | None) -> None:
        """An upload of ours is durable, or was lost to a failing store."""
        storing = self._storing.pop(upload.msg_id, None)
        if fault is not None:
            if storing is not None and not storing.done():
                storing.set_exception(fault)
            return
        self.counters.uploads_stored += 1
        self._waits(upload)
        if storing is not None and not storing.done():
            storing.set_result(None)

    def restore_upload(self, upload: Upload) -> None:
        """Takes over an upload that is durable already; one of a former release may be none that can go."""
        try:
            check_content(upload.content)
            check_size(_upload_frame(upload), self._settings.max_message_bytes)
        except ContentRefused as refused:
            self._set_aside(upload, str(refused))
            return
        self._waits(upload)

    def _waits(self, upload: Upload) -> None:
        self._window.add(upload)
        if self._opened:
            self._send_uploads(asyncio.get_running_loop().time())

    # What the node's own programs ask

    async def upload(self, data: bytes, resource: str = "telemetry") -> int:
        """Sends user data (one JSON value) for sure; returns its number when it is durable here.

        It is repeated until the hub has confirmed it. Raises ContentRefused, OutboxFull or StoreFault; then
        nothing was kept.
        """
        check_content(data)
        check_resource(resource)
        if len(self._window) + len(self._storing) >= self._settings.most_uploads_waiting:
            raise OutboxFull(f"{self._settings.most_uploads_waiting} uploads wait for the hub already")
        number, at_ms = self._last_number + 1, _now_ms()
        content = b'{"number":%d,"at_ms":%d,"data":%s}' % (number, at_ms, data)
        upload = Upload(self.node_id, number, self._ids.next(), resource, content, at_ms)
        check_size(_upload_frame(upload), self._settings.max_message_bytes)
        self._last_number = number
        storing: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._storing[upload.msg_id] = storing
        self._writer.upload(upload)
        await storing
        return number

    def report_status(self, resource: str, content: bytes) -> None:
        """Sends the status of a resource (one JSON value), now or after the next connect; the latest wins.

        Raises ContentRefused.
        """
        check_content(content)
        check_resource(resource)
        frame = protocol.encode(
            Message(
                Header(self._ids.next(), timestamp=_now_ms()),
                Route("edged", "resource", "update", resource),
                msgspec.Raw(content),
            )
        )
        check_size(frame, self._settings.max_message_bytes)
        if self._link is not None and self._link.is_open:
            self._carries(resource, frame)
            self._link.send([frame])
            return
        self._reports[resource] = frame
        self._reports.move_to_end(resource)
        if len(self._reports) > MOST_STATUS_REPORTS:
            self._reports.popitem(last=False)
            self.counters.reports_dropped += 1

    async def request(
        self,
        resource: str,
        *,
        operation: str = "query",
        source: str = "metamanager",
        content: bytes = b"null",
        timeout_seconds: float = 10.0,
    ) -> Message:
        """Asks the hub and waits for its answer. Raises RequestFailed, TimeoutError when it gives up, or
        ContentRefused."""
        check_content(content)
        check_resource(resource)
        if self._link is None or not self._link.is_open:
            raise RequestFailed("there is no link to the hub")
        if len(self._requests) >= MOST_REQUESTS:
            raise RequestFailed(f"{MOST_REQUESTS} requests wait already")
        msg_id = self._ids.next()
        frame = protocol.encode(
            Message(
                Header(msg_id, timestamp=_now_ms(), sync=True),
                Route(source, "resource", operation, resource),
                msgspec.Raw(content),
            )
        )
        check_size(frame, self._settings.max_message_bytes)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._requests[msg_id] = answer
        self._carries(resource, frame)
        self._link.send([frame])
        try:
            async with asyncio.timeout(timeout_seconds):
                return await answer
        finally:
            self._requests.pop(msg_id, None)

    def _carries(self, resource: str, frame: bytes) -> None:
        self._largest = max(self._largest, (len(frame), resource))

    def _send_uploads(self, now: float) -> None:
        if self._link is None or not self._link.is_open:
            return
        uploads = self._window.take(now)
        if uploads:
            self._link.send([_upload_frame(upload) for upload in uploads])


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _frame_bytes(upload: Upload) -> int:
    return len(_upload_frame(upload))


def _upload_frame(upload: Upload) -> bytes:
    return protocol.encode(
        Message(
            Header(upload.msg_id, timestamp=upload.at_ms, sync=True),
            Route("eventbus", "user", "upload", upload.resource),
            msgspec.Raw(upload.content),
        )
    )
