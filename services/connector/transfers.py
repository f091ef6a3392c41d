"""Moves links between dispatchers: asks the next one, switches when it grants, leaves them where they are
when nobody does (docs/architecture.md). No link is closed for the want of a dispatcher."""

import asyncio
from collections import deque
from dataclasses import dataclass

from cloudhub.v1 import link_pb2
from services.connector.edge_link import EdgeLink, LinkStream, LinkTools
from services.connector.links import Links, StreamChoice
from services.connector.moves import Moves
from services.connector.tokens import TokenBucket
from services.runtime.backoff import Backoff
from services.runtime.logs import get_log

_log = get_log("connector.transfers")
_Reason = link_pb2.CloseReason

# Links that wait for the verdicts of one dispatcher; the others follow as those come.
_MOST_ASKED = 256
_BACKOFF = Backoff(0.25, 5.0, jitter=0.5)
# Rate at which links move to a better dispatcher although theirs does well; how many are looked at at once.
_BETTER_PER_SECOND = 100.0
_LOOK_AT = 1000
_TICK_SECONDS = 0.05
# Ends of links that are kept for the next dispatcher.
_MOST_UNTOLD = 20_000
# A link without a dispatcher is closed after so long without a byte: twice a dispatcher's default keepalive,
# since nobody is there who knows what the edge is held to.
_SILENT_SECONDS = 90.0
_ASK_SECONDS = 60.0
_SILENCE_CHECK_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Untold:
    """A link that ended without a dispatcher."""

    announcement: link_pb2.LinkAnnouncement
    epoch: int
    reason: link_pb2.CloseReason.ValueType
    detail: str


class Transfers:
    """`run` must be awaited by the owner; everything else is synchronous."""

    def __init__(self, links: Links, streams: StreamChoice, tools: LinkTools, verdict_seconds: float) -> None:
        self._links = links
        self._streams = streams
        self._loop = tools.loop
        self._metrics = tools.metrics
        self._moves = Moves(verdict_seconds, _MOST_ASKED)
        # Links that a better dispatcher may have come for, not looked at yet.
        self._unsettled: deque[int] = deque()
        # At the bound the oldest goes: its session ends by its lease.
        self._untold: deque[_Untold] = deque(maxlen=_MOST_UNTOLD)
        self._better = TokenBucket(_BETTER_PER_SECOND, _BETTER_PER_SECOND / 10, tools.loop.time())
        self._silence_at = tools.loop.time()
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        """How many links look for another dispatcher."""
        return len(self._moves)

    async def run(self) -> None:
        """Works until cancelled."""
        while True:
            self._wake.clear()
            self.step(self._loop.time())
            try:
                async with asyncio.timeout_at(self._next_at()):
                    await self._wake.wait()
            except TimeoutError:
                continue

    # What happened.

    def dispatchers_changed(self) -> None:
        """A dispatcher came, went, drains, or is late or again in time with its lease."""
        for link in self._links.admitted():
            if link.stream is None or not link.stream.fit:
                self._moves.want(link.number)
        self._moves.reconsider()
        self._unsettled = deque(link.number for link in self._links.admitted())
        self._wake.set()

    def stream_lost(self, stream: LinkStream) -> None:
        """Links that asked there ask elsewhere."""
        self._moves.lost(stream.address)
        self._wake.set()

    def let_go(self, link: EdgeLink) -> None:
        """The link's dispatcher no longer holds its session, and another one may not know of the link."""
        link.detach()
        self._moves.want(link.number)
        self._wake.set()

    def link_over(self, link: EdgeLink, reason: link_pb2.CloseReason.ValueType, detail: str) -> None:
        """The link has ended. If no dispatcher is there to hear of it, the next one does, which ends its
        session: else that would last until its dispatcher's lease, or more, is over."""
        self._moves.forget(link.number)
        if link.state is not None and link.stream is None and link.candidate is None:
            self._untold.append(_Untold(link.announcement(), link.epoch, reason, detail))
            self._wake.set()

    def verdict(self, stream: LinkStream, link: EdgeLink, verdict: link_pb2.LinkVerdict) -> None:
        """The answer to a transfer. Grants count by their epochs: the highest is the registry's last word,
        also if the link had given up waiting for it."""
        if verdict.epoch > link.epoch:
            self._count("moved")
            self._moves.forget(link.number)
            link.move(stream, verdict.epoch)
            if not stream.fit:
                self._moves.want(link.number)
        elif verdict.epoch:
            self._count("outdated")
            detail = "the link has moved on"
            stream.outgoing.end(link.number, verdict.epoch, _Reason.CLOSE_REASON_TRANSFERRED, detail)
        elif link.candidate is not stream:
            self._metrics.dropped.labels("verdict", "link_gone").inc()
        elif verdict.refusal.reason == link_pb2.REFUSAL_REASON_NOT_NEWEST:
            self._count("not_newest")
            reason = verdict.refusal.close_reason or _Reason.CLOSE_REASON_SUPERSEDED
            link.close(reason, verdict.refusal.detail)
        else:
            self._count("unavailable")
            self._rest(link.number)
        self._wake.set()

    # What to do about it.

    def step(self, now: float) -> None:
        """Everything that is due."""
        for number in self._moves.pass_time(now):
            self._count("no_verdict")
            self._rest(number)
        self._look_for_better(now)
        for number in self._moves.take_due():
            self._ask(number, now)
        self._tell_ends()
        if now >= self._silence_at:
            self._silence_at = now + _SILENCE_CHECK_SECONDS
            self._close_silent(now)

    def _ask(self, number: int, now: float) -> None:
        link = self._links.get(number)
        if link is None or link.state is None or link.over:
            self._moves.forget(number)
            return
        candidate = self._streams.best(link.identity.node_id)
        if candidate is None:
            # Shelved: asked again when the dispatchers change.
            link.candidate = None
        elif candidate is link.stream:
            # Its own dispatcher is the best again.
            link.candidate = None
            self._moves.forget(number)
        elif candidate.congested or not self._moves.has_room(candidate.address):
            self._moves.put_back(number)
        else:
            link.candidate = candidate
            candidate.outgoing.transfer(link.announcement(), link.epoch)
            self._moves.asked(number, candidate.address, now)

    def _tell_ends(self) -> None:
        """The session goes to a dispatcher as that of a link that moves, and ends there at once."""
        while self._untold:
            one = self._untold[0]
            stream = self._streams.best(one.announcement.node_id)
            if stream is None or stream.congested:
                return  # until the dispatchers change, or the next step
            stream.outgoing.transfer(one.announcement, one.epoch)
            stream.outgoing.end(one.announcement.link, 0, one.reason, one.detail)
            self._untold.popleft()
            self._count("ended")

    def _rest(self, number: int) -> None:
        link = self._links.get(number)
        if link is not None:
            link.candidate = None
        self._moves.rest(number, self._loop.time(), _BACKOFF.random_delay)

    def _look_for_better(self, now: float) -> None:
        for _ in range(min(len(self._unsettled), _LOOK_AT)):
            number = self._unsettled.popleft()
            link = self._links.get(number)
            if link is None or link.state is None or link.stream is None or number in self._moves:
                continue
            best = self._streams.best(link.identity.node_id)
            if best is None or best is link.stream:
                continue
            if not self._better.take(now):
                self._unsettled.appendleft(number)
                return
            self._moves.want(number)

    def _close_silent(self, now: float) -> None:
        for link in self._links.admitted():
            if link.stream is not None or (idle := link.transport.idle_seconds(now)) <= _ASK_SECONDS:
                continue
            if idle > _SILENT_SECONDS:
                detail = f"no byte for {idle:.0f} s, and no dispatcher"
                link.close(_Reason.CLOSE_REASON_KEEPALIVE_TIMEOUT, detail)
            else:
                # Looked at every few seconds: an edge whose own beat is slower is asked more than once.
                link.transport.ping()

    def _next_at(self) -> float:
        at = self._silence_at
        moves_at = self._moves.next_at()
        if moves_at is not None:
            at = min(at, moves_at)
        if self._unsettled or self._moves.is_due:
            at = min(at, self._loop.time() + _TICK_SECONDS)
        return at

    def _count(self, outcome: str) -> None:
        self._metrics.transfers.labels(outcome).inc()
