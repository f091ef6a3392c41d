"""Links that move to this dispatcher: `services.dispatcher.openings` and `services.dispatcher.stranded`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from structlog.testing import capture_logs

from cloudhub.v1 import link_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.sessions_pb2 import LifecycleEvent
from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.keepalive import Keepalive
from services.dispatcher.openings import MOST_PER_BATCH, Opening, Openings
from services.dispatcher.policy import PolicySettings
from services.dispatcher.session_ends import SessionEnds
from services.dispatcher.sessions_client import SessionsClient
from services.dispatcher.stranded import Stranded
from services.dispatcher.upstream.upstream import Upstream
from services.runtime.clock import SystemClock
from services.runtime.errors import Unavailable
from services.runtime.line_budget import LINES_AT_ONCE
from services.runtime.tracing import Tracing
from tests.support.dispatcher import DeliveryHalf, ReadableStream, request
from tests.support.processes import eventually


class Sessions(SessionsClient):
    """Grants what it is asked, or says what it is told to."""

    def __init__(self) -> None:
        self.next_epoch = 100
        self.away = False
        self.activates = True
        self.refuses: dict[str, pb.CloseReason.ValueType] = {}
        self.refuses_to_open: pb.Refusal | None = None
        self.asked: list[sessions_pb2.TransferSession] = []
        self.activated: list[str] = []
        self.closed: list[tuple[str, int, int]] = []
        self.hold = asyncio.Event()
        self.hold.set()

    def _epoch(self) -> int:
        if self.away:
            raise Unavailable("SESSIONS_UNAVAILABLE", "sessions does not answer")
        self.next_epoch += 1
        return self.next_epoch

    async def open(self, sessions: Sequence[sessions_pb2.OpenSession]) -> Sequence[sessions_pb2.OpenVerdict]:
        if self.refuses_to_open:
            return [sessions_pb2.OpenVerdict(refusal=self.refuses_to_open) for _ in sessions]
        return [sessions_pb2.OpenVerdict(epoch=self._epoch()) for _ in sessions]

    async def activate(
        self, sessions: Sequence[sessions_pb2.SessionRef]
    ) -> Sequence[sessions_pb2.ActivateVerdict]:
        if not self.activates:
            raise Unavailable("SESSIONS_UNAVAILABLE", "sessions does not answer")
        self.activated += [session.node_id for session in sessions]
        return [sessions_pb2.ActivateVerdict(active=True) for _ in sessions]

    async def transfer(
        self, sessions: Sequence[sessions_pb2.TransferSession]
    ) -> Sequence[sessions_pb2.TransferVerdict]:
        self.asked += sessions
        await self.hold.wait()
        return [
            sessions_pb2.TransferVerdict(reason=self.refuses[one.node_id])
            if one.node_id in self.refuses
            else sessions_pb2.TransferVerdict(
                epoch=self._epoch(), earlier_events=[LifecycleEvent(event_id=f"of {one.node_id}")]
            )
            for one in sessions
        ]

    async def close(
        self, sessions: Sequence[sessions_pb2.CloseSession]
    ) -> Sequence[sessions_pb2.CloseVerdict]:
        self.closed += [(one.node_id, one.epoch, one.reason) for one in sessions]
        return [sessions_pb2.CloseVerdict(closed=True) for _ in sessions]


class Told(Upstream):
    """What the upstream half is told."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.adopted: list[str] = []
        self.left: list[tuple[str, int]] = []

    def session_opened(self, event: LifecycleEvent) -> None:
        self.opened.append(event.event_id)

    def session_closed(self, event: LifecycleEvent) -> None:
        raise AssertionError("no session that is told upstream ends here")

    def adopt_events(self, events: Sequence[LifecycleEvent]) -> None:
        self.adopted += [event.event_id for event in events]

    def session_left(self, node_id: str, epoch: int) -> None:
        self.left.append((node_id, epoch))


class Taking:
    """A dispatcher as far as links come to it. `stream` is that of connector c1."""

    def __init__(self, stranded_seconds: float) -> None:
        tracing = Tracing(None, "dispatcher")
        self.half = DeliveryHalf(PolicySettings(), None, tracing)
        self.delivery, self.metrics, self.stream = self.half.delivery, self.half.metrics, self.half.stream
        self.sessions, self.upstream = Sessions(), Told()
        clock = SystemClock()
        self.ends = SessionEnds(self.delivery, self.sessions, self.upstream, clock, self.metrics, tracing)
        self.stranded = Stranded(stranded_seconds, clock, self.ends)
        keepalive = Keepalive(45.0, clock, self.ends)
        self.openings = Openings(
            self.delivery,
            self.sessions,
            self.upstream,
            self.ends,
            keepalive,
            self.stranded,
            clock,
            self.metrics,
        )

    def ask(
        self,
        link: int = 1,
        node_id: str = "edge-1",
        epoch: int = 7,
        stream: ConnectorStream | None = None,
        open_seconds: int = 0,
    ) -> Opening:
        """A link asks for a session, or with an epoch for its own one."""
        announcement = pb.LinkAnnouncement(
            link=link, node_id=node_id, project_id="p1", transport="websocket", open_seconds=open_seconds
        )
        opening = Opening(stream or self.stream, announcement, epoch)
        opening.stream.links[link] = opening
        self.openings.announce(opening)
        return opening

    async def verdict(self, stream: ReadableStream | None = None) -> pb.LinkVerdict:
        """The next verdict on a stream."""
        found: list[pb.LinkVerdict] = []
        while not found:
            await asyncio.sleep(0)
            found = [one for batch in (stream or self.stream).taken() for one in batch.verdicts]
        assert len(found) == 1
        return found[0]


@asynccontextmanager
async def taking(stranded_seconds: float = 60.0) -> AsyncIterator[Taking]:
    """At work until the block ends."""
    made = Taking(stranded_seconds)
    async with asyncio.TaskGroup() as group:
        parts = (made.delivery, made.ends, made.stranded, made.openings, made.half.publishing)
        tasks = [group.create_task(part.run()) for part in parts]
        yield made
        for task in tasks:
            task.cancel()


async def test_a_granted_transfer_is_claimed_and_admitted_without_events() -> None:
    """C37: under the new epoch; nothing is activated or told, what the former dispatcher held is adopted."""
    async with taking() as there:
        await there.half.publish(request("edge-1"))
        there.ask(epoch=7)
        verdict = await there.verdict()
        assert (verdict.link, verdict.epoch) == (1, 101)
        (asked,) = there.sessions.asked
        assert (asked.node_id, asked.epoch, asked.connector_id, asked.link) == ("edge-1", 7, "c1", 1)
        assert there.half.outbox.nodes["edge-1"].owner_epoch == 101
        session = there.delivery.sessions["edge-1"]
        assert session.active
        await eventually(lambda: session.policy.in_flight == 1, 5, "what was pending is sent")
        assert (there.upstream.adopted, there.upstream.opened) == (["of edge-1"], [])
        assert there.sessions.activated == []
        assert there.metrics.value("transfers_total", verdict="admitted") == 1


async def test_a_session_that_moves_is_as_old_as_its_link() -> None:
    """Else whatever moves links, a rollout of dispatchers, would hide that a message does not get through."""
    async with taking() as there:
        before = SystemClock().monotonic()
        there.ask(1, "moved", open_seconds=3600)
        there.ask(2, "new", epoch=0)
        await eventually(lambda: len(there.delivery.sessions) == 2, 5, "both are opened")
        opened = {node_id: session.opened_at for node_id, session in there.delivery.sessions.items()}
        assert opened["new"] >= before
        assert 3599.0 < opened["new"] - opened["moved"] < 3601.0


async def test_a_refusal_says_why_the_session_ended() -> None:
    """C37: one link of a batch does not hold up another."""
    async with taking() as there:
        there.sessions.refuses = {"edge-1": pb.CLOSE_REASON_EVICTED}
        there.ask(1, "edge-1")
        verdict = await there.verdict()
        assert verdict.epoch == 0
        assert verdict.refusal.reason == pb.REFUSAL_REASON_NOT_NEWEST
        assert verdict.refusal.close_reason == pb.CLOSE_REASON_EVICTED
        there.ask(2, "edge-2")
        assert (await there.verdict()).epoch == 101
        assert list(there.delivery.sessions) == ["edge-2"]


async def test_without_sessions_a_transfer_is_unavailable_and_leaves_nothing() -> None:
    async with taking() as there:
        there.sessions.away = True
        there.ask()
        refusal = (await there.verdict()).refusal
        assert refusal.reason == pb.REFUSAL_REASON_UNAVAILABLE
        assert refusal.retry_after_seconds == 0, "when to come back is the connector's to say"
        assert there.stream.links == {}


async def test_a_link_that_ended_before_its_transfer_is_taken_over_and_ended() -> None:
    """C8: else nobody would tell of its end before its former dispatcher's lease is over."""
    async with taking() as there:
        opening = there.ask()
        opening.gone, opening.ended = True, pb.CLOSE_REASON_EDGE_CLOSED
        await eventually(lambda: there.sessions.closed, 5, "the registry is told")
        assert there.sessions.closed == [("edge-1", 101, pb.CLOSE_REASON_EDGE_CLOSED)]
        assert there.delivery.sessions == {}
        assert [one for batch in there.stream.taken() for one in batch.verdicts] == []
        assert len(there.delivery.sessions) == len(there.stranded) == 0


async def test_a_draining_dispatcher_takes_no_link() -> None:
    async with taking() as there:
        there.openings.drain()
        for epoch in (7, 0):
            there.ask(epoch=epoch)
            refusal = (await there.verdict()).refusal
            assert refusal.reason == pb.REFUSAL_REASON_UNAVAILABLE
            assert refusal.nothing_asked
        assert there.sessions.asked == []


async def test_what_sessions_was_asked_for_may_not_be_asked_for_elsewhere() -> None:
    """It may have opened the session, or the next one since, which a second question would supersede."""
    async with taking() as there:
        there.sessions.away = True
        there.ask(1, epoch=0)
        assert not (await there.verdict()).refusal.nothing_asked
        there.sessions.away, there.sessions.activates = False, False
        there.ask(2, epoch=0)
        refusal = (await there.verdict()).refusal
        assert (refusal.reason, refusal.nothing_asked) == (pb.REFUSAL_REASON_UNAVAILABLE, False)


async def test_links_that_wait_when_a_dispatcher_drains_stay_where_they_are() -> None:
    """They would have to move back at once. What sessions was asked for is not known to be undone, and ends
    that nobody else would tell are told."""
    async with taking() as there:
        there.sessions.hold.clear()
        there.ask(1, "edge-1")
        await eventually(lambda: there.sessions.asked, 5, "sessions is asked")
        there.ask(2, "edge-2")
        ended = there.ask(3, "edge-3")
        ended.gone, ended.ended = True, pb.CLOSE_REASON_EDGE_CLOSED
        forgotten = there.ask(4)
        forgotten.gone = True
        there.ask(5, "edge-5", epoch=0)
        there.openings.drain()
        assert (await there.verdict()).refusal.reason == pb.REFUSAL_REASON_UNAVAILABLE
        there.sessions.hold.set()
        assert (await there.verdict()).epoch > 0
        await eventually(lambda: there.sessions.closed, 5, "the end is told")
        assert [one.node_id for one in there.sessions.asked] == ["edge-1", "edge-3"]
        # A new link is opened, and its connector moves it on.
        await eventually(lambda: there.sessions.activated, 5, "the new link is opened")
        assert sorted(there.delivery.sessions) == ["edge-1", "edge-5"]


async def test_a_session_that_was_granted_but_not_claimed_waits_for_its_link() -> None:
    """C37: the registry says that it is here; it is not ended, and the link gets it when it asks again."""
    async with taking() as there:
        there.half.outbox.away = True
        there.ask(epoch=7)
        assert (await there.verdict()).refusal.reason == pb.REFUSAL_REASON_UNAVAILABLE
        assert there.stranded.holds("edge-1", 101)
        there.half.outbox.away = False
        there.ask(epoch=7)
        assert (await there.verdict()).epoch == 102
        assert len(there.stranded) == 0
        assert there.sessions.closed == []


async def test_opens_that_cannot_be_activated_hold_up_no_transfer() -> None:
    async with taking() as there:
        there.sessions.activates = False
        other = ReadableStream("c2", "connector-1")
        there.ask(1, "edge-1", epoch=0)
        there.ask(1, "edge-2", epoch=7, stream=other)
        assert (await there.verdict(other)).epoch > 0
        assert (await there.verdict()).refusal.reason == pb.REFUSAL_REASON_UNAVAILABLE
        assert list(there.delivery.sessions) == ["edge-2"]


async def test_a_link_that_comes_back_over_another_stream_ends_nothing() -> None:
    """C37: the former stream is not yet known to be lost; its session goes silently."""
    async with taking() as there:
        there.ask(epoch=7)
        await there.verdict()
        again = ReadableStream("c1", "connector-0")
        there.ask(epoch=101, stream=again)
        assert (await there.verdict(again)).epoch == 102
        assert there.delivery.sessions["edge-1"].stream is again
        assert there.upstream.left == [("edge-1", 101)]
        assert [batch.closes for batch in there.stream.taken() if batch.closes] == []
        assert there.sessions.closed == []
        assert there.metrics.value("sessions_closed_total", reason="transferred") == 1


async def test_a_session_of_an_older_link_is_superseded_by_one_that_moves_here() -> None:
    """C1: the node opened the newer link through another dispatcher; the older one is closed."""
    async with taking() as there:
        there.ask(1, epoch=7)
        await there.verdict()
        other = ReadableStream("c2", "connector-1")
        there.ask(5, epoch=9, stream=other)
        assert (await there.verdict(other)).epoch == 102
        (close,) = (one for batch in there.stream.taken() for one in batch.closes)
        assert (close.link, close.epoch, close.reason) == (1, 101, pb.CLOSE_REASON_SUPERSEDED)


async def test_a_link_whose_stream_is_lost_while_it_moves_may_ask_again() -> None:
    async with taking() as there:
        there.sessions.hold.clear()
        there.ask(epoch=7).gone = True
        later = there.ask(2, "edge-2", epoch=7)
        await eventually(lambda: there.sessions.asked)
        later.gone = True
        there.sessions.hold.set()
        await eventually(lambda: len(there.stranded) == 1)
        assert not there.delivery.sessions
        assert there.sessions.closed == []


async def test_a_link_that_ends_while_it_moves_ends_its_session_with_its_reason() -> None:
    """C8: once, by the dispatcher that got it."""
    async with taking() as there:
        there.sessions.hold.clear()
        opening = there.ask(epoch=7)
        await eventually(lambda: there.sessions.asked)
        opening.gone, opening.ended = True, pb.CLOSE_REASON_EDGE_CLOSED
        there.sessions.hold.set()
        await eventually(lambda: there.sessions.closed)
        assert there.sessions.closed == [("edge-1", 101, pb.CLOSE_REASON_EDGE_CLOSED)]
        assert not there.delivery.sessions


async def test_a_session_whose_link_does_not_come_back_ends_once() -> None:
    """C4: nobody asks for it in time."""
    async with taking(stranded_seconds=0.05) as there:
        there.ask(epoch=7)
        await there.verdict()
        there.stranded.keep(there.delivery.sessions["edge-1"])
        assert not there.delivery.sessions
        await eventually(lambda: there.sessions.closed)
        assert there.sessions.closed == [("edge-1", 101, pb.CLOSE_REASON_CONNECTOR_LOST)]
        assert not there.stranded.holds("edge-1", 101)


async def test_a_session_that_was_taken_away_is_given_up_by_its_link() -> None:
    """C36, C2: by a directive; the connector is told that it needs another dispatcher, the registry nothing,
    and nothing of the session stays here."""
    async with taking() as there:
        there.ask(epoch=7)
        await there.verdict()
        session = there.delivery.sessions["edge-1"]
        there.ends.taken_away(session)
        there.ends.taken_away(session)
        (close,) = (one for batch in there.stream.taken() for one in batch.closes)
        assert (close.link, close.epoch, close.reason) == (1, 101, pb.CLOSE_REASON_TRANSFERRED)
        assert not there.delivery.sessions
        assert there.sessions.closed == []
        assert there.stream.links == {}


async def test_so_many_links_are_asked_about_together() -> None:
    """A fleet that comes at once is asked about in portions, and all of it gets in."""
    async with taking() as there:
        asked: list[int] = []
        ask = there.sessions.open

        async def open_some(
            sessions: Sequence[sessions_pb2.OpenSession],
        ) -> Sequence[sessions_pb2.OpenVerdict]:
            asked.append(len(sessions))
            return await ask(sessions)

        there.sessions.open = open_some  # type: ignore[method-assign]
        for number in range(MOST_PER_BATCH * 2 + 1):
            there.ask(link=number, node_id=f"edge-{number}", epoch=0)
        verdicts: list[pb.LinkVerdict] = []
        async with asyncio.timeout(20):
            while len(verdicts) <= MOST_PER_BATCH * 2:
                await asyncio.sleep(0)
                verdicts += [one for batch in there.stream.taken() for one in batch.verdicts]
        assert asked == [MOST_PER_BATCH, MOST_PER_BATCH, 1]
        assert all(verdict.epoch for verdict in verdicts)


async def test_a_limit_that_is_reached_all_the_time_hides_no_other_reason_in_the_log() -> None:
    """Each reason of a node has lines of its own."""
    async with taking() as there:
        refusals = [pb.REFUSAL_REASON_NODE_LIMIT] * 20 + [pb.REFUSAL_REASON_FORBIDDEN]
        with capture_logs() as logs:
            for reason in refusals:
                there.sessions.refuses_to_open = pb.Refusal(reason=reason, detail="no")
                there.ask(epoch=0)
                await there.verdict()
        told = [line["reason"] for line in logs if line["event"] == "session.refused"]
        assert told == ["node_limit"] * LINES_AT_ONCE + ["forbidden"]
