"""The delivery policy of one node's session: what to send, resend, hold, park or expire. Pure.

Inputs are synchronous calls with a time; each returns the actions to carry out (`actions`). Time
is monotonic seconds; `wall_ms` is what goes into records. Nothing here does I/O or reads a clock.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.ack_times import AckTimes
from services.dispatcher.actions import Action, Fetch, Ignore, Keep, LoadOn, Record, Reread, Send, SendDirect
from services.dispatcher.caution import Caution, LinkCut
from services.dispatcher.connector_room import ConnectorRoom
from services.dispatcher.entry import Cause, Entry, EntryState
from services.dispatcher.inflight import Window
from services.dispatcher.node_queue import NodeQueue
from services.dispatcher.outbox.records import (
    NO_CUTS,
    Attempt,
    CountCut,
    CountUnacknowledged,
    Cuts,
    End,
    KeepCuts,
    Park,
    Settle,
    Withheld,
)
from services.dispatcher.reading import Reading
from services.dispatcher.recent_ids import RecentIds
from services.dispatcher.sizes import MAX_BODY_BYTES, too_large

# Bodies of larger messages are in memory until they are in the socket; to be sent again they are read again.
LARGE_BYTES = 32 * 1024
# A stock edge has a queue of 100 for what comes, and drops the oldest of it without a word where more comes.
MAX_STOCK_WINDOW = 100
# A link that writes nothing for so long, and what it has at 64 kbit/s, gives way to nodes that wait.
STALL_SECONDS = 30.0
SLOWEST_BYTES_PER_SECOND = 8192
# What would be sent again and finds no room is looked at again then, up to twice as late by chance.
ROOM_RETRY_SECONDS = 1.0

READY, FETCHING, IN_FLIGHT = EntryState.READY, EntryState.FETCHING, EntryState.IN_FLIGHT
PARKED, GONE = EntryState.PARKED, EntryState.GONE


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Bounds and times of delivery; seconds and bytes."""

    window_messages: int = 64
    window_bytes: int = 256 * 1024
    ack_seconds: float = 5.0
    ack_most_seconds: float = 60.0
    ack_factor: float = 1.5
    jitter: float = 0.2
    most_attempts: int = 10
    # Links in a row that its edge ends over one message; and for the links after the first of them: how long
    # they rest, at most, before the message is sent alone, and how long its edge has to object to it.
    max_cut_links: int = 5
    rest_seconds: float = 3.0
    watch_seconds: float = 15.0
    direct_messages: int = 256
    direct_bytes: int = 1024 * 1024
    # Bodies of waiting messages held in memory per node; the rest is loaded when its turn comes.
    held_bytes: int = 512 * 1024
    # Of one encoded message: more fits into no batch of the link stream, nor into a frame of an edge.
    max_body_bytes: int = MAX_BODY_BYTES

    def within(self, max_window_messages: int) -> "PolicySettings":
        """For an edge that takes no more messages at a time."""
        if self.window_messages <= max_window_messages:
            return self
        return replace(self, window_messages=max_window_messages)


class NodeDelivery:
    """One session's delivery. `spread` gives numbers in [0, 1) for jitter."""

    __slots__ = (
        "_ack_times",
        "_caution",
        "_direct",
        "_direct_bytes",
        "_direct_held",
        "_direct_number",
        "_early",
        "_last_seq",
        "_number",
        "_paused",
        "_queue",
        "_reading",
        "_recent",
        "_reread_again",
        "_room",
        "_settings",
        "_spread",
        "_timers",
        "_told_seq",
        "_unwritten",
        "epoch",
        "node_id",
        "stalled_since",
        "unwritten_bytes",
        "waits_for_room",
    )

    def __init__(
        self,
        node_id: str,
        epoch: int,
        settings: PolicySettings,
        spread: Callable[[], float],
        room: ConnectorRoom[Any] | None = None,
    ) -> None:
        self.node_id = node_id
        self.epoch = epoch
        self._settings = settings
        self._spread = spread
        self._room: ConnectorRoom[Any] = room if room is not None else ConnectorRoom()
        self._queue = NodeQueue(
            Window(settings.window_messages, settings.window_bytes), settings.held_bytes, self._room
        )
        self._timers: list[tuple[float, int, int, Entry]] = []  # (at, seq, sends, entry)
        self._unwritten: deque[tuple[int, int, Entry]] = deque()  # (number, size, entry)
        self.unwritten_bytes = 0
        """Of both lanes: handed to the link and not reported written."""
        self.stalled_since = 0.0
        """If there are any: since when none of them was written."""
        self.waits_for_room = False
        """Something could go but for what is on its way to the connector: `proceed` when there is room."""
        # NO-ACK messages that wait for room; they count in the lane.
        self._direct_held: deque[tuple[Message, int]] = deque()
        self._direct: deque[tuple[int, int, str]] = deque()  # (number, size, id) not yet written
        self._direct_bytes = 0
        self._direct_number = 0
        self._number = 0
        self._last_seq: int | None = None  # None until loaded
        self._early: list[Entry] = []  # accepted before loading or rereading ended
        self._reading: Reading | None = None
        self._reread_again = False
        self._told_seq = 0  # the node's order is known to have grown so far
        self._paused = False
        self._ack_times = AckTimes()
        self._recent = RecentIds()
        self._caution = Caution(settings.max_cut_links, settings.rest_seconds, settings.watch_seconds)

    # -- what the outbox holds ---------------------------------------------------------------------

    def loaded(
        self,
        entries: Iterable[Entry],
        last_seq: int,
        now: float,
        wall_ms: int,
        *,
        through_seq: int | None = None,
        cuts: Cuts = NO_CUTS,
    ) -> list[Action]:
        """What was pending at the time the session took the node over: all of it, or a portion through a seq,
        after which others follow. Sending starts with the last one. `cuts` come with the first."""
        reading = self._reading
        if reading is None:
            reading = self._reading = Reading(last_seq)
            self._caution.cuts = cuts
        for entry in entries:
            self._meet(entry)
        if through_seq is not None:
            reading.through_seq = through_seq
            return [LoadOn(through_seq, reading.last_seq or 0)]
        self._reading = None
        self._last_seq = reading.last_seq
        self._caution.begin(now, self._spread)
        return self._caught_up(now, wall_ms)

    def accepted(self, entry: Entry, now: float, wall_ms: int) -> list[Action]:
        """A hint: this was committed. If it is not the node's next seq, the outbox is read again."""
        if self._last_seq is None or self._reading is not None:
            self._early.append(entry)
            return []
        if entry.seq <= self._last_seq:
            return []
        if entry.seq != self._last_seq + 1:
            self._early.append(entry)
            return self.reread()
        self._take(entry)
        return self._pump(now, wall_ms)

    def reread(self) -> list[Action]:
        """The outbox was changed by somebody else (a sweep or an operator says so)."""
        if self._last_seq is None or self._reading is not None:
            self._reread_again = True  # the answer on its way may be older than this change
            return []
        self._reading = Reading()
        return [Reread()]

    def changed_through(self, last_seq: int) -> list[Action]:
        """Somebody says that the node's order has grown so far; read again unless hints tell how."""
        self._told_seq = max(self._told_seq, last_seq)
        if self._last_seq is None or self._reading is not None or last_seq <= self._last_seq:
            return []
        return self.reread()

    def reloaded(
        self,
        entries: Iterable[Entry],
        last_seq: int,
        now: float,
        wall_ms: int,
        *,
        through_seq: int | None = None,
    ) -> list[Action]:
        """The answer to Reread: what is pending now, or a portion of it through a seq. What is missing from
        all of it has ended."""
        reading = self._reading or Reading()
        if reading.last_seq is None:
            reading.last_seq = last_seq
        for entry in entries:
            reading.seen.add(entry.key)
            if entry.seq not in reading.ended:
                self._meet(entry)
        if through_seq is not None:
            reading.through_seq = through_seq
            return [Reread(through_seq)]
        self._reading = None
        for entry in [entry for key, entry in self._queue.entries.items() if key not in reading.seen]:
            self._drop(entry)
        self._last_seq = max(self._last_seq or 0, reading.last_seq)
        return self._caught_up(now, wall_ms)

    def read_failed(self) -> None:
        """The outbox did not answer to LoadOn or Reread; the next deadline goes on, a hint begins anew."""
        if self._last_seq is None:
            assert self._reading is not None, "nothing is read before `loaded`"
            self._reading.stalled = True
        else:
            self._reading = None
        self._reread_again = True
        self._early.clear()

    def republished(self, key: str, seq: int, now: float, wall_ms: int) -> list[Action]:
        """An equal version was published while this one was pending: sent again unless in flight."""
        entry = self._queue.entries.get(key)
        if entry is None or entry.seq != seq or entry.state != READY:
            return []
        return self._pump(now, wall_ms)

    def bodies(
        self, found: Iterable[tuple[str, int, bytes | Withheld | None]], now: float, wall_ms: int
    ) -> list[Action]:
        """The answer to Fetch; None for a message that has moved on (a hint about it follows)."""
        actions: list[Action] = []
        for key, seq, body in found:
            entry = self._queue.entries.get(key)
            if entry is None or entry.seq != seq or entry.state != FETCHING:
                continue
            if body is None:
                self._drop(entry)
            elif isinstance(body, Withheld):
                self._queue.fetched(entry, None, body.size_bytes)
                if body.fault:
                    actions += self._give_up(entry, body.fault, wall_ms)
            else:
                self._queue.fetched(entry, body)
        return [*actions, *self._pump(now, wall_ms, in_turn=True)]

    def fetch_failed(self, keys: Iterable[tuple[str, int]]) -> None:
        """The outbox did not answer; the entries wait for the next input or deadline."""
        for key, seq in keys:
            entry = self._queue.entries.get(key)
            if entry is not None and entry.seq == seq and entry.state == FETCHING:
                self._queue.fetched(entry, None)

    def recorded(self, key: str, seq: int) -> bool:
        """A Settle, Park or End of this message is durable; True if `proceed` may send something now."""
        return self._queue.recorded(key, seq)

    def proceed(self, now: float, wall_ms: int) -> list[Action]:
        """Sends what waited for a record."""
        return self._pump(now, wall_ms)

    # -- what the link says ------------------------------------------------------------------------

    def direct(self, message: Message, size_bytes: int, now: float) -> list[Action] | None:
        """A NO-ACK message; None if the lane is full."""
        settings = self._settings
        waiting = len(self._direct) + len(self._direct_held)
        if waiting >= settings.direct_messages or (
            waiting and self._direct_bytes + size_bytes > settings.direct_bytes
        ):
            return None
        if self._direct_held or not self._room.admits(self.unwritten_bytes, size_bytes):
            if not self._room.hold(message, size_bytes):
                return None
            self._direct_held.append((message, size_bytes))
            self._direct_bytes += size_bytes
            self.waits_for_room = True
            return []
        self._direct_bytes += size_bytes
        return [self._send_direct(message, size_bytes, now)]

    def _send_direct(self, message: Message, size_bytes: int, now: float) -> SendDirect:
        self._direct_number += 1
        self._direct.append((self._direct_number, size_bytes, message.id))
        self._on_its_way(size_bytes, now)
        return SendDirect(message, self._direct_number)

    def _send_held(self, now: float) -> list[Action]:
        """NO-ACK messages that waited for room, as far as there is some."""
        actions: list[Action] = []
        while self._direct_held:
            message, size_bytes = self._direct_held[0]
            if not self._room.admits(self.unwritten_bytes, size_bytes):
                self.waits_for_room = True
                break
            self._direct_held.popleft()
            self._room.unhold(message, size_bytes)
            actions.append(self._send_direct(message, size_bytes, now))
        return actions

    def _on_its_way(self, size_bytes: int, now: float) -> None:
        if not self.unwritten_bytes:
            self.stalled_since = now
        self.unwritten_bytes += size_bytes
        self._room.unwritten_bytes += size_bytes

    def left(self) -> None:
        """Nothing more is sent over this link: what is on its way to the connector is none of ours."""
        self._room.unwritten_bytes -= self.unwritten_bytes
        self._room.fetching_bytes -= self._queue.fetching_bytes
        for message, size_bytes in self._direct_held:
            self._room.unhold(message, size_bytes)
        gone: ConnectorRoom[Any] = ConnectorRoom()
        for message, size_bytes in self._direct_held:
            gone.hold(message, size_bytes)
        gone.unwritten_bytes, gone.fetching_bytes = self.unwritten_bytes, self._queue.fetching_bytes
        self._room = self._queue.room = gone

    def is_stalled(self, now: float) -> bool:
        """Whether the link has written nothing for longer than any that does write takes."""
        seconds = STALL_SECONDS + self.unwritten_bytes / SLOWEST_BYTES_PER_SECOND
        return self.unwritten_bytes > 0 and now - self.stalled_since > seconds

    def written(
        self, acknowledged_through: int, direct_through: int, now: float, wall_ms: int
    ) -> list[Action]:
        """Bytes went into the socket: the timers of these messages start now."""
        written_bytes = 0
        while self._direct and self._direct[0][0] <= direct_through:
            size_bytes = self._direct.popleft()[1]
            self._direct_bytes -= size_bytes
            written_bytes += size_bytes
        actions: list[Action] = []
        while self._unwritten and self._unwritten[0][0] <= acknowledged_through:
            _, size_bytes, entry = self._unwritten.popleft()
            written_bytes += size_bytes
            if entry.state != IN_FLIGHT:
                continue
            self._written(entry, now)
            self._arm(entry)
            self._caution.written(entry, now)
            if entry.size_bytes > LARGE_BYTES and not entry.is_answer:
                self._queue.forget_body(entry)
            actions.append(
                Record(
                    Attempt(
                        self.node_id,
                        self.epoch,
                        entry.key,
                        entry.message_id,
                        entry.version,
                        entry.sends,
                        wall_ms,
                    ),
                    entry,
                )
            )
        if written_bytes:
            self.stalled_since = now
            self.unwritten_bytes -= written_bytes
            self._room.unwritten_bytes -= written_bytes
        return actions

    def knows(self, message_id: str) -> bool:
        """Whether it is a message that waits for its acknowledgement, or one that was sent over
        this link and is over: what comes with that parent is no answer to a program's request."""
        return message_id in self._queue.by_id or message_id in self._recent

    def acknowledged(self, message_id: str, now: float, wall_ms: int, traceparent: str = "") -> list[Action]:
        """The edge acknowledged; it settles the seq that this message has, whoever sent it."""
        entry = self._queue.by_id.get(message_id)
        if entry is None:
            return [Ignore("unknown_message")]
        if entry.first_written_at is not None:
            self._ack_times.add(now - entry.first_written_at)
        op = Settle(
            self.node_id, self.epoch, entry.key, entry.seq, entry.version, message_id, wall_ms, traceparent
        )
        self._drop(entry, is_recorded=False)
        return [Record(op, entry), *self._keep(self._caution.answered(entry)), *self._pump(now, wall_ms)]

    def refused(
        self, message_id: str, text: str, now: float, wall_ms: int, traceparent: str = ""
    ) -> list[Action]:
        """The edge sent a negative acknowledgement: the message is parked at once with its text."""
        entry = self._queue.by_id.get(message_id)
        if entry is None:
            return [Ignore("unknown_message")]
        self._caution.answered(entry)
        if entry.superseded:
            self._drop(entry)
            return [Ignore("superseded"), *self._pump(now, wall_ms)]
        if entry.state == PARKED:
            return [Ignore("parked")]
        if entry.is_answer:
            return [*self._finish(entry, f"refused: {text}", wall_ms, traceparent), *self._pump(now, wall_ms)]
        return [
            *self._park(entry, f"refused by the edge: {text}", wall_ms, traceparent, refused=True),
            *self._pump(now, wall_ms),
        ]

    def paused(self, is_paused: bool, now: float) -> None:
        """Reading from the link stopped or goes on; while it is stopped no timer of an ack runs."""
        if self._paused and not is_paused:
            self._timers = [timer for timer in self._timers if timer[3].state != IN_FLIGHT]
            heapq.heapify(self._timers)
            for entry in self._queue.by_id.values():
                if entry.state != IN_FLIGHT:
                    continue
                if entry.written:
                    entry.first_written_at = None
                    self._written(entry, now)
                    self._arm(entry)
                if entry.expires_at is not None:
                    self._set_timer(entry.expires_at, entry)
        self._paused = is_paused

    def cut(self, cut: LinkCut, now: float, wall_ms: int, heard_at: float) -> list[Action]:
        """The edge ended the link in this way; `heard_at` is when anything of it last came in. Before
        `closed`."""
        verdict = self._caution.judge(cut, self.unanswered(), now, heard_at)
        if verdict is None:
            return []
        actions: list[Action] = [*self._keep(verdict.cuts)]
        entry, links = verdict.culprit, verdict.links
        if entry is not None and links > 1:
            reason = (
                f"its edge ended {links} links in a row while it was the first unanswered message; "
                f"the last {cut.words}"
            )
            count = CountCut(
                self.node_id, self.epoch, entry.key, entry.seq, entry.message_id, links, reason, wall_ms
            )
            actions.append(Record(count, entry))
            if verdict.is_over:
                actions += self._park(entry, reason, wall_ms, "", cause="cut_links")
        return actions

    def closed(self, wall_ms: int) -> list[Action]:
        """The session is over: answers end with it, everything else stays pending in the outbox."""
        actions: list[Action] = []
        for entry in [entry for entry in self._queue.entries.values() if entry.is_answer]:
            actions += self._finish(entry, "its session ended", wall_ms, "")
        return actions

    # -- time --------------------------------------------------------------------------------------

    def next_deadline(self) -> float | None:
        """When `deadline` wants to be called; None for never. May be early, never late."""
        at = self._caution.wake_at()
        if not self._timers or (at is not None and at < self._timers[0][0]):
            return at
        return self._timers[0][0]

    def deadline(self, now: float, wall_ms: int, heard_at: float = math.inf) -> list[Action]:
        """Time has come to `now`: resend, park, expire. `heard_at` is when the edge was last heard."""
        actions: list[Action] = []
        if self._caution.is_harmless(now, heard_at):
            actions += self._keep(self._caution.end())
        while self._timers and self._timers[0][0] <= now:
            at, _, sends, entry = heapq.heappop(self._timers)
            if entry.state == GONE:
                continue
            if entry.expires_at is not None and entry.expires_at <= now and not entry.superseded:
                actions += self._finish(entry, "expired", wall_ms, "")
            elif (
                entry.state == IN_FLIGHT and entry.written and sends == entry.sends and at == entry.resend_at
            ):
                if self._paused:
                    continue
                if self._resend_at(entry) > now:
                    self._arm(entry)  # acknowledgements have come later than they used to, meanwhile
                    continue
                if entry.superseded and heard_at <= entry.written_at:
                    # It may stand before a network that is broken, and come with all that is sent in its
                    # place: more than the window at once, of which a stock edge drops the oldest.
                    entry.resend_at = now + self._interval(entry.attempts)
                    self._set_timer(entry.resend_at, entry)
                    continue
                if not self._room.admits(self.unwritten_bytes, entry.size_bytes, in_turn=True):
                    entry.resend_at = now + ROOM_RETRY_SECONDS * (1.0 + self._spread())
                    self._set_timer(entry.resend_at, entry)
                    continue
                actions += self._unacknowledged(entry, now, wall_ms)
        while self._timers and self._is_idle(self._timers[0]):
            heapq.heappop(self._timers)  # else every acknowledged message would wake us once more
        if self._last_seq is None and self._reading is not None and self._reading.stalled:
            self._reading.stalled = False
            actions.append(LoadOn(self._reading.through_seq, self._reading.last_seq or 0))
        if self._reread_again and self._reading is None and self._last_seq is not None:
            self._reread_again = False
            actions += self.reread()
        actions += self._pump(now, wall_ms)
        return actions

    @staticmethod
    def _is_idle(timer: tuple[float, int, int, Entry]) -> bool:
        at, _, sends, entry = timer
        if entry.state == GONE:
            return True
        return at != entry.expires_at and (entry.state != IN_FLIGHT or sends != entry.sends)

    # -- figures -----------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Messages known here and not settled, those in flight and parked ones included."""
        return len(self._queue.by_id)

    @property
    def deliverable(self) -> int:
        """Of those, the ones that are sent or wait for their turn: none that is parked."""
        return len(self._queue.by_id) - self._queue.parked

    @property
    def in_flight(self) -> int:
        """Messages handed to the link and not acknowledged."""
        return self._queue.window.messages

    @property
    def in_flight_bytes(self) -> int:
        """Their size."""
        return self._queue.window.bytes

    @property
    def doubtful_links(self) -> int:
        """How many links in a row the edge ended, if messages go one at a time for that; else 0."""
        return self._caution.cuts.links if self._caution.is_on else 0

    def unanswered(self) -> list[Entry]:
        """What was handed to the link and not acknowledged, in order."""
        return [entry for entry in self._queue.by_id.values() if entry.state == IN_FLIGHT]

    @property
    def direct_waiting(self) -> list[str]:
        """Ids of the NO-ACK messages whose bytes are not in the socket."""
        sent = [message_id for _, _, message_id in self._direct]
        return [*sent, *(message.id for message, _ in self._direct_held)]

    @property
    def last_seq(self) -> int | None:
        """The newest seq known; None before loading."""
        return self._last_seq

    @property
    def is_reading(self) -> bool:
        """Whether an answer to LoadOn or Reread is on its way, until which `last_seq` stands still."""
        return self._reading is not None

    def state_of(self, key: str) -> EntryState | None:
        """Where a key's newest message stands; None if nothing is pending."""
        entry = self._queue.entries.get(key)
        return entry.state if entry else None

    def blocked_by(self, key: str) -> Entry | None:
        """The earlier message of the same path that this key's message waits for."""
        entry = self._queue.entries.get(key)
        return self._queue.earlier(entry) if entry else None

    # -- inside ------------------------------------------------------------------------------------

    def _caught_up(self, now: float, wall_ms: int) -> list[Action]:
        """The outbox was read: takes the hints that follow on it. One that does not (or a change told
        meanwhile) means that something else was committed in between; it waits for the next reading."""
        early, self._early = self._early, []
        for entry in early:
            if entry.seq == (self._last_seq or 0) + 1:
                self._take(entry)
            elif entry.seq > (self._last_seq or 0):
                self._early.append(entry)
            else:
                self._queue.met(entry)
        again = self._reread_again or bool(self._early) or self._told_seq > (self._last_seq or 0)
        self._reread_again = False
        actions = self._pump(now, wall_ms)
        return [*actions, *self.reread()] if again else actions

    def _take(self, entry: Entry) -> None:
        self._last_seq = entry.seq
        known = self._queue.entries.get(entry.key)
        if known is None or known.seq < entry.seq:
            self._replace(entry)
        else:  # a reading has met it, or what came after it
            self._queue.met(entry)

    def _meet(self, entry: Entry) -> None:
        """A row that was read."""
        known = self._queue.entries.get(entry.key)
        if known is None or known.seq < entry.seq:
            self._replace(entry)
        elif known.seq == entry.seq and known.state == PARKED and entry.state == READY:
            known.attempts, known.cause = 0, Cause.REDELIVERED
            self._queue.unpark(known)

    def _replace(self, entry: Entry) -> None:
        if self._queue.is_outlived(entry):
            return
        known = self._queue.entries.get(entry.key)
        if known is not None:
            self._make_way(known)
        for other in self._queue.replaced_by(entry):
            self._make_way(other)
        self._add(entry)

    def _make_way(self, entry: Entry) -> None:
        """It ended when a newer message of its key or its path was accepted."""
        if entry.state == IN_FLIGHT:
            self._queue.supersede(entry)
        else:
            self._drop(entry)

    def _add(self, entry: Entry) -> None:
        self._queue.add(entry)
        if entry.expires_at is not None:
            self._set_timer(entry.expires_at, entry)

    def _drop(self, entry: Entry, *, is_recorded: bool = True) -> None:
        self._queue.drop(entry, is_recorded=is_recorded)
        if entry.sends:
            self._recent.add(entry.message_id)
        if self._reading is not None:
            self._reading.ended.add(entry.seq)

    def _pump(self, now: float, wall_ms: int, *, in_turn: bool = False) -> list[Action]:
        """Sends whatever may go: by priority, then in the node's order, as far as the window allows and what
        is on its way to the connector. `in_turn`: a body came that was loaded in this node's turn."""
        self.waits_for_room = False
        actions = self._send_held(now) if self._direct_held else []
        if self._last_seq is None or self._caution.rests(now):
            return actions
        queue, window = self._queue, self._queue.window
        # The doubtful ones come first, so that this is no long search while there are any.
        if (
            self._caution.is_on
            and not window.messages
            and not any(map(self._caution.is_doubtful, queue.by_id.values()))
        ):
            actions += self._keep(self._caution.end())
        wanted: list[tuple[str, int]] = []
        wanted_bytes = 0
        room = self._room
        max_body_bytes = self._settings.max_body_bytes
        while (entry := queue.first()) is not None:
            if entry.expires_at is not None and entry.expires_at <= now:
                actions += self._finish(entry, "expired", wall_ms, "")
                continue
            if entry.body is None:
                full = queue.fetching_bytes + entry.size_bytes > window.most_bytes
                if queue.fetching and (full or queue.fetching >= window.most_messages):
                    break
                if entry.size_bytes > LARGE_BYTES and not window.has_room_for(entry.size_bytes):
                    break
                own_bytes = self.unwritten_bytes + queue.fetching_bytes
                if not room.admits(own_bytes, entry.size_bytes, in_turn=in_turn):
                    self.waits_for_room = True
                    break
                queue.pop()
                queue.fetch(entry)
                wanted.append((entry.key, entry.seq))
                wanted_bytes += entry.size_bytes
                continue
            if self._caution.is_on and window.messages:
                break
            if queue.fetching or not window.has_room_for(entry.size_bytes):
                break  # the order holds: nobody overtakes a message whose body is on its way
            if not room.admits(self.unwritten_bytes, entry.size_bytes, in_turn=in_turn):
                self.waits_for_room = True
                break
            queue.pop()
            if len(entry.body) > max_body_bytes:
                actions += self._give_up(entry, too_large(len(entry.body)), wall_ms)
                continue
            if parked := queue.parked_before(entry):
                for other in parked:
                    actions += self._finish(other, "a later object of its path follows", wall_ms, "")
                continue  # its turn comes again when these ends are recorded
            window.add(entry)
            actions.append(self._send(entry, now))
        if wanted:
            actions.append(Fetch(tuple(wanted), wanted_bytes))
        return actions

    def _send(self, entry: Entry, now: float) -> Send:
        self._number += 1
        entry.state = IN_FLIGHT
        entry.written = False
        if not entry.sends:
            entry.number = self._number
        entry.sends += 1
        repeats = entry.last_number if entry.cause == Cause.UNACKNOWLEDGED else 0
        entry.last_number = self._number
        self._unwritten.append((self._number, entry.size_bytes, entry))
        self._on_its_way(entry.size_bytes, now)
        return Send(entry, self._number, entry.sends, repeats)

    def _interval(self, attempts: int) -> float:
        settings = self._settings
        first = max(settings.ack_seconds, self._ack_times.unusual_seconds)
        return min(settings.ack_most_seconds, first * settings.ack_factor**attempts)

    @staticmethod
    def _written(entry: Entry, now: float) -> None:
        entry.written = True
        entry.written_at = now
        if entry.first_written_at is None:
            entry.first_written_at = now

    def _resend_at(self, entry: Entry) -> float:
        """As things are now; the jitter only ever comes on top."""
        return entry.written_at + self._interval(entry.attempts)

    def _arm(self, entry: Entry) -> None:
        jitter = 1.0 + self._settings.jitter * self._spread()
        entry.resend_at = entry.written_at + self._interval(entry.attempts) * jitter
        self._set_timer(entry.resend_at, entry)

    def _set_timer(self, at: float, entry: Entry) -> None:
        heapq.heappush(self._timers, (at, entry.seq, entry.sends, entry))

    def _unacknowledged(self, entry: Entry, now: float, wall_ms: int) -> list[Action]:
        """A full interval on a live link passed in silence."""
        if entry.superseded:
            self._drop(entry)
            return []
        entry.attempts += 1
        entry.cause = Cause.UNACKNOWLEDGED
        if entry.is_answer:
            return [self._send(entry, now)] if entry.body is not None else []
        count = Record(
            CountUnacknowledged(
                self.node_id, self.epoch, entry.key, entry.seq, entry.message_id, entry.attempts, wall_ms
            ),
            entry,
        )
        if entry.attempts >= self._settings.most_attempts:
            reason = f"not acknowledged in {entry.attempts} attempts"
            return [count, *self._park(entry, reason, wall_ms, "")]
        if entry.body is None:
            self._queue.again(entry)  # `deadline` goes on with what is ready
            return [count]
        return [count, self._send(entry, now)]

    def _give_up(self, entry: Entry, fault: str, wall_ms: int) -> list[Action]:
        """It can be sent over no link."""
        if entry.is_answer:
            return self._finish(entry, f"unsendable: {fault}", wall_ms, "")
        return self._park(entry, fault, wall_ms, "", cause="unsendable")

    def _park(
        self,
        entry: Entry,
        reason: str,
        wall_ms: int,
        traceparent: str,
        *,
        refused: bool = False,
        cause: str = "unacknowledged",
    ) -> list[Action]:
        self._queue.park(entry)
        op = Park(
            self.node_id,
            self.epoch,
            entry.key,
            entry.seq,
            entry.message_id,
            reason,
            wall_ms,
            refused,
            traceparent,
            cause,
        )
        return [Record(op, entry)]

    def _keep(self, cuts: Cuts | None) -> list[Action]:
        return [] if cuts is None else [Keep(KeepCuts(self.node_id, self.epoch, cuts))]

    def _finish(self, entry: Entry, reason: str, wall_ms: int, traceparent: str) -> list[Action]:
        self._drop(entry, is_recorded=False)
        op = End(
            self.node_id, self.epoch, entry.key, entry.seq, entry.message_id, reason, wall_ms, traceparent
        )
        return [Record(op, entry)]
