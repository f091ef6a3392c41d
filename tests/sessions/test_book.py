"""The working set of a transaction: `services.sessions.book`, driven with everything at once."""

import itertools

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.sessions.book import Book
from services.sessions.fencing import NO_EPOCH
from services.sessions.lifecycle import EventKind, Reason, Session, State
from services.sessions.limits import Limits, Place, Scope
from services.sessions.records import Deletion, Ending, Event, Eviction, Opening, Ref, Transfer
from tests.support.sessions import opening, recounted

nodes = st.sampled_from(["n1", "n2", "n3", "n4"])
dispatchers = st.sampled_from(["d1", "d2"])
connectors = st.sampled_from(["c1", "c2"])
projects = st.sampled_from(["p1", "p2"])
LIMITS = Limits(per_connector=2, per_project=2, total=3)


class BookMachine(RuleBasedStateMachine):
    """Every input in every state, from current and former holders, under a clock that steps both ways."""

    def __init__(self) -> None:
        super().__init__()
        ids = itertools.count()
        self.now_ms = 1000
        self.book = Book({}, {}, {}, LIMITS, make_id=lambda: str(next(ids)))
        self.held: list[tuple[str, Ref]] = []
        self.links: list[tuple[Transfer, Ref]] = []
        self.numbers = itertools.count(1)
        self.seen_changes = 0
        self.newest: dict[str, int] = {}
        self.ended: set[tuple[str, int]] = set()

    @rule(step=st.integers(-5000, 5000))
    def clock_steps(self, step: int) -> None:
        self.now_ms = max(0, self.now_ms + step)

    @rule(node=nodes, dispatcher=dispatchers, connector=connectors, project=projects)
    def open(self, node: str, dispatcher: str, connector: str, project: str) -> None:
        before = self.book.sessions.get(node)
        counts = dict(self.book.counts)
        number = next(self.numbers)
        opening = Opening(node, project, connector, number, "websocket", "")
        result = self.book.open(dispatcher, opening, self.now_ms)
        if result.full:
            assert result.epoch == NO_EPOCH
            assert counts[result.full] >= LIMITS.of(result.full)
            assert self.book.sessions.get(node) == before
            assert self.book.counts == counts
            return
        assert result.epoch > self.newest.get(node, 0)
        self.newest[node] = result.epoch
        ref = Ref(node, result.epoch)
        self.held.append((dispatcher, ref))
        self.links.append((Transfer(node, result.epoch, connector, number), ref))
        assert (result.superseded is not None) is (before is not None and before.live)
        if result.superseded:
            assert result.superseded.reason is Reason.SUPERSEDED
        # All that waits for the node is the opener's now.
        assert {event.dispatcher_id for event in self.book.pending.get(node, [])} <= {dispatcher}

    @rule(data=st.data())
    def activate(self, data: st.DataObject) -> None:
        if not self.held:
            return
        dispatcher, ref = data.draw(st.sampled_from(self.held))
        present = self.book.sessions.get(ref.node_id)
        result = self.book.activate(dispatcher, ref, self.now_ms)
        may = present and present.epoch == ref.epoch and present.state not in (State.DRAINING, State.CLOSED)
        assert result.active is bool(may)
        if result.event:
            assert (result.event.kind, result.event.epoch) == (EventKind.CONNECTED, ref.epoch)

    @rule(data=st.data(), dispatcher=dispatchers)
    def transfer(self, data: st.DataObject, dispatcher: str) -> None:
        """C37: any link, newest or not, with any epoch that its session has had."""
        if not self.links:
            return
        wanted, _ = data.draw(st.sampled_from(self.links))
        before = self.book.sessions[wanted.node_id]
        counts, written = dict(self.book.counts), len(self.book.written)
        result = self.book.transfer(dispatcher, wanted, self.now_ms)
        after = self.book.sessions[wanted.node_id]
        assert self.book.counts == counts, "no slot is freed or taken"
        assert len(self.book.written) == written, "no event"
        newest = (before.connector_id, before.link) == (wanted.connector_id, wanted.link)
        if not result.epoch:
            assert after == before
            assert not newest or before.state in (State.DRAINING, State.CLOSED) or not before.announced
            return
        assert newest
        assert before.state in (State.ACTIVE, State.ORPHANED)
        assert (after.state, after.dispatcher_id, after.epoch) == (State.ACTIVE, dispatcher, result.epoch)
        assert result.epoch > self.newest[wanted.node_id]
        self.newest[wanted.node_id] = result.epoch
        ref = Ref(wanted.node_id, result.epoch)
        self.held.append((dispatcher, ref))
        self.links.append((Transfer(wanted.node_id, result.epoch, wanted.connector_id, wanted.link), ref))
        assert {event.dispatcher_id for event in self.book.pending.get(wanted.node_id, [])} <= {dispatcher}

    @rule(
        data=st.data(),
        reason=st.sampled_from(sorted(set(Reason) - {Reason.TRANSFERRED})),
    )
    def close(self, data: st.DataObject, reason: Reason) -> None:
        if not self.held:
            return
        dispatcher, ref = data.draw(st.sampled_from(self.held))
        present = self.book.sessions.get(ref.node_id)
        result = self.book.close(dispatcher, Ending(ref.node_id, ref.epoch, reason), self.now_ms)
        assert result.closed is bool(present and present.live and present.epoch == ref.epoch)
        if present and present.epoch != ref.epoch:
            assert self.book.sessions[ref.node_id] == present

    @rule(data=st.data())
    def a_stranger_closes(self, data: st.DataObject) -> None:
        if not self.held:
            return
        _, ref = data.draw(st.sampled_from(self.held))
        before = dict(self.book.sessions)
        assert not self.book.close(
            "d9", Ending(ref.node_id, ref.epoch, Reason.EDGE_CLOSED), self.now_ms
        ).closed
        assert not self.book.activate("d9", ref, self.now_ms).active
        assert self.book.sessions == before

    @rule(node=nodes)
    def evict(self, node: str) -> None:
        before = self.book.sessions.get(node)
        result = self.book.evict(node, 0, self.now_ms)
        if before is None:
            assert result.eviction is Eviction.UNKNOWN_NODE
        elif not before.live:
            assert result.eviction is Eviction.NO_SESSION
        elif before.state in (State.ACTIVE, State.DRAINING):
            assert result.eviction is Eviction.ASKED
        else:
            assert result.eviction is Eviction.CLOSED

    @rule(node=nodes)
    def delete(self, node: str) -> None:
        before = self.book.sessions.get(node)
        if before and not before.live:
            return  # its row goes, and with it what this machine compares with
        result = self.book.delete(node, self.now_ms)
        assert result.known is (before is not None)
        if before:
            after = self.book.sessions[node]
            assert (result.epoch, after.epoch) == (before.epoch, before.epoch)
            assert after.reason is Reason.NODE_DELETED
            asked = before.state in (State.ACTIVE, State.DRAINING)
            assert after.state is (State.DRAINING if asked else State.CLOSED)
            assert self.book.directives[Ref(node, before.epoch)].reason is Reason.NODE_DELETED

    @rule(node=nodes)
    def lose(self, node: str) -> None:
        if node in self.book.sessions:
            self.book.lose(node, self.now_ms)

    @rule(node=nodes)
    def reclaim(self, node: str) -> None:
        if node in self.book.sessions:
            self.book.reclaim(node, self.now_ms)

    @rule(data=st.data())
    def expire(self, data: st.DataObject) -> None:
        if self.held:
            _, ref = data.draw(st.sampled_from(self.held))
            self.book.expire(ref.node_id, ref.epoch, self.now_ms)

    @invariant()
    def counters_are_exact_and_within_limits(self) -> None:
        exact = recounted(self.book.sessions.values())
        assert {place: nodes for place, nodes in self.book.counts.items() if nodes} == exact
        assert all(nodes <= LIMITS.of(place) for place, nodes in exact.items())

    @invariant()
    def no_session_ends_twice_or_lives_on(self) -> None:
        for session in self.book.changes[self.seen_changes :]:
            key = (session.node_id, session.epoch)
            assert key not in self.ended
            if not session.live:
                self.ended.add(key)
        self.seen_changes = len(self.book.changes)

    @invariant()
    def events_alternate_per_node(self) -> None:
        """C8: connected, disconnected, connected, ...; once each per session, with distinct ids."""
        told: dict[str, list[Event]] = {}
        for event in self.book.written:
            told.setdefault(event.node_id, []).append(event)
        for node_id, events in told.items():
            kinds = [event.kind for event in events]
            assert kinds[::2] == [EventKind.CONNECTED] * len(kinds[::2])
            assert kinds[1::2] == [EventKind.DISCONNECTED] * len(kinds[1::2])
            # A session that moved ends under a later epoch, before that of the next one.
            epochs = [event.epoch for event in events]
            assert epochs == sorted(epochs)
            session = self.book.sessions[node_id]
            assert (kinds[-1] is EventKind.CONNECTED) is (session.live and session.announced)
        assert len({event.event_id for event in self.book.written}) == len(self.book.written)


TestBook = BookMachine.TestCase
TestBook.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)


def fresh(sessions: dict[str, Session] | None = None, counts: dict[Place, int] | None = None) -> Book:
    ids = itertools.count()
    return Book(sessions or {}, {}, counts or {}, Limits(), make_id=lambda: str(next(ids)))


def test_a_deleted_nodes_session_ends_for_that_reason_whatever_its_dispatcher_says() -> None:
    """C10: the same id can come again, clean."""
    book = fresh()
    first = book.open("d1", Opening("n1", "p1", "c1", 1, "websocket", ""), 1000)
    book.activate("d1", Ref("n1", first.epoch), 1001)
    book.evict("n1", 0, 1001)
    assert book.delete("n1", 1002).epoch == first.epoch
    result = book.close("d1", Ending("n1", first.epoch, Reason.EVICTED), 1003)
    assert (result.closed, result.reason) == (True, Reason.NODE_DELETED)
    assert result.event
    second = book.open("d1", Opening("n1", "p1", "c1", 2, "websocket", ""), 1004)
    assert second.epoch > first.epoch
    assert second.superseded is None
    assert book.counts[Scope.TOTAL, ""] == 1


def test_deleting_a_node_whose_session_has_ended_removes_its_row() -> None:
    """C10."""
    book = fresh()
    epoch = book.open("d1", Opening("n1", "p1", "c1", 1, "websocket", ""), 1000).epoch
    book.close("d1", Ending("n1", epoch, Reason.EDGE_CLOSED), 1001)
    assert book.delete("n1", 1002) == Deletion(True, epoch)
    assert book.removed == {"n1"}
    assert book.delete("n1", 1003) == Deletion(False, NO_EPOCH)


def test_repeating_a_deletion_leaves_the_end_where_every_replica_finds_it() -> None:
    """C10."""
    book = fresh()
    epoch = book.open("d1", Opening("n1", "p1", "c1", 1, "websocket", ""), 1000).epoch
    for _ in range(2):
        assert book.delete("n1", 1001) == Deletion(True, epoch)
    assert book.sessions["n1"].state is State.CLOSED
    assert book.removed == set()


def test_an_eviction_of_another_epoch_changes_nothing() -> None:
    book = fresh()
    epoch = book.open("d1", Opening("n1", "p1", "c1", 1, "websocket", ""), 1000).epoch
    assert book.evict("n1", epoch + 1, 1001).eviction is Eviction.OTHER_EPOCH
    assert book.sessions["n1"].state is State.OPENING
    assert book.evict("n1", epoch, 1001).eviction is Eviction.CLOSED


def test_a_former_dispatchers_word_that_it_let_a_session_go_ends_nothing() -> None:
    """C36: not even if it named the present epoch."""
    book = fresh()
    epoch = book.open("d1", Opening("n1", "p1", "c1", 1, "websocket", ""), 1000).epoch
    book.activate("d1", Ref("n1", epoch), 1001)
    assert not book.close("d1", Ending("n1", epoch, Reason.TRANSFERRED), 1002).closed
    assert book.sessions["n1"].state is State.ACTIVE
    assert book.confirmed == [Ref("n1", epoch)]


def test_a_deleted_nodes_next_epoch_is_above_those_that_are_still_to_be_told() -> None:
    """C10, C36: the row is gone and the clock stepped back; no two sessions share an epoch."""
    book = fresh()
    opening = Opening("n1", "p1", "c1", 1, "websocket", "")
    former = book.open("d1", opening, 5000).epoch
    book.activate("d1", Ref("n1", former), 5000)
    book.close("d1", Ending("n1", former, Reason.EDGE_CLOSED), 5000)
    book.delete("n1", 5000)
    assert book.open("d1", opening, 1000).epoch == former + 1


def test_a_session_that_was_evicted_since_its_node_was_revoked_says_so_to_its_end() -> None:
    """Also one that was asked to end before; not one that ends for another reason."""
    book = fresh()
    for number, node_id in enumerate(("n1", "n2", "n3")):
        epoch = book.open("d1", opening(node_id, link=number + 1), 1000).epoch
        book.activate("d1", Ref(node_id, epoch), 1000)
    book.evict("n2", 0, 1001)
    for node_id in ("n1", "n2"):
        told = len(book.changes)
        assert book.evict(node_id, 0, 1002, revoked=True).eviction is Eviction.ASKED
        assert len(book.changes) == told + 1
        epoch = book.sessions[node_id].epoch
        book.close("d1", Ending(node_id, epoch, Reason.EDGE_CLOSED), 1003)
        assert (book.sessions[node_id].reason, book.sessions[node_id].revoked) == (Reason.EVICTED, True)
    book.delete("n3", 1001)
    book.evict("n3", 0, 1002, revoked=True)
    assert (book.sessions["n3"].reason, book.sessions["n3"].revoked) == (Reason.NODE_DELETED, False)
    again = book.open("d1", opening("n1", link=9), 1004)
    assert not book.sessions["n1"].revoked
    assert again.epoch
