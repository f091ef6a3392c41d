"""Invariants 1 to 4 of docs/architecture.md under everything that can happen to one node.

The machine joins the real policy and the real ledger with a model of the link and of an edge that, as
stock edges do, has one slot per path, stores whatever comes, deletes by path and acknowledges. Several
publishers write to a path, with a uid, with another one, and without any (C51). Commits, frames and
acknowledgements are delayed, lost and reordered only as the real parts may do it: a link keeps order
and dies as a whole; records of a dead process are gone; records of a fenced session still arrive.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.actions import Action, Fetch, Keep, LoadOn, Record, Reread, Send
from services.dispatcher.caution import LinkCut
from services.dispatcher.delivery import entry_of
from services.dispatcher.entry import Entry, EntryState
from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import (
    Accept,
    Accepted,
    Claim,
    Cuts,
    Duplicate,
    End,
    Event,
    EventKind,
    Fenced,
    Loaded,
    NodeRow,
    ObjectRow,
    Op,
    OwnedOp,
    Park,
    Reload,
    RowState,
    Settle,
    Stale,
)
from services.dispatcher.policy import NodeDelivery, PolicySettings
from services.dispatcher.publication import Publication

NODE = "edge-1"
PATHS = ("default/configmap/a", "default/configmap/b")
PORTION_ROWS = 1
SETTINGS = PolicySettings(
    window_messages=3, window_bytes=3000, most_attempts=3, held_bytes=1500, max_cut_links=3
)


RARELY = st.integers(0, 4)  # 0 does it
# Whose object a message is about: that of the path's present uid, of a new one, of none.
UIDS = st.sampled_from(["same", "same", "none", "new"])
ANSWERS = ["ack", "ack", "ack", "nack", "silence", "silence"]


@dataclass
class Published:
    """One accepted publication."""

    message_id: str
    path: str
    key: str
    version: int
    is_delete: bool
    seq: int


@dataclass
class Place:
    """What a path is about, as the table in docs/architecture.md has it: written down a second time."""

    live: Published | None = None
    last: Published | None = None
    uids: set[str] = field(default_factory=set)
    # A new uid after a delete with one begins a new order of versions: (order, version) only grows.
    order: int = 0

    def take(self, publication: Publication, row: ObjectRow) -> tuple[int, int]:
        """An accepted message: whether it was right to, and where it stands in the path's order."""
        version, live, last = publication.version or 0, self.live, self.last
        if publication.is_delete:
            if live is not None and publication.uid and publication.uid != live.key:
                assert live.key == row.path, "C15: a delete of another object"
                assert version >= live.version, "C51: a delete older than what is there"
            elif live is not None and not publication.uid and live.key != row.path:
                assert publication.version is None or version >= live.version, "C51: an older delete"
        elif live is not None:
            assert version >= live.version, "C51: older than what is there"
        elif last is not None and publication.uid and publication.uid not in self.uids and "#" in last.key:
            self.order += 1
        elif last is not None:
            assert version > last.version, "C51: older than the delete of what was there"
        if publication.uid:
            self.uids.add(publication.uid)
        version = max(version, last.version) if publication.is_delete and last else version
        self.last = Published(row.message_id, row.path, row.key, version, row.deleted, row.seq)
        self.live = None if row.deleted else self.last
        return self.order, version


@dataclass
class Session:
    """A policy, the link below it, and what it has asked of others."""

    policy: NodeDelivery
    claim: Claim
    frames: deque[tuple[int, Message, int | None]] = field(default_factory=deque)
    acks: deque[tuple[str, bool]] = field(default_factory=deque)
    fetches: deque[tuple[tuple[str, int], ...]] = field(default_factory=deque)


class DeliveryMachine(RuleBasedStateMachine):
    """One node, any number of sessions one after the other."""

    @initialize()
    def begin(self) -> None:
        self.now = 1000.0
        self.rows: dict[str, ObjectRow] = {}
        self.node = NodeRow(NODE)
        self.used_ids: dict[tuple[str, str], tuple[str, int | None]] = {}
        self.events: list[Event] = []
        self.cuts: dict[str, Cuts] = {}
        self.queue: deque[tuple[Op, Session | None]] = deque()
        self.session: Session | None = None
        self.epoch = 0
        self.ids = 0
        self.accepted: list[Published] = []
        self.publications: dict[str, Publication] = {}
        self.generation = dict.fromkeys(PATHS, 1)
        self.version = dict.fromkeys(PATHS, 0)
        self.deleted = dict.fromkeys(PATHS, False)
        # The edge: path -> (uid, version), and every message it got, in order.
        self.edge: dict[str, tuple[str, int]] = {}
        self.received: list[str] = []
        self.highest_sent: dict[str, int] = {}
        self.newest_sent: dict[str, tuple[int, int]] = {}  # path -> order and version
        self.places = {path: Place() for path in PATHS}
        self.position: dict[str, tuple[int, int]] = {}  # message id -> order and version at its path
        self.open_session(0)

    # -- helpers -----------------------------------------------------------------------------------

    @property
    def wall_ms(self) -> int:
        return int(self.now * 1000)

    def perform(self, session: Session, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                entry = action.entry
                assert entry.body is not None
                self.check_send(session, entry)
                session.frames.append((action.number, Message.FromString(entry.body), entry.version))
            elif isinstance(action, (Record, Keep)):
                self.queue.append((action.op, session))
            elif isinstance(action, Fetch):
                session.fetches.append(action.wanted)
            elif isinstance(action, LoadOn):
                further = session.claim._replace(after_seq=action.after_seq, last_seq=action.last_seq)
                self.queue.append((further, session))
            elif isinstance(action, Reread):
                self.queue.append((Reload(NODE, action.after_seq), session))

    def check_send(self, session: Session, entry: Entry) -> None:
        """Invariant 4: only the newest session sends. Invariant 2: never an older version after a newer."""
        assert session is self.session
        version = entry.version or 0
        assert version >= self.highest_sent.get(entry.key, 0), "an older version was sent after a newer one"
        self.highest_sent[entry.key] = version
        position = self.position[entry.message_id]
        assert position >= self.newest_sent.get(entry.path, (0, 0)), (
            "C15, C51: older than what was sent under its path"
        )
        self.newest_sent[entry.path] = position
        policy = session.policy
        assert policy.in_flight <= (1 if policy.doubtful_links else SETTINGS.window_messages)
        row = self.rows.get(entry.key)
        assert row is not None, "sent before it was durable"
        assert row.seq >= entry.seq

    def publish(
        self,
        path: str,
        version: int | None,
        *,
        is_delete: bool = False,
        uid: str | None = None,
        ttl: float = 0,
        priority: int = 0,
    ) -> None:
        uid = f"{path}#{self.generation[path]}" if uid is None else uid
        self.ids += 1
        message_id = f"m{self.ids}"
        message = Message(
            id=message_id, resource=path, operation="delete" if is_delete else "update", content=b"{}"
        )
        publication = Publication(
            message=message,
            body=message.SerializeToString(),
            acknowledged=True,
            key=uid or path,
            uid=uid,
            version=version,
            is_delete=is_delete,
            is_answer=False,
            own_id=True,
            priority=priority,
            expires_at_ms=int((self.now + ttl) * 1000) if ttl else 0,
            force=False,
            size_bytes=700,
            traceparent="",
        )
        self.publications[message_id] = publication
        self.queue.append((Accept(NODE, publication, self.wall_ms), None))

    def commit_one(self) -> None:
        op, session = self.queue.popleft()
        ledger = self.ledger()
        owner = self.node.owner_epoch
        result = ledger.apply(op)
        self.events += ledger.events
        live = self.session
        if isinstance(op, Accept) and isinstance(result, (Accepted, Duplicate)):
            if isinstance(result, Accepted):
                row = result.row
                self.position[row.message_id] = self.places[row.path].take(op.publication, row)
                self.accepted.append(
                    Published(row.message_id, row.path, row.key, row.version or 0, row.deleted, row.seq)
                )
            if live is not None:
                if isinstance(result, Duplicate) and result.unparked:
                    self.perform(live, live.policy.reread())
                elif isinstance(result, Duplicate):
                    self.perform(
                        live, live.policy.republished(result.row.key, result.row.seq, self.now, self.wall_ms)
                    )
                else:
                    entry = entry_of(result.row, self.now, self.wall_ms)
                    self.perform(live, live.policy.accepted(entry, self.now, self.wall_ms))
        elif isinstance(op, Accept):
            assert isinstance(result, Stale)
            self.check_stale(op.publication, result)
        elif isinstance(op, (Reload, Claim)) and isinstance(result, Loaded):
            if session is live and live is not None:
                assert not result.fenced
                self.read(
                    live, result, live.policy.reloaded if isinstance(op, Reload) else live.policy.loaded
                )
        elif isinstance(op, OwnedOp):
            assert isinstance(result, Fenced) == (op.epoch != owner), "a fenced session changed the outbox"
            if (
                live is not None
                and op.epoch == live.policy.epoch
                and isinstance(op, (Settle, Park, End))
                and live.policy.recorded(op.key, op.seq)
            ):
                self.perform(live, live.policy.proceed(self.now, self.wall_ms))

    def check_stale(self, publication: Publication, stale: Stale) -> None:
        """What is newer than all that was there is taken, unless its own object was deleted."""
        if publication.is_delete or stale.reason == "DELETED":
            return
        path = publication.message.resource
        versions = [item.version for item in self.accepted if item.path == path]
        assert (publication.version or 0) <= max(versions), stale

    def ledger(self) -> Ledger:
        return Ledger(
            Quotas(),
            Totals(),
            {NODE: self.node},
            {NODE: self.rows},
            self.used_ids,
            portion_rows=PORTION_ROWS,
            cuts=self.cuts,
        )

    def read(self, session: Session, loaded: Loaded, into: Callable[..., list[Action]]) -> None:
        entries = [entry_of(row, self.now, self.wall_ms) for row in loaded.rows]
        for entry in entries:
            entry.body = None
        more = {} if into == session.policy.reloaded else {"cuts": loaded.cuts}
        actions = into(
            entries, loaded.last_seq, self.now, self.wall_ms, through_seq=loaded.through_seq, **more
        )
        self.perform(session, actions)

    @precondition(lambda self: any(isinstance(op, (Reload, Claim)) for op, _ in self.queue))
    @rule(chance=RARELY)
    def store_is_away(self, chance: int) -> None:
        """What is to be read is not; records are kept and written later."""
        if chance:
            return
        reads = [item for item in self.queue if isinstance(item[0], (Reload, Claim))]
        self.queue = deque(item for item in self.queue if not isinstance(item[0], (Reload, Claim)))
        for _, session in reads:
            if session is self.session and session is not None:
                session.policy.read_failed()

    def commit_all(self) -> None:
        while self.queue:
            self.commit_one()

    # -- rules: publishers -------------------------------------------------------------------------

    @rule(
        path=st.sampled_from(PATHS),
        step=st.integers(1, 3),
        ttl=st.sampled_from([0.0, 0.0, 0.0, 8.0]),
        priority=st.sampled_from([0, 0, 5]),
        commit=st.sampled_from([True, True, False]),
        uid=UIDS,
    )
    def update(self, path: str, step: int, ttl: float, priority: int, commit: bool, uid: str) -> None:
        if self.deleted[path] or uid == "new":
            self.generation[path] += 1
            self.deleted[path] = False
        self.version[path] += step
        self.publish(path, self.version[path], uid="" if uid == "none" else None, ttl=ttl, priority=priority)
        if commit:
            self.commit_all()

    @rule(path=st.sampled_from(PATHS), back=st.integers(0, 3), uid=UIDS, generations_back=st.integers(0, 2))
    def publish_old_or_equal_version(self, path: str, back: int, uid: str, generations_back: int) -> None:
        """By whichever publisher; also of an object that was there before."""
        former = f"{path}#{max(1, self.generation[path] - generations_back)}"
        if not self.deleted[path] or uid == "none":
            self.publish(path, max(0, self.version[path] - back), uid="" if uid == "none" else former)

    @rule(
        path=st.sampled_from(PATHS),
        again=st.booleans(),
        uid=UIDS,
        versioned=st.booleans(),
        restart=st.booleans(),
    )
    def delete(self, path: str, again: bool, uid: str, versioned: bool, restart: bool) -> None:
        """And, as often happens, an object of the same name right after, in whatever versions."""
        if self.version[path] and not self.deleted[path]:
            version = self.version[path] if versioned or uid != "none" else None
            self.publish(path, version, uid="" if uid == "none" else None, is_delete=True)
            self.deleted[path] = True
            if again:
                if restart:
                    self.version[path] = 0
                self.update(path, 1, 0.0, 0, True, "same")

    @rule(path=st.sampled_from(PATHS), generations_back=st.integers(1, 3), back=st.integers(-1, 3))
    def delete_a_former_object(self, path: str, generations_back: int, back: int) -> None:
        """C15: late; without a version if `back` is -1."""
        version = None if back < 0 else max(0, self.version[path] - back)
        former = f"{path}#{max(1, self.generation[path] - generations_back)}"
        self.publish(path, version, uid=former, is_delete=True)

    # -- rules: the store --------------------------------------------------------------------------

    @precondition(lambda self: bool(self.queue))
    @rule(count=st.integers(1, 6))
    def commit(self, count: int) -> None:
        for _ in range(min(count, len(self.queue))):
            self.commit_one()

    @rule(chance=RARELY)
    def operator_redelivers_all_parked(self, chance: int) -> None:
        if chance:
            return
        ledger = self.ledger()
        for row in sorted(self.rows.values(), key=lambda row: row.seq):
            if row.state == RowState.PARKED:
                ledger.unpark(self.node, row, self.wall_ms)
        if self.session is not None:
            self.perform(self.session, self.session.policy.reread())

    @precondition(lambda self: self.session is not None and bool(self.session.fetches))
    @rule(fails=st.booleans())
    def fetch_bodies(self, fails: bool) -> None:
        session = self.session
        assert session is not None
        wanted = session.fetches.popleft()
        if fails:
            session.policy.fetch_failed(wanted)
            return
        found: list[tuple[str, int, bytes | None]] = []
        for key, seq in wanted:
            row = self.rows.get(key)
            moved = row is None or row.seq != seq or row.state == RowState.SETTLED
            found.append((key, seq, None if moved or row is None else self.body(row)))
        self.perform(session, session.policy.bodies(found, self.now, self.wall_ms))

    def body(self, row: ObjectRow) -> bytes:
        return self.publications[row.message_id].body

    # -- rules: sessions ---------------------------------------------------------------------------

    @rule(chance=RARELY)
    def open_session(self, chance: int) -> None:
        """Also a takeover: the former session may still have records on their way."""
        if chance and self.session is not None:
            return
        self.epoch += 1
        policy = NodeDelivery(NODE, self.epoch, SETTINGS, lambda: 0.5)
        self.session = Session(policy, Claim(NODE, self.epoch, self.wall_ms))
        ledger = self.ledger()
        loaded = ledger.apply(self.session.claim)
        assert isinstance(loaded, Loaded)
        assert not loaded.fenced
        self.events += ledger.events
        self.read(self.session, loaded, policy.loaded)

    @rule(chance=RARELY)
    def cut_link(self, chance: int) -> None:
        if self.session is not None and not chance:
            self.perform(self.session, self.session.policy.closed(self.wall_ms))
            self.session = None

    @precondition(lambda self: self.session is not None and self.session.policy.in_flight > 0)
    @rule(cut=st.sampled_from([LinkCut(1009), LinkCut(1009), LinkCut(), LinkCut(1001), LinkCut(silent=True)]))
    def edge_ends_link(self, cut: LinkCut) -> None:
        session = self.session
        assert session is not None
        self.perform(session, session.policy.cut(cut, self.now, self.wall_ms, self.now))
        self.perform(session, session.policy.closed(self.wall_ms))
        self.open_session(0)

    @rule(chance=RARELY)
    def kill_dispatcher(self, chance: int) -> None:
        """Everything in memory is gone: records not yet written, publishes not yet answered."""
        if chance:
            return
        self.queue.clear()
        self.session = None

    # -- rules: the link and the edge --------------------------------------------------------------

    @precondition(lambda self: self.session is not None and bool(self.session.frames))
    @rule(answers=st.lists(st.sampled_from(ANSWERS), min_size=1, max_size=3))
    def frames_reach_edge(self, answers: list[str]) -> None:
        for answer in answers:
            if self.session is not None and self.session.frames:
                self.frame_reaches_edge(answer)

    def frame_reaches_edge(self, answer: str) -> None:
        session = self.session
        assert session is not None
        number, message, version = session.frames.popleft()
        self.perform(session, session.policy.written(number, 0, self.now, self.wall_ms))
        self.received.append(message.id)
        if answer == "nack":
            session.acks.append((message.id, False))
            return
        if answer == "silence":
            return
        self.apply_at_edge(message, version or 0)
        session.acks.append((message.id, True))

    def apply_at_edge(self, message: Message, version: int) -> None:
        if message.operation == "delete":
            self.edge.pop(message.resource, None)
        else:
            self.edge[message.resource] = (self.publications[message.id].key, version)

    @precondition(lambda self: self.session is not None and bool(self.session.acks))
    @rule(twice=st.booleans())
    def ack_arrives(self, twice: bool) -> None:
        session = self.session
        assert session is not None
        message_id, positive = session.acks.popleft()
        for _ in range(2 if twice else 1):
            if positive:
                actions = session.policy.acknowledged(message_id, self.now, self.wall_ms)
            else:
                actions = session.policy.refused(message_id, "no space left", self.now, self.wall_ms)
            self.perform(session, actions)

    @rule(message=st.sampled_from(["unknown", "m1", "m2"]))
    def wrong_ack_arrives(self, message: str) -> None:
        """Of a message never sent in this life: harmless."""
        if self.session is not None and message not in self.publications:
            before = self.session.policy.in_flight
            self.session.policy.acknowledged(message, self.now, self.wall_ms)
            assert self.session.policy.in_flight == before

    @rule(seconds=st.sampled_from([0.1, 1.0, 6.0, 30.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        if self.session is not None:
            self.perform(self.session, self.session.policy.deadline(self.now, self.wall_ms))

    # -- invariants --------------------------------------------------------------------------------

    @invariant()
    def nothing_accepted_is_just_gone(self) -> None:
        """Invariant 1."""
        ended = {event.message_id for event in self.events if event.kind == EventKind.ENDED}
        acknowledged = {event.message_id for event in self.events if event.kind == EventKind.ACKNOWLEDGED}
        for item in self.accepted:
            row = self.rows[item.key]
            if row.message_id == item.message_id and row.state != RowState.SETTLED:
                continue
            assert item.message_id in ended or item.message_id in acknowledged, item
        for message_id in acknowledged:
            assert message_id in self.received, "acknowledged without having been received"

    @invariant()
    def one_object_is_live_per_path(self) -> None:
        """C51: in the outbox, and in the policy."""
        for path in PATHS:
            live = [row.key for row in self.rows.values() if row.path == path and not row.deleted]
            assert len(live) <= 1, live
            there = self.places[path].live
            assert live == ([there.key] if there else [])
            if self.session is not None:
                waiting = [
                    entry.key
                    for entry in self.session.policy._queue.entries.values()
                    if entry.path == path and not entry.is_delete
                ]
                assert len(waiting) <= 1, waiting

    @invariant()
    def counters_are_true(self) -> None:
        pending = [row for row in self.rows.values() if row.state != RowState.SETTLED]
        assert self.node.pending_rows == len(pending)
        assert self.node.objects == len(self.rows)
        assert self.node.pending_bytes == sum(row.size_bytes for row in pending)
        if self.session is None:
            return
        policy = self.session.policy
        assert policy.in_flight >= 0
        parked = sum(policy.state_of(key) is EntryState.PARKED for key in self.rows)
        assert policy.deliverable == policy.queued - parked

    def teardown(self) -> None:
        """Invariant 3: on a good link, with a good edge, everything ends as it was last accepted."""
        if "now" not in vars(self):
            return
        self.commit_all()
        self.operator_redelivers_all_parked(0)
        self.open_session(0)
        session = self.session
        assert session is not None
        for _ in range(400):
            self.commit_all()
            if session.fetches:
                self.fetch_bodies(fails=False)
            elif session.frames:
                self.frame_reaches_edge("ack")
            elif session.acks:
                self.ack_arrives(False)
            elif not self.queue and session.policy.doubtful_links:
                self.time_passes(30.0)
            elif not self.queue:
                break
        assert not [row for row in self.rows.values() if row.state != RowState.SETTLED], (
            "not all was delivered"
        )
        for path in PATHS:
            of_path = [item for item in self.accepted if item.path == path]
            expired = {
                event.message_id
                for event in self.events
                if event.kind == EventKind.ENDED
                and event.reason not in ("superseded", "deleted with its path")
                and not event.reason.startswith("replaced at its path")
            }
            if not of_path or any(item.message_id in expired for item in of_path):
                continue  # an expired version leaves the edge with what it had
            last = max(of_path, key=lambda item: item.seq)
            assert self.edge.get(path) == (None if last.is_delete else (last.key, last.version))


TestDeliveryMachine = DeliveryMachine.TestCase
TestDeliveryMachine.settings = settings(
    max_examples=250, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
