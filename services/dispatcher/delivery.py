"""The shell of the delivery policy: feeds it, carries out its actions, keeps its timers."""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from opentelemetry.trace import SpanKind

from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.resources_pb2 import DispatcherResources
from services.dispatcher.actions import Action, Fetch, Ignore, Keep, LoadOn, Record, Reread, Send, SendDirect
from services.dispatcher.caution import LinkCut
from services.dispatcher.connectors import ConnectorStream
from services.dispatcher.deadlines import Deadlines
from services.dispatcher.entry import Cause, Entry
from services.dispatcher.metrics import DispatcherMetrics
from services.dispatcher.node_notices import MAX_STORED_VERSION, NodeNotices
from services.dispatcher.node_session import NodeSession
from services.dispatcher.outbox.contract import Outbox
from services.dispatcher.outbox.records import (
    Accepted,
    Attempt,
    Claim,
    Duplicate,
    End,
    Event,
    EventKind,
    Loaded,
    ObjectRow,
    OwnedOp,
    Park,
    Reload,
    RowState,
    Settle,
)
from services.dispatcher.outbox.turns import GroupResults
from services.dispatcher.outbox.writer import OutboxWriter
from services.dispatcher.policy import MAX_STOCK_WINDOW, NodeDelivery, PolicySettings
from services.dispatcher.sizes import MAX_BODY_BYTES
from services.runtime.clock import Clock
from services.runtime.errors import HubError, RowDamaged, StoreUnavailable
from services.runtime.logs import get_log
from services.runtime.seen_time import SeenTime
from services.runtime.tracing import CAUSE_NS, Tracing, is_same_trace, is_sampled

_log = get_log(__name__)

# A clock that is set by less than this is being kept, not stepped.
LIFETIME_SLACK_SECONDS = 5.0

MESSAGING = {"messaging.system": "cloudhub"}
STORE_RETRY_SECONDS = 1.0
# Of bodies loaded together, for all nodes that ask; at least those of one.
MAX_FETCHED_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A body to load for a node's session."""

    session: NodeSession
    keys: tuple[tuple[str, int], ...]
    size_bytes: int


class Delivery:
    """All sessions of this dispatcher and their policies. `run` must be awaited by the owner."""

    def __init__(
        self,
        outbox: Outbox,
        settings: PolicySettings,
        clock: Clock,
        metrics: DispatcherMetrics,
        tracing: Tracing,
    ) -> None:
        self.sessions: dict[str, NodeSession] = {}
        self.writer = OutboxWriter(outbox, metrics, self._recorded)
        self.notices = NodeNotices(self.writer.note, clock, metrics)
        # Told of (node, last seq or 0 for unknown, row if one was accepted) when rows of a node without a
        # session here were changed here. Set by the composition root: the two know each other.
        self.elsewhere: Callable[[str, int, ObjectRow | None], None] = lambda node_id, last_seq, row: None
        # A lifetime is time that passes: a step of the clock, while this process runs, ends none early.
        self.lifetimes = SeenTime(slack_seconds=LIFETIME_SLACK_SECONDS)
        self.lifetimes.look(clock.wall_ms(), clock.monotonic())
        self._outbox = outbox
        self._settings = settings
        self._clock = clock
        self._metrics = metrics
        self._tracing = tracing
        self._deadlines: Deadlines[NodeSession] = Deadlines(clock, self._due)
        self._wanted: deque[_Wanted] = deque()
        self._fetch = asyncio.Event()
        self._random = random.Random()
        self._sent_first = metrics.sent.labels("acknowledged", "first")
        self._sent_again = metrics.sent.labels("acknowledged", "again")
        self._sent_direct = metrics.sent.labels("direct", "first")

    async def run(self) -> None:
        """Writes, times and fetches until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.writer.run(), name="outbox-writer")
            group.create_task(self._deadlines.run(), name="delivery-deadlines")
            group.create_task(self._fetch_bodies(), name="outbox-bodies")

    def wall_ms(self) -> int:
        """The present instant, as rows have it."""
        return self._clock.wall_ms()

    # -- sessions ----------------------------------------------------------------------------------

    def new_policy(
        self, node_id: str, epoch: int, stream: ConnectorStream, max_window_messages: int = 0
    ) -> NodeDelivery:
        """The policy of a session about to open, whose link is at the end of that stream; its edge takes so
        many messages at a time, where it says so."""
        settings = self._settings.within(max_window_messages or MAX_STOCK_WINDOW)
        return NodeDelivery(node_id, epoch, settings, self._random.random, stream.room)

    def register(self, session: NodeSession) -> None:
        """From now on hints and NO-ACK messages for the node find this session."""
        self.sessions[session.node_id] = session
        self._metrics.sessions.set(len(self.sessions))

    async def claim(self, sessions: Iterable[tuple[NodeSession, bool]]) -> list[Loaded | HubError]:
        """Takes their nodes' rows over; True for a session that only changed its dispatcher. What was loaded
        of each, at first, or why it was not."""
        at_ms = self._clock.wall_ms()
        claims: list[Claim] = []
        for session, same_session in sessions:
            session.claim = Claim(session.node_id, session.epoch, at_ms, same_session)
            claims.append(session.claim)
        return await self.writer.load(claims)

    def start(self, session: NodeSession, loaded: Loaded, cause: str = Cause.SESSION_OPENED) -> None:
        """Sending starts with what was pending, in order, as soon as all of it is loaded; `loaded` is what
        `claim` came to. `cause` is what their traces give as the reason."""
        session.cause = cause
        session.active = True
        self._loaded(session, loaded)

    def _loaded(self, session: NodeSession, loaded: Loaded) -> None:
        if loaded.fenced:
            return  # somebody else has the node, and nothing may be sent here
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        entries = [self._entry(row, now, wall_ms) for row in loaded.rows]
        for entry in entries:
            entry.cause = session.cause
        self.perform(
            session,
            session.policy.loaded(
                entries, loaded.last_seq, now, wall_ms, through_seq=loaded.through_seq, cuts=loaded.cuts
            ),
        )

    def _reloaded(self, session: NodeSession, loaded: Loaded) -> None:
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        entries = [self._entry(row, now, wall_ms) for row in loaded.rows]
        self.perform(
            session,
            session.policy.reloaded(entries, loaded.last_seq, now, wall_ms, through_seq=loaded.through_seq),
        )

    def remove(self, session: NodeSession) -> None:
        """The session is over; its messages stay in the outbox, its answers end with it."""
        self.let_go(session)
        self.end_answers(session)

    def let_go(self, session: NodeSession) -> None:
        """This dispatcher delivers to the session no more; its messages and answers stay in the outbox."""
        if self.sessions.get(session.node_id) is session:
            del self.sessions[session.node_id]
        session.active = False
        session.stream.room.leave(session)
        session.policy.left()
        self._metrics.sessions.set(len(self.sessions))
        for message_id in session.policy.direct_waiting:
            self.dropped(session.node_id, message_id, "link_gone", session.epoch)

    def trace_lost(self, session: NodeSession, reason: str) -> None:
        """The session is over with its link: the trace of each message that waited for an answer says so."""
        if not self._tracing.enabled:
            return
        for entry in session.policy.unanswered():
            if entry.delivered_as:
                self._tracing.record(
                    "lost",
                    entry.delivered_as,
                    attributes={
                        **self.attributes(session, entry, entry.sends),
                        "cloudhub.reason": reason,
                    },
                    error=f"the link ended before an acknowledgement came: {reason}",
                )

    def cut(self, session: NodeSession, cut: LinkCut) -> None:
        """The session's link is ended by its edge, which may be over what was sent; before `remove`."""
        self._metrics.link_cuts.labels(cut.kind).inc()
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        self.perform(session, session.policy.cut(cut, now, wall_ms, session.last_input_at))

    def end_answers(self, session: NodeSession) -> None:
        """Answers end with their session."""
        self.perform(session, session.policy.closed(self._clock.wall_ms()))

    # -- inputs ------------------------------------------------------------------------------------

    def written(self, session: NodeSession, acknowledged_through: int, direct_through: int) -> None:
        """The connector reports bytes handed to the socket."""
        self.perform(
            session,
            session.policy.written(
                acknowledged_through, direct_through, self._clock.monotonic(), self._clock.wall_ms()
            ),
        )

    def acknowledged(self, session: NodeSession, message: Message) -> None:
        """An acknowledgement came over the session's link."""
        self.perform(
            session,
            session.policy.acknowledged(
                message.parent_id, self._clock.monotonic(), self._clock.wall_ms(), message.traceparent
            ),
        )

    def refused(self, session: NodeSession, message: Message, text: str) -> None:
        """A negative acknowledgement came over the session's link."""
        self._metrics.refused.inc()
        self.perform(
            session,
            session.policy.refused(
                message.parent_id, text, self._clock.monotonic(), self._clock.wall_ms(), message.traceparent
            ),
        )

    def direct(self, session: NodeSession, message: Message, size_bytes: int) -> bool:
        """Sends a NO-ACK message; False if the lane is full, or no lane has room for it."""
        if size_bytes > MAX_BODY_BYTES:
            self.dropped(session.node_id, message.id, "too_large", session.epoch)
            return False
        actions = session.policy.direct(message, size_bytes, self._clock.monotonic())
        if actions is None:
            self.dropped(session.node_id, message.id, "lane_full", session.epoch)
            return False
        self.perform(session, actions)
        return True

    def dropped(self, node_id: str, message_id: str, reason: str, epoch: int = 0) -> None:
        """A NO-ACK message goes nowhere: counted, and told in the node's history."""
        self._metrics.dropped.labels(reason).inc()
        event = Event(
            node_id, EventKind.DROPPED, self._clock.wall_ms(), message_id, epoch=epoch, reason=reason
        )
        self.writer.note(event)

    def paused(self, session: NodeSession, is_paused: bool) -> None:
        """Reading from the link stops or goes on."""
        session.paused = is_paused
        session.policy.paused(is_paused, self._clock.monotonic())
        self._arm(session)

    def committed(self, node_id: str, result: Accepted | Duplicate) -> None:
        """A publish of this dispatcher is durable: tell the node's session, if it is here."""
        if isinstance(result, Accepted) and result.replaced:
            self._metrics.ended.labels("replaced").inc(result.replaced)
        version = result.row.version
        if version is not None and version > MAX_STORED_VERSION:
            self.notices.accepted(node_id, version, result.row.key)
        session = self.sessions.get(node_id)
        if session is None:
            if isinstance(result, Accepted):
                self.elsewhere(node_id, result.row.seq, result.row)
            elif result.unparked:
                self.elsewhere(node_id, 0, None)
            return
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        row = result.row
        if isinstance(result, Duplicate):
            self.perform(
                session,
                session.policy.reread()
                if result.unparked
                else session.policy.republished(row.key, row.seq, now, wall_ms),
            )
        else:
            self.perform(session, session.policy.accepted(self._entry(row, now, wall_ms), now, wall_ms))

    def reread(self, node_id: str) -> None:
        """The node's rows were changed by something other than a publish of this dispatcher."""
        session = self.sessions.get(node_id)
        if session is None:
            self.elsewhere(node_id, 0, None)
        else:
            self.perform(session, session.policy.reread())

    def hinted(self, node_id: str, last_seq: int, rows: Iterable[ObjectRow] = ()) -> bool:
        """Another dispatcher changed the node's rows, up to `last_seq` (0: unknown), and accepted `rows`.
        False if the node's session is not here."""
        session = self.sessions.get(node_id)
        if session is None:
            return False
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        for row in rows:
            self.perform(session, session.policy.accepted(self._entry(row, now, wall_ms), now, wall_ms))
        policy = session.policy
        self.perform(session, policy.changed_through(last_seq) if last_seq else policy.reread())
        return True

    def last_seqs(self, node_ids: Sequence[str]) -> dict[str, int | None]:
        """The last seq that the policies of those with a session here know; None before they loaded, and
        while they read: what they knew is old then, and they are about to know better."""
        return {
            node_id: None if session.policy.is_reading else session.policy.last_seq
            for node_id in node_ids
            if (session := self.sessions.get(node_id)) is not None
        }

    def room_made(self, stream: ConnectorStream) -> None:
        """Something was written or passed on: nodes that waited for room have it in turn."""
        room = stream.room
        if not room.waiting or not room.has_room:
            return
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        room.begin_turns()
        try:
            while (session := room.next()) is not None:
                self.perform(session, session.policy.proceed(now, wall_ms))
        finally:
            room.end_turns()

    def measure(self) -> None:
        """Brings the gauges up to date that no input moves."""
        streams = {session.stream for session in self.sessions.values()}
        self._metrics.unwritten.set(sum(stream.room.unwritten_bytes for stream in streams))
        self._metrics.deliverable.set(sum(one.policy.deliverable for one in self.sessions.values()))

    def count(self, held: DispatcherResources) -> None:
        """resources.Holder."""
        held.sessions += len(self.sessions)
        for session in self.sessions.values():
            held.queued_messages += session.policy.queued
            held.in_flight_messages += session.policy.in_flight
            held.direct_messages += len(session.policy.direct_waiting)
        held.deadlines += len(self._deadlines)
        held.outbox_operations += self.writer.waiting

    # -- outputs -----------------------------------------------------------------------------------

    def perform(self, session: NodeSession, actions: Iterable[Action]) -> None:
        """Carries out actions in order (contract: `services.dispatcher.actions`)."""
        for action in actions:
            if isinstance(action, Send):
                self._send(session, action)
            elif isinstance(action, Record):
                self._record(session, action.op, action.entry)
            elif isinstance(action, SendDirect):
                self._send_direct(session, action)
            elif isinstance(action, Keep):
                self.writer.record(action.op)
            elif isinstance(action, Fetch):
                self._wanted.append(_Wanted(session, action.wanted, action.size_bytes))
                self._fetch.set()
            elif isinstance(action, LoadOn):
                assert session.claim is not None, "it was claimed before it was loaded"
                further = session.claim._replace(after_seq=action.after_seq, last_seq=action.last_seq)
                self._read(session, further, self._loaded)
            elif isinstance(action, Reread):
                if not action.after_seq:
                    self._metrics.rereads.inc()
                self._read(session, Reload(session.node_id, action.after_seq), self._reloaded)
            elif isinstance(action, Ignore):
                self._metrics.ignored.labels(action.reason).inc()
        if session.policy.waits_for_room and session.active and session.stream.room.wait(session):
            self._metrics.room_waits.inc()
        self._arm(session)

    def _send(self, session: NodeSession, action: Send) -> None:
        entry = action.entry
        assert entry.body is not None, "the policy sends only messages whose body is here"
        if entry.traceparent and self._tracing.enabled and is_sampled(entry.traceparent):
            entry.delivered_as = self._tracing.record(
                "deliver",
                entry.traceparent,
                kind=SpanKind.PRODUCER,
                attributes={
                    **self.attributes(session, entry, action.attempt),
                    "cloudhub.reason": entry.cause,
                },
                lasts_ns=CAUSE_NS,
                # From the message's trace to that of the link which carried this attempt.
                links=[session.traceparent] if is_sampled(session.traceparent) else None,
            )
        session.stream.send(
            session.link,
            session.epoch,
            action.number,
            entry.body,
            direct=False,
            traceparent=entry.delivered_as,
            repeats=action.repeats,
        )

    def _send_direct(self, session: NodeSession, action: SendDirect) -> None:
        traceparent = action.message.traceparent
        if traceparent and self._tracing.enabled and is_sampled(traceparent):
            traceparent = self._tracing.record(
                "deliver",
                traceparent,
                kind=SpanKind.PRODUCER,
                lasts_ns=CAUSE_NS,
                attributes={
                    **MESSAGING,
                    "messaging.message.id": action.message.id,
                    "messaging.destination.name": action.message.resource,
                    "cloudhub.node.id": session.node_id,
                    "cloudhub.session.epoch": session.epoch,
                    "cloudhub.ack_mode": "no_ack",
                },
            )
        session.stream.send(
            session.link,
            session.epoch,
            action.number,
            action.message.SerializeToString(),
            direct=True,
            traceparent=traceparent,
        )
        self._sent_direct.inc()

    def _record(self, session: NodeSession, op: OwnedOp, entry: Entry) -> None:
        if isinstance(op, (Settle, Park, End)):
            if isinstance(op, Settle):
                self._metrics.delivery_seconds.observe(max(0, op.at_ms - entry.accepted_at_ms) / 1000)
            if self._tracing.enabled:
                op = self._traced(session, op, entry)
        self.writer.record(op)

    def _traced(self, session: NodeSession, op: Settle | Park | End, entry: Entry) -> Settle | Park | End:
        """Records the step's span below its attempt, whose context the record carries, so that its commit
        stands there too."""
        if not is_sampled(entry.traceparent):
            return op
        parent = entry.delivered_as or entry.traceparent
        # An edge says which step of its own it answers by, or which attempt; not in another trace.
        links = None
        if (
            op.traceparent != parent
            and is_sampled(op.traceparent)
            and is_same_trace(op.traceparent, entry.traceparent)
        ):
            links = [op.traceparent]
        attributes = dict(self.attributes(session, entry, entry.sends))
        if isinstance(op, Settle):
            self._tracing.record("ack", parent, kind=SpanKind.CONSUMER, attributes=attributes, links=links)
            return Settle(op.node_id, op.epoch, op.key, op.seq, op.version, op.message_id, op.at_ms, parent)
        attributes["cloudhub.reason"] = op.reason
        if isinstance(op, Park):
            self._tracing.record("park", parent, attributes=attributes, links=links, error=op.reason)
            return op._replace(traceparent=parent)
        self._tracing.record("end", parent, attributes=attributes, links=links, error=op.reason)
        return End(op.node_id, op.epoch, op.key, op.seq, op.message_id, op.reason, op.at_ms, parent)

    @staticmethod
    def attributes(session: NodeSession, entry: Entry, attempt: int) -> dict[str, str | int]:
        """Span attributes of one message on one node."""
        return {
            **MESSAGING,
            "messaging.message.id": entry.message_id,
            "messaging.destination.name": entry.path,
            "cloudhub.node.id": session.node_id,
            "cloudhub.session.epoch": session.epoch,
            "cloudhub.ack_mode": "ack",
            "cloudhub.attempt": attempt,
            "cloudhub.object.key": entry.key,
        }

    def _recorded(self, ops: list[OwnedOp]) -> None:
        """The records of one commit are durable. Counters move once per commit."""
        settled = first = again = 0
        may_go: dict[str, NodeSession] = {}
        for op in ops:
            if isinstance(op, (Settle, Park, End)):
                session = self.sessions.get(op.node_id)
                if (
                    session is not None
                    and session.epoch == op.epoch
                    and session.policy.recorded(op.key, op.seq)
                ):
                    may_go[op.node_id] = session
            sent = op if isinstance(op, Attempt) else op.sent if isinstance(op, Settle) else None
            if sent is not None:
                if sent.attempt == 1:
                    first += 1
                else:
                    again += 1
            if isinstance(op, Settle):
                settled += 1
                if op.traceparent:
                    self._trace_record(op)
            elif isinstance(op, Park):
                self._metrics.parked.labels("refused" if op.refused else op.cause).inc()
                self._trace_record(op)
            elif isinstance(op, End):
                self._metrics.ended.labels(op.reason.partition(":")[0]).inc()
                self._trace_record(op)
        self._metrics.acknowledged.inc(settled)
        self._sent_first.inc(first)
        self._sent_again.inc(again)
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        for session in may_go.values():
            self.perform(session, session.policy.proceed(now, wall_ms))

    def _trace_record(self, op: Settle | Park | End) -> None:
        if op.traceparent and self._tracing.enabled and is_sampled(op.traceparent):
            self._tracing.record(
                "record",
                op.traceparent,
                attributes={
                    **MESSAGING,
                    "messaging.message.id": op.message_id,
                    "cloudhub.node.id": op.node_id,
                    "cloudhub.session.epoch": op.epoch,
                    "cloudhub.object.key": op.key,
                },
            )

    # -- timers and loading ------------------------------------------------------------------------

    def _arm(self, session: NodeSession) -> None:
        at = session.policy.next_deadline()
        if at is not None and session.active and (session.timer_at is None or at < session.timer_at):
            session.timer_at = at
            self._deadlines.set(at, session)

    def _due(self, session: NodeSession) -> None:
        if not session.active:
            return
        now = self._clock.monotonic()
        if session.timer_at is None or session.timer_at > now:
            return  # an earlier deadline has taken this one's place
        session.timer_at = None
        self.perform(session, session.policy.deadline(now, self._clock.wall_ms(), session.last_input_at))

    def _read(
        self, session: NodeSession, op: Claim | Reload, then: Callable[[NodeSession, Loaded], None]
    ) -> None:
        """Behind everything submitted so far, so that what was settled before is not loaded again."""

        def done(results: GroupResults) -> None:
            result = results[0]
            if not session.active:
                return
            if isinstance(result, Loaded):
                then(session, result)
            else:
                if isinstance(result, RowDamaged):
                    _log.error("outbox.row_damaged", node=session.node_id, error=str(result))
                session.policy.read_failed()
                self._try_again(session)

        try:
            self.writer.submit([op], done)
        except HubError:
            session.policy.read_failed()
            self._try_again(session)

    def _try_again(self, session: NodeSession) -> None:
        """The store did not answer: the policy asks again when its deadline comes."""
        session.timer_at = self._clock.monotonic() + STORE_RETRY_SECONDS
        self._deadlines.set(session.timer_at, session)

    async def _fetch_bodies(self) -> None:
        while True:
            await self._fetch.wait()
            self._fetch.clear()
            while self._wanted:
                await self._fetch_wanted()

    async def _fetch_wanted(self) -> None:
        # Apart from the loop, which would keep the last sessions and bodies in hand while it waits.
        wanted = [self._wanted.popleft()]
        size_bytes = wanted[0].size_bytes
        while self._wanted and size_bytes + self._wanted[0].size_bytes <= MAX_FETCHED_BYTES:
            size_bytes += self._wanted[0].size_bytes
            wanted.append(self._wanted.popleft())
        keys = [(w.session.node_id, key, seq) for w in wanted for key, seq in w.keys]
        try:
            found = await self._outbox.bodies(keys)
        except StoreUnavailable:
            for item in wanted:
                item.session.policy.fetch_failed(item.keys)
                self._try_again(item.session)
            return
        now, wall_ms = self._clock.monotonic(), self._clock.wall_ms()
        for item in wanted:
            session = item.session
            if session.active:
                bodies = [(key, seq, found.get((session.node_id, key, seq))) for key, seq in item.keys]
                self.perform(session, session.policy.bodies(bodies, now, wall_ms))
        for stream in {item.session.stream for item in wanted}:
            self.room_made(stream)

    def _entry(self, row: ObjectRow, now: float, wall_ms: int) -> Entry:
        if row.expires_at_ms:
            self.lifetimes.look(wall_ms, now)
            wall_ms = self.lifetimes.now_ms(row.accepted_at_ms)
        return entry_of(row, now, wall_ms)


def entry_of(row: ObjectRow, now: float, wall_ms: int) -> Entry:
    """A row as the policy sees it; `wall_ms` is the present time for what was accepted when it was."""
    expires_at = now + (row.expires_at_ms - wall_ms) / 1000 if row.expires_at_ms else None
    return Entry(
        row.key,
        row.seq,
        row.message_id,
        path=row.path,
        version=row.version,
        # Those of former releases count for less than they are.
        size_bytes=max(row.size_bytes, len(row.body or b"")),
        priority=row.priority,
        is_delete=row.deleted,
        is_answer=row.is_answer,
        attempts=row.attempts,
        parked=row.state == RowState.PARKED,
        expires_at=expires_at,
        traceparent=row.traceparent,
        accepted_at_ms=row.accepted_at_ms,
        body=row.body,
    )
