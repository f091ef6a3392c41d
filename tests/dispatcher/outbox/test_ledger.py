"""The rules of versions, deletes, quotas and owners: `services.dispatcher.outbox.ledger`."""

from typing import TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.outbox.ledger import Change, Ledger
from services.dispatcher.outbox.needs import needs_of
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import (
    Accepted,
    Attempt,
    Claim,
    CountUnacknowledged,
    Duplicate,
    End,
    Event,
    EventKind,
    Fenced,
    Loaded,
    ObjectRow,
    Park,
    Reload,
    RowState,
    Settle,
    Stale,
)
from services.dispatcher.publication import Publication, Rejection
from tests.support.outbox import NODE, NOW_MS, PATH, accept, publication

R = TypeVar("R")
EPOCH = 7


class Book:
    """A ledger of one node that has a session, and the words to use it with."""

    def __init__(self, quotas: Quotas | None = None, *, known: bool = True) -> None:
        self.ledger = Ledger(quotas or Quotas(), Totals(), {}, {}, {})
        if known:
            self.ledger.apply(Claim(NODE, EPOCH, NOW_MS))

    def _expect(self, kind: type[R], what: Publication, node_id: str = NODE, at_ms: int = NOW_MS) -> R:
        result = self.ledger.apply(accept(what, node_id, at_ms))
        assert isinstance(result, kind), result
        return result

    def accepts(self, what: Publication, node_id: str = NODE, at_ms: int = NOW_MS) -> ObjectRow:
        return self._expect(Accepted, what, node_id, at_ms).row

    def replaces(self, what: Publication) -> str:
        return self._expect(Accepted, what).superseded_id

    def finds_duplicate(self, what: Publication) -> Duplicate:
        return self._expect(Duplicate, what)

    def accepted(self, what: Publication) -> Accepted:
        return self._expect(Accepted, what)

    def finds_stale(self, what: Publication) -> str:
        return self.stale(what).reason

    def stale(self, what: Publication) -> Stale:
        return self._expect(Stale, what)

    def rejects(self, what: Publication, node_id: str = NODE) -> Rejection:
        return self._expect(Rejection, what, node_id)

    def acknowledge(self, row: ObjectRow, epoch: int = EPOCH) -> None:
        result = self.ledger.apply(Settle(NODE, epoch, row.key, row.seq, row.version, row.message_id, NOW_MS))
        assert not isinstance(result, Fenced)

    def park(self, row: ObjectRow) -> None:
        self.ledger.apply(Park(NODE, EPOCH, row.key, row.seq, row.message_id, "silence", NOW_MS))
        assert self.row(row.key).state == RowState.PARKED

    def expire(self, row: ObjectRow) -> None:
        self.ledger.apply(End(NODE, EPOCH, row.key, row.seq, row.message_id, "expired", NOW_MS))

    def purge(self, row: ObjectRow) -> None:
        self.ledger.end(self.row(row.key), "purged", NOW_MS)

    def row(self, key: str = PATH) -> ObjectRow:
        return self.ledger.objects[NODE][key]

    def pending(self) -> list[tuple[str, str]]:
        """(key, message id) in order of seq."""
        rows = [row for row in self.ledger.objects.get(NODE, {}).values() if row.state != RowState.SETTLED]
        return [(row.key, row.message_id) for row in sorted(rows, key=lambda row: row.seq)]

    def events(self, message_id: str) -> list[tuple[EventKind, str]]:
        return [(event.kind, event.reason) for event in self.ledger.events if event.message_id == message_id]


@pytest.fixture
def book() -> Book:
    return Book()


# Versions, sentence by sentence (C13)


def test_a_newer_version_replaces_a_pending_older_one(book: Book) -> None:
    """C13."""
    book.accepts(publication(1, message_id="m1"))
    assert book.replaces(publication(2, message_id="m2")) == "m1"
    assert book.pending() == [(PATH, "m2")]
    assert book.row().seq == 2
    assert book.events("m1")[-1] == (EventKind.ENDED, "superseded")


def test_a_newer_version_replaces_a_parked_older_one(book: Book) -> None:
    """C20: a newer version un-parks."""
    book.park(book.accepts(publication(1)))
    row = book.accepts(publication(2))
    assert (row.state, row.attempts, row.reason) == (RowState.PENDING, 0, "")


def test_a_version_below_the_floor_is_stale_while_pending(book: Book) -> None:
    """C13."""
    book.accepts(publication(5, message_id="m5"))
    assert book.finds_stale(publication(4, message_id="m4")) == "BELOW_FLOOR"
    assert book.pending() == [(PATH, "m5")]
    assert book.events("m4") == [(EventKind.REJECTED, "BELOW_FLOOR")]


@pytest.mark.parametrize("ending", ["acknowledge", "expire", "purge"])
def test_a_version_below_the_floor_is_stale_also_when_settled(book: Book, ending: str) -> None:
    """C13: lower than the floor is STALE, also after ack, expiry and purge; force does not help."""
    getattr(book, ending)(book.accepts(publication(5)))
    assert book.pending() == []
    assert book.finds_stale(publication(4)) == "BELOW_FLOOR"
    assert book.finds_stale(publication(4, force=True)) == "BELOW_FLOOR"


def test_a_version_below_the_floor_is_stale_after_a_delete(book: Book) -> None:
    """C13."""
    book.accepts(publication(5))
    book.acknowledge(book.accepts(publication(6, is_delete=True)))
    assert book.finds_stale(publication(5)) == "BELOW_FLOOR"


def test_an_equal_version_that_is_pending_is_a_duplicate(book: Book) -> None:
    """C13: it is accepted and not doubled; the policy sends it again unless it is in flight."""
    book.accepts(publication(5, message_id="m1"))
    found = book.finds_duplicate(publication(5, message_id="m2"))
    assert (found.row.message_id, found.unparked) == ("m1", False)
    assert book.pending() == [(PATH, "m1")]
    assert book.ledger.totals.rows == 1


def test_an_equal_version_that_is_parked_is_unparked_at_its_place(book: Book) -> None:
    """C13."""
    row = book.accepts(publication(5))
    book.ledger.apply(CountUnacknowledged(NODE, EPOCH, PATH, row.seq, row.message_id, 10, NOW_MS))
    book.park(row)
    found = book.finds_duplicate(publication(5))
    assert found.unparked
    assert (found.row.state, found.row.seq, found.row.attempts, found.row.reason) == (
        RowState.PENDING,
        row.seq,
        0,
        "",
    )
    assert book.ledger.nodes[NODE].last_seq == row.seq + 1, "the owner must notice"
    assert book.events(row.message_id)[-1][0] == EventKind.REDELIVERED


def test_an_equal_version_that_is_acknowledged_is_stale_unless_forced(book: Book) -> None:
    """C13."""
    book.acknowledge(book.accepts(publication(5)))
    assert book.finds_stale(publication(5)) == "ACKNOWLEDGED"
    assert book.accepts(publication(5, force=True)).seq == 2
    assert book.finds_duplicate(publication(5, force=True))


def test_an_equal_version_is_accepted_again_after_a_resync(book: Book) -> None:
    """C13: the mark is gone, the floor is not."""
    book.acknowledge(book.accepts(publication(5)))
    book.row().acknowledged = None
    assert book.finds_stale(publication(4)) == "BELOW_FLOOR"
    book.accepts(publication(5))


@pytest.mark.parametrize("ending", ["expire", "purge"])
def test_an_equal_version_that_ended_unacknowledged_is_accepted_again(book: Book, ending: str) -> None:
    """C13: version = floor, and the node never said that it has it."""
    getattr(book, ending)(book.accepts(publication(5)))
    assert book.accepts(publication(5)).seq == 2


def test_versions_compare_as_integers(book: Book) -> None:
    """C17: 9 < 10."""
    book.accepts(publication(9))
    book.accepts(publication(10))
    assert book.finds_stale(publication(9)) == "BELOW_FLOOR"


@given(st.lists(st.integers(0, 10**20 - 1), min_size=1, max_size=8))
def test_the_floor_is_the_highest_version_accepted(versions: list[int]) -> None:
    """C13, C17."""
    book = Book()
    highest = -1
    for version in versions:
        result = book.ledger.apply(accept(publication(version)))
        expected = Accepted if version > highest else Duplicate if version == highest else Stale
        assert isinstance(result, expected)
        highest = max(highest, version)
        assert book.row().floor == book.row().version == highest
    assert book.ledger.totals.rows == 1


# What a delete does


def test_a_delete_beats_any_pending_version(book: Book) -> None:
    """C14: also one without a version, and one below the floor."""
    for version in (None, 3, 9):
        book.accepts(publication(5, uid=f"u{version}"))
        row = book.accepts(publication(version, uid=f"u{version}", is_delete=True))
        assert (row.deleted, row.operation, row.version) == (True, "delete", max(version or 0, 5))
    assert len(book.pending()) == 3


def test_a_delete_is_pending_until_acknowledged_and_final_once(book: Book) -> None:
    """C14: exactly one final delete per object."""
    book.accepts(publication(5, uid="u1"))
    row = book.accepts(publication(5, uid="u1", is_delete=True, message_id="d1"))
    assert (
        book.finds_duplicate(publication(6, uid="u1", is_delete=True, message_id="d2")).row.message_id == "d1"
    )
    assert book.pending() == [("u1", "d1")]
    book.acknowledge(row)
    assert book.finds_stale(publication(6, uid="u1", is_delete=True)) == "ACKNOWLEDGED"
    assert book.pending() == []


def test_a_parked_delete_is_unparked_by_an_equal_delete(book: Book) -> None:
    """C14."""
    book.park(book.accepts(publication(None, uid="u1", is_delete=True)))
    assert book.finds_duplicate(publication(None, uid="u1", is_delete=True)).unparked


@pytest.mark.parametrize("ending", ["expire", "purge"])
def test_a_delete_that_ended_unacknowledged_can_be_published_again(book: Book, ending: str) -> None:
    """C14."""
    getattr(book, ending)(book.accepts(publication(None, uid="u1", is_delete=True)))
    book.accepts(publication(None, uid="u1", is_delete=True))


def test_an_acknowledged_delete_is_sent_again_by_force(book: Book) -> None:
    book.acknowledge(book.accepts(publication(1, uid="u1", is_delete=True)))
    book.accepts(publication(1, uid="u1", is_delete=True, force=True))


def test_after_a_delete_a_version_of_the_same_uid_is_stale(book: Book) -> None:
    """C13: any version, pending or acknowledged delete."""
    row = book.accepts(publication(5, uid="u1", is_delete=True))
    assert book.finds_stale(publication(6, uid="u1")) == "DELETED"
    book.acknowledge(row)
    assert book.finds_stale(publication(6, uid="u1", force=True)) == "DELETED"
    assert book.row("u1").deleted


def test_an_update_with_a_deletion_timestamp_is_an_update(book: Book) -> None:
    """C14: until the delete comes. The hub looks at the operation alone."""
    book.accepts(publication(5, uid="u1"))
    assert not book.accepts(publication(6, uid="u1")).deleted
    assert book.accepts(publication(6, uid="u1", is_delete=True)).deleted


def test_under_a_path_key_a_create_above_the_floor_replaces_the_delete(book: Book) -> None:
    """And one that is not above it is stale."""
    book.accepts(publication(5, is_delete=True, message_id="d1"))
    assert book.finds_stale(publication(5)) == "BELOW_FLOOR"
    assert book.replaces(publication(6)) == "d1"
    assert (book.row().deleted, book.row().operation) == (False, "update")


def test_under_a_path_key_a_newer_delete_replaces_a_pending_one(book: Book) -> None:
    book.accepts(publication(5, is_delete=True, message_id="d1"))
    assert book.replaces(publication(6, is_delete=True, message_id="d2")) == "d1"
    book.acknowledge(book.row())
    assert book.finds_stale(publication(6, is_delete=True)) == "ACKNOWLEDGED"
    book.accepts(publication(7, is_delete=True))


def test_an_incomplete_delete_is_refused_where_nothing_says_its_type(book: Book) -> None:
    """C23, C16: of one node; another that has the object is sent the whole delete, its other nodes' is not
    changed by that."""
    web = "shop/deployment/web"
    bare = publication(None, path=web, is_delete=True, content=b"null")._replace(incomplete=True)
    book.accepts(publication(1, path=web)._replace(type_meta="apps/v1 Deployment"), "edge-2")
    refused = book.rejects(bare)
    assert (refused.reason, refused.field) == ("OBJECT_INCOMPLETE", "message.content")
    row = book.accepts(bare, "edge-2")
    assert row.body is not None
    assert b'"kind":"Deployment"' in row.body
    assert bare.message.content == b"null"
    assert book.rejects(bare) == refused


def test_what_is_published_last_says_the_type(book: Book) -> None:
    path = "shop/service/web"
    book.accepts(publication(1, path=path)._replace(type_meta="serving.knative.dev/v1 Service"))
    book.accepts(publication(2, path=path))
    row = book.accepts(publication(None, path=path, is_delete=True, content=b"{}")._replace(incomplete=True))
    assert row.body is not None
    assert b'"apiVersion":"v1"' in row.body


def test_a_delete_without_uid_is_about_what_is_at_its_path(book: Book) -> None:
    """One message goes out, about that object."""
    book.accepts(publication(1, uid="u1", path=PATH, message_id="m1"))
    book.accepts(publication(1, uid="elsewhere"))
    row = book.accepts(publication(None, is_delete=True, message_id="d1"))
    assert (row.key, row.message_id, row.floor) == ("u1", "d1", 1)
    assert [key for key, _ in book.pending()] == ["elsewhere", "u1"]
    assert book.row("u1").deleted
    assert not book.row("elsewhere").deleted
    assert book.events("m1")[-1] == (EventKind.ENDED, "superseded")
    assert book.finds_stale(publication(9, uid="u1", path=PATH)) == "DELETED"


def test_a_delete_without_uid_ends_all_that_a_former_release_left_at_its_path(book: Book) -> None:
    """Those had one object per key there; one message goes out, on the newest of them."""
    for turn in (1, 2, 3):
        book.accepts(publication(turn, uid=f"u{turn}", path=PATH, message_id=f"m{turn}"))
        for before in range(1, turn):
            book.row(f"u{before}").deleted = False
    book.ledger.paths.clear()
    row = book.accepts(publication(None, is_delete=True, message_id="d1"))
    assert (row.key, [key for key, _ in book.pending()]) == ("u3", ["u3"])
    for uid in ("u1", "u2", "u3"):
        assert book.finds_stale(publication(9, uid=uid, path=PATH)) == "DELETED"


def test_a_repeated_delete_without_uid_makes_no_second_delete(book: Book) -> None:
    """C14: also when the first was acknowledged meanwhile."""
    book.accepts(publication(3, uid="u1", path=PATH))
    row = book.accepts(publication(None, is_delete=True, message_id="d1"))
    assert book.finds_duplicate(publication(None, is_delete=True, message_id="d1")).row.message_id == "d1"
    assert book.finds_duplicate(publication(None, is_delete=True)).row.message_id == "d1"
    book.acknowledge(row)
    assert book.finds_stale(publication(None, is_delete=True)) == "ACKNOWLEDGED"
    assert book.pending() == []


def test_a_delete_without_uid_of_an_unknown_path_is_sent_all_the_same(book: Book) -> None:
    """The node may have the object from before."""
    row = book.accepts(publication(None, is_delete=True))
    assert (row.key, row.version, row.deleted) == (PATH, 0, True)


# Two objects of one name


@pytest.mark.parametrize("step", [10, -10])
def test_delete_and_create_under_one_name_are_both_pending_five_times(book: Book, step: int) -> None:
    """C15: neither hides the other, in order of seq; also if the versions of the new object are smaller."""
    expected: list[tuple[str, str]] = []
    book.accepts(publication(100, uid="u0", path=PATH))
    for turn in range(5):
        version = 100 + step * turn
        gone = publication(version, uid=f"u{turn}", path=PATH, is_delete=True, message_id=f"d{turn}")
        book.accepts(gone)
        book.accepts(publication(version + step, uid=f"u{turn + 1}", path=PATH, message_id=f"c{turn}"))
        if expected:
            expected.pop()  # the create before: its delete replaced it
        expected += [(f"u{turn}", f"d{turn}"), (f"u{turn + 1}", f"c{turn}")]
    assert book.pending() == expected
    for key, _ in book.pending():
        book.acknowledge(book.row(key))
    assert book.pending() == []
    assert [book.row(f"u{turn}").deleted for turn in range(6)] == [True] * 5 + [False]


def test_a_late_unpark_of_the_delete_stays_before_the_new_object(book: Book) -> None:
    """C15: a late resend of the delete never destroys the new object."""
    book.accepts(publication(1, uid="u1", path=PATH))
    delete = book.accepts(publication(2, uid="u1", path=PATH, is_delete=True, message_id="d1"))
    book.park(delete)
    book.accepts(publication(3, uid="u2", path=PATH, message_id="c1"))
    book.finds_duplicate(publication(2, uid="u1", path=PATH, is_delete=True))
    assert book.pending() == [("u1", "d1"), ("u2", "c1")]


# What is bounded


def test_a_nodes_pending_rows_are_capped(book: Book) -> None:
    """C18: at the cap the publisher is told; what is pending can still be replaced."""
    book.ledger.quotas = Quotas(node_rows=2)
    first = book.accepts(publication(1, uid="a"))
    book.accepts(publication(1, uid="b"))
    refusal = book.rejects(publication(1, uid="c", message_id="m3"))
    assert (refusal.reason, refusal.field) == ("NODE_QUOTA_ROWS", "node_ids")
    assert book.events("m3") == [(EventKind.REJECTED, "NODE_QUOTA_ROWS")]
    assert "c" not in book.ledger.objects[NODE]
    book.accepts(publication(2, uid="b"))
    book.acknowledge(first)
    book.accepts(publication(1, uid="c"))


def test_a_nodes_pending_bytes_are_capped(book: Book) -> None:
    """C18: a replacement counts by how much it grows."""
    book.ledger.quotas = Quotas(node_bytes=250)
    book.accepts(publication(1, uid="a"))
    book.accepts(publication(1, uid="b"))
    assert book.rejects(publication(1, uid="c")).reason == "NODE_QUOTA_BYTES"
    assert book.rejects(publication(2, uid="b", size_bytes=151)).reason == "NODE_QUOTA_BYTES"
    assert book.row("b").version == 1
    book.accepts(publication(2, uid="b", size_bytes=150))
    book.accepts(publication(3, uid="b", size_bytes=20))
    assert book.ledger.nodes[NODE].pending_bytes == 120


def test_pending_rows_and_bytes_of_all_nodes_are_capped(book: Book) -> None:
    """C18."""
    book.ledger.apply(Claim("edge-2", 1, NOW_MS))
    book.ledger.quotas = Quotas(total_rows=2, total_bytes=250)
    book.accepts(publication(1, uid="a"))
    book.accepts(publication(1, uid="a"), "edge-2")
    assert book.rejects(publication(1, uid="b", size_bytes=1)).reason == "TOTAL_QUOTA_ROWS"
    assert book.rejects(publication(2, uid="a", size_bytes=151)).reason == "TOTAL_QUOTA_BYTES"
    book.accepts(publication(2, uid="a", size_bytes=150))
    assert book.ledger.totals == Totals(2, 250)


def test_a_node_never_seen_has_a_quota_of_its_own() -> None:
    """C18: a mistyped id cannot fill the store."""
    book = Book(Quotas(unknown_node_rows=1, unknown_node_bytes=120), known=False)
    assert book.rejects(publication(1, size_bytes=121)).reason == "NODE_QUOTA_BYTES"
    book.accepts(publication(1, uid="a"))
    refusal = book.rejects(publication(1, uid="b"))
    assert refusal.reason == "NODE_QUOTA_ROWS"
    assert "never connected" in refusal.detail
    book.ledger.apply(Claim(NODE, 1, NOW_MS))
    book.accepts(publication(1, uid="b"))


def test_a_message_to_a_node_never_seen_expires_by_default() -> None:
    """C19: after the configured time, unless the publisher said when."""
    book = Book(Quotas(unknown_node_seconds=60), known=False)
    assert book.accepts(publication(1, uid="a")).expires_at_ms == NOW_MS + 60_000
    assert book.accepts(publication(1, uid="b", expires_at_ms=NOW_MS + 5)).expires_at_ms == NOW_MS + 5
    book.ledger.apply(Claim(NODE, 1, NOW_MS))
    assert book.accepts(publication(1, uid="c")).expires_at_ms == 0


def test_a_node_never_seen_is_refused_where_that_is_configured() -> None:
    """C16: unknown node."""
    book = Book(Quotas(refuse_unknown_nodes=True), known=False)
    refusal = book.rejects(publication(1))
    assert (refusal.reason, refusal.field) == ("UNKNOWN_NODE", "node_ids")
    book.ledger.apply(Claim(NODE, 1, NOW_MS))
    book.accepts(publication(1))


# When the time is over


def test_an_expired_message_keeps_its_floor_and_is_told(book: Book) -> None:
    """C19."""
    row = book.accepts(publication(5, message_id="m1", expires_at_ms=NOW_MS + 5))
    book.expire(row)
    assert (book.row().state, book.row().expires_at_ms, book.row().body) == (RowState.SETTLED, 0, None)
    assert book.events("m1")[-1] == (EventKind.ENDED, "expired")
    assert book.ledger.totals == Totals(0, 0)


def test_the_expiry_of_a_version_does_not_end_the_next(book: Book) -> None:
    """C19."""
    old = book.accepts(publication(5, expires_at_ms=NOW_MS + 5))
    book.accepts(publication(6))
    book.expire(old)
    assert book.row().state == RowState.PENDING


# What an acknowledgement settles


def test_an_ack_of_a_former_version_is_recorded_and_the_newer_stays_pending(book: Book) -> None:
    """C23: ack of 5 while 6 is pending."""
    five = book.accepts(publication(5))
    book.accepts(publication(6, message_id="m6"))
    book.acknowledge(five)
    assert (book.row().acknowledged, book.row().state) == (5, RowState.PENDING)
    assert book.pending() == [(PATH, "m6")]
    book.acknowledge(book.row())
    assert (book.row().acknowledged, book.row().state) == (6, RowState.SETTLED)


def test_a_late_ack_of_a_former_version_never_lowers_the_mark(book: Book) -> None:
    """C23."""
    five = book.accepts(publication(5))
    book.acknowledge(book.accepts(publication(6)))
    book.acknowledge(five)
    assert book.row().acknowledged == 6
    assert book.finds_stale(publication(6)) == "ACKNOWLEDGED"


def test_an_ack_that_comes_twice_changes_nothing_the_second_time(book: Book) -> None:
    """C24."""
    row = book.accepts(publication(5))
    book.acknowledge(row)
    book.acknowledge(row)
    assert book.row().acknowledged == 5
    assert book.ledger.totals == Totals(0, 0)


def test_an_ack_of_an_unknown_object_changes_nothing(book: Book) -> None:
    """C24."""
    book.ledger.apply(Settle(NODE, EPOCH, "unknown", 1, 5, "m1", NOW_MS))
    assert book.ledger.objects.get(NODE, {}) == {}


def test_an_ack_of_a_version_never_accepted_raises_no_mark(book: Book) -> None:
    """C24: an edge cannot acknowledge what is to come."""
    book.accepts(publication(5))
    book.ledger.apply(Settle(NODE, EPOCH, PATH, 99, 6, "m", NOW_MS))
    assert book.row().acknowledged is None


def test_a_late_ack_of_an_update_does_not_settle_the_delete(book: Book) -> None:
    """C14, C23: nor does it mark the delete as acknowledged."""
    update = book.accepts(publication(5, uid="u1"))
    book.accepts(publication(5, uid="u1", is_delete=True, message_id="d1"))
    book.acknowledge(update)
    assert book.row("u1").acknowledged is None
    assert book.pending() == [("u1", "d1")]
    book.purge(book.row("u1"))
    book.accepts(publication(5, uid="u1", is_delete=True))


def test_a_late_ack_settles_a_parked_message(book: Book) -> None:
    """C24."""
    row = book.accepts(publication(5))
    book.park(row)
    book.acknowledge(row)
    assert (book.row().state, book.row().reason) == (RowState.SETTLED, "acknowledged")


def test_a_message_id_used_again_for_another_version_is_rejected(book: Book) -> None:
    """C24: also when it was settled long ago."""
    book.acknowledge(book.accepts(publication(5, message_id="m1")))
    refusal = book.rejects(publication(6, message_id="m1"))
    assert (refusal.reason, refusal.field) == ("MESSAGE_ID_REUSED", "message.id")
    assert PATH in refusal.detail
    assert book.rejects(publication(5, uid="other", message_id="m1")).reason == "MESSAGE_ID_REUSED"


def test_a_message_id_used_again_for_the_same_version_is_a_repetition(book: Book) -> None:
    """Safe to repeat with the same message id."""
    row = book.accepts(publication(5, message_id="m1"))
    assert book.finds_duplicate(publication(5, message_id="m1"))
    book.acknowledge(row)
    assert book.finds_stale(publication(5, message_id="m1")) == "ACKNOWLEDGED"


def test_message_ids_count_per_node(book: Book) -> None:
    """C24."""
    book.accepts(publication(5, message_id="m1"))
    book.accepts(publication(6, message_id="m1"), "edge-2")


# What answers an edge


def test_answers_to_two_requests_are_two_messages(book: Book) -> None:
    """C40: keyed by id, exempt from the equal-version rule."""
    book.acknowledge(book.accepts(publication(5, uid="u1")))
    book.accepts(publication(5, is_answer=True, message_id="r1"))
    book.accepts(publication(5, is_answer=True, message_id="r2"))
    assert book.pending() == [("answer:r1", "r1"), ("answer:r2", "r2")]
    assert book.row("u1").floor == 5


def test_a_repeated_answer_is_a_duplicate(book: Book) -> None:
    """C40."""
    book.accepts(publication(None, is_answer=True, message_id="r1"))
    assert book.finds_duplicate(publication(None, is_answer=True, message_id="r1"))
    assert len(book.pending()) == 1


@pytest.mark.parametrize("ending", ["acknowledge", "expire"])
def test_a_settled_answer_leaves_no_row(book: Book, ending: str) -> None:
    """C40, invariant 6."""
    getattr(book, ending)(book.accepts(publication(None, is_answer=True, message_id="r1")))
    assert book.ledger.objects[NODE] == {}
    assert book.ledger.removed_objects == {(NODE, "answer:r1")}
    assert (NODE, "answer:r1") not in book.ledger.changed_objects
    assert book.ledger.totals == Totals(0, 0)


def test_an_answer_taken_again_after_it_ended_is_written_again(book: Book) -> None:
    book.expire(book.accepts(publication(None, is_answer=True, message_id="r1")))
    book.accepts(publication(None, is_answer=True, message_id="r1"))
    assert book.ledger.removed_objects == set()
    assert book.ledger.changed_objects[NODE, "answer:r1"] == Change.ACCEPTED


def test_a_delete_by_path_leaves_answers_alone(book: Book) -> None:
    """C40: an answer is about a request, not about an object."""
    book.accepts(publication(None, is_answer=True, message_id="r1"))
    book.accepts(publication(None, is_delete=True, message_id="d1"))
    assert book.pending() == [("answer:r1", "r1"), (PATH, "d1")]


# Owners


def test_a_claim_fences_the_former_owner(book: Book) -> None:
    """Invariant 4."""
    row = book.accepts(publication(5))
    loaded = book.ledger.apply(Claim(NODE, EPOCH + 1, NOW_MS))
    assert isinstance(loaded, Loaded)
    assert [found.seq for found in loaded.rows] == [row.seq]
    assert isinstance(book.ledger.apply(Settle(NODE, EPOCH, PATH, 1, 5, "m", NOW_MS)), Fenced)
    assert isinstance(book.ledger.apply(Claim(NODE, EPOCH, NOW_MS)), Loaded)
    book.acknowledge(row, EPOCH + 1)
    assert book.pending() == []


def test_a_claim_keeps_counts_and_parks(book: Book) -> None:
    """C20: the count of intervals outlives the link."""
    row = book.accepts(publication(5))
    book.ledger.apply(CountUnacknowledged(NODE, EPOCH, PATH, row.seq, row.message_id, 4, NOW_MS))
    book.park(row)
    loaded = book.ledger.apply(Claim(NODE, EPOCH + 1, NOW_MS))
    assert isinstance(loaded, Loaded)
    assert (loaded.rows[0].attempts, loaded.rows[0].state) == (4, RowState.PARKED)


def test_an_attempt_is_only_history(book: Book) -> None:
    row = book.accepts(publication(5, message_id="m1"))
    before = book.row().changed_at_ms
    book.ledger.apply(Attempt(NODE, EPOCH, PATH, "m1", 5, 1, NOW_MS + 9))
    assert (book.row().seq, book.row().changed_at_ms) == (row.seq, before)
    assert book.events("m1") == [(EventKind.ACCEPTED, ""), (EventKind.SENT, "")]


def test_a_refusal_is_told_before_the_park(book: Book) -> None:
    """C21: the edge's text is on record."""
    row = book.accepts(publication(5, message_id="m1"))
    book.ledger.apply(Park(NODE, EPOCH, PATH, row.seq, "m1", "no space left", NOW_MS, refused=True))
    assert book.events("m1")[1:] == [
        (EventKind.REFUSED, "no space left"),
        (EventKind.PARKED, "no space left"),
    ]


# What must be loaded


def test_needs_name_every_row_that_an_operation_looks_at() -> None:
    needs = needs_of(
        [
            accept(publication(1, uid="a", message_id="m1")),
            accept(publication(1, uid="b"), "n2"),
            accept(publication(None, is_delete=True), "n3"),
            Settle("n4", 1, "k4", 1, 1, "m", NOW_MS),
            Attempt("n5", 1, "k5", "m", 1, 1, NOW_MS),
            Claim("n6", 1, NOW_MS),
            Reload("n7", 40),
            Claim("n7", 1, NOW_MS, after_seq=30),
            Event("n8", EventKind.REJECTED, NOW_MS, "m"),
        ]
    )
    assert needs.nodes == {NODE, "n2", "n3", "n4", "n5", "n6", "n7"}
    assert needs.objects == {
        (NODE, "a"): "default/configmap/a",
        ("n2", "b"): "default/configmap/b",
        ("n3", PATH): PATH,
        ("n4", "k4"): "",
    }
    assert needs.message_ids == {(NODE, "m1")}
    assert needs.portions == {"n6": 0, "n7": 30}


@pytest.mark.parametrize(("nodes", "rows"), [(0, 512), (1, 512), (4, 128), (500, 16)])
def test_nodes_that_load_in_one_transaction_share_its_rows(nodes: int, rows: int) -> None:
    """C28: however much waits, others' work is between."""
    assert needs_of([Reload(f"n{number}") for number in range(nodes)]).portion_rows == rows


# Portions


def portioned(book: Book, rows: int, read_through: int | None = None) -> Ledger:
    """The same rows in another transaction, which loads so many."""
    ledger = Ledger(
        Quotas(), Totals(), book.ledger.nodes, book.ledger.objects, book.ledger.used_ids, portion_rows=rows
    )
    if read_through is not None:
        ledger.read_through[NODE] = read_through
    return ledger


def load(ledger: Ledger, op: Claim | Reload) -> tuple[list[int], int | None]:
    loaded = ledger.apply(op)
    assert isinstance(loaded, Loaded)
    assert not loaded.fenced
    return [row.seq for row in loaded.rows], loaded.through_seq


def test_a_backlog_is_claimed_in_portions(book: Book) -> None:
    for number in range(1, 6):
        book.accepts(publication(1, uid=f"u{number}"))
    claim = Claim(NODE, EPOCH + 1, NOW_MS)
    ledger = portioned(book, 2)
    assert load(ledger, claim) == ([1, 2], 2)
    assert load(ledger, claim._replace(after_seq=2)) == ([3, 4], 4)
    assert load(ledger, claim._replace(after_seq=4)) == ([5], None)


def test_what_was_not_read_is_not_passed_over(book: Book) -> None:
    """Of six rows the first three were read, and the last one for another reason. Whatever ends before the
    load, what lies between comes with the next portion."""
    rows = [book.accepts(publication(1, uid=f"u{number}")) for number in range(1, 7)]
    for row in rows[3:5]:
        del book.ledger.objects[NODE][row.key]
    ledger = portioned(book, 3, read_through=3)
    ledger.apply(Settle(NODE, EPOCH, "u2", 2, 1, rows[1].message_id, NOW_MS))
    assert load(ledger, Reload(NODE)) == ([1, 3], 3)
    assert load(ledger, Reload(NODE, 5)) == ([], 5), "read for another load: this one asks again"


def test_a_claim_that_goes_on_is_fenced_by_a_newer_one(book: Book) -> None:
    """Invariant 4."""
    book.accepts(publication(1))
    later = book.ledger.apply(Claim(NODE, EPOCH - 1, NOW_MS, after_seq=1))
    assert isinstance(later, Loaded)
    assert later.fenced


def test_a_claim_that_goes_on_ends_answers_of_former_sessions_only(book: Book) -> None:
    """C40."""
    book.accepts(publication(1, uid="u1"))
    book.accepts(publication(None, is_answer=True, message_id="old"))
    claim = Claim(NODE, EPOCH + 1, NOW_MS)
    assert load(portioned(book, 1), claim) == ([1], 1)
    book.accepts(publication(None, is_answer=True, message_id="new"))
    assert load(portioned(book, 9), claim._replace(after_seq=1, last_seq=2)) == ([3], None)


def test_a_message_costs_one_row_of_history_and_one_more_if_its_publisher_chose_its_id(book: Book) -> None:
    unnamed, named = book.accepts(publication(1)), book.accepts(publication(1, uid="b", message_id="m1"))
    book.acknowledge(unnamed)
    book.acknowledge(named)
    (only,) = [event for event in book.ledger.events if event.message_id == unnamed.message_id]
    assert (only.kind, only.accepted_at_ms) == (EventKind.ACKNOWLEDGED, NOW_MS)
    told = [(event.kind, event.accepted_at_ms) for event in book.ledger.events if event.message_id == "m1"]
    assert told == [(EventKind.ACCEPTED, 0), (EventKind.ACKNOWLEDGED, 0)]
