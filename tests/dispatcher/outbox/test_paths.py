"""One path, one object (C51, C15): the table in docs/architecture.md, line by line."""

from collections.abc import Callable

import pytest

from services.dispatcher.outbox.records import Event, EventKind, RowState
from services.dispatcher.publication import Publication
from tests.dispatcher.outbox.test_ledger import Book
from tests.support.outbox import PATH, publication


def update(version: int, uid: str = "", *, force: bool = False, message_id: str = "") -> Publication:
    """Of the object `uid` at PATH, or without one."""
    return publication(version, uid=uid, path=PATH, force=force, message_id=message_id)


def delete(version: int | None, uid: str = "", *, force: bool = False) -> Publication:
    return publication(version, uid=uid, path=PATH, is_delete=True, force=force)


# What became of the first object before the second comes.
ENDINGS = ["pending", "parked", "acknowledged", "expired"]


def with_object(book: Book, what: Publication, ending: str) -> None:
    row = book.accepts(what)
    if ending == "parked":
        book.park(row)
    elif ending == "acknowledged":
        book.acknowledge(row)
    elif ending == "expired":
        book.expire(row)


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("first", "second"), [("u1", ""), ("", "u1"), ("u1", "u2")])
def test_an_older_version_of_another_key_is_stale(book: Book, first: str, second: str, ending: str) -> None:
    """C51: whatever became of the newer one; force does not help."""
    with_object(book, update(50, first), ending)
    before = book.pending()
    assert book.finds_stale(update(30, second)) == "PATH_TAKEN"
    assert book.finds_stale(update(30, second, force=True)) == "PATH_TAKEN"
    assert book.pending() == before
    assert set(book.ledger.objects["edge-1"]) == {first or PATH}


def test_a_refusal_names_what_is_there(book: Book) -> None:
    """C51: the caller and the history are told."""
    book.accepts(update(50, "u1"))
    stale = book.stale(update(30, message_id="late"))
    assert (stale.reason, stale.detail) == ("PATH_TAKEN", "object u1 is there with version 50")
    assert book.events("late") == [(EventKind.REJECTED, "PATH_TAKEN")]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize(("first", "second"), [("u1", ""), ("", "u1"), ("u1", "u2")])
def test_a_newer_version_of_another_key_takes_the_path(
    book: Book, first: str, second: str, ending: str
) -> None:
    """C51, invariant 9: one live object per path; the former one's end is told with its reason."""
    with_object(book, update(50, first, message_id="m1"), ending)
    was_pending = ending in ("pending", "parked")
    accepted = book.accepted(update(60, second, message_id="m2"))
    assert accepted.replaced == was_pending
    assert book.pending() == [(second or PATH, "m2")]
    former = book.row(first or PATH)
    reason = f"replaced at its path by {second or PATH} version 60"
    assert (former.deleted, former.is_replaced, former.state) == (True, True, RowState.SETTLED)
    assert former.reason == reason
    assert book.events("m1")[-1] == (EventKind.ENDED, reason)
    node, totals = book.ledger.nodes["edge-1"], book.ledger.totals
    assert (node.pending_rows, node.pending_bytes, totals.rows) == (1, 100, 1)
    assert book.finds_stale(update(50, first)) == "BELOW_FLOOR"


def test_a_former_object_comes_back_with_a_newer_version(book: Book) -> None:
    """Two publishers of one object may both go on: the newest version wins, whoever published it."""
    book.accepts(update(50, "u1"))
    for version, uid in ((51, ""), (52, "u1"), (53, ""), (54, "u1")):
        assert book.finds_stale(update(version - 1, uid)) in ("PATH_TAKEN", "BELOW_FLOOR")
        book.accepts(update(version, uid))
        assert [key for key, _ in book.pending()] == [uid or PATH]
    assert book.ledger.nodes["edge-1"].objects == 2


def test_an_equal_version_of_another_key_is_stale_unless_the_node_never_got_it(book: Book) -> None:
    """It says what the node has or gets."""
    row = book.accepts(update(50, "u1"))
    assert book.finds_stale(update(50)) == "PATH_TAKEN"
    book.acknowledge(row)
    assert book.finds_stale(update(50)) == "PATH_TAKEN"
    book.row("u1").acknowledged = None  # ResyncNode
    assert book.accepts(update(50)).key == PATH


def test_an_equal_version_of_another_key_takes_the_path_by_force(book: Book) -> None:
    book.acknowledge(book.accepts(update(50, "u1")))
    assert book.accepts(update(50, force=True)).key == PATH


def test_a_late_acknowledgement_of_the_former_object_changes_nothing(book: Book) -> None:
    """C23."""
    first = book.accepts(update(50, "u1"))
    book.accepts(update(60))
    book.acknowledge(first)
    assert (book.row("u1").acknowledged, book.row("u1").is_replaced) == (None, True)
    assert [key for key, _ in book.pending()] == [PATH]


def test_the_room_of_what_is_replaced_is_free(book: Book) -> None:
    """C18."""
    book.ledger.quotas = type(book.ledger.quotas)(node_rows=1, node_bytes=100, total_rows=1, total_bytes=100)
    book.accepts(update(50, "u1"))
    book.accepts(update(60))
    assert book.rejects(publication(1, uid="other")).reason == "NODE_QUOTA_ROWS"


# Deletes


@pytest.mark.parametrize("version", [None, 30, 70])
def test_a_late_delete_of_a_former_object_never_destroys_what_is_there(
    book: Book, version: int | None
) -> None:
    """C15: an edge would delete the new object, whatever the delete's version; known or not."""
    book.accepts(update(50, "u1"))
    book.acknowledge(book.accepts(update(60, "u2")))
    for uid in ("u1", "never-seen"):
        for force in (False, True):
            assert book.finds_stale(delete(version, uid, force=force)) == "PATH_TAKEN"
    assert book.pending() == []
    assert not book.row("u2").deleted


@pytest.mark.parametrize("ending", ["acknowledge", "expire", "purge"])
def test_a_late_delete_of_a_deleted_object_never_destroys_the_next(book: Book, ending: str) -> None:
    """C15: also one whose delete expired, so that it would be taken again if nothing were there."""
    book.accepts(update(50, "u1"))
    getattr(book, ending)(book.accepts(delete(50, "u1")))
    book.accepts(update(10, "u2"))
    for force in (False, True):
        assert book.finds_stale(delete(50, "u1", force=force)) == "PATH_TAKEN"
    assert [key for key, _ in book.pending()] == ["u2"]


@pytest.mark.parametrize(("version", "taken"), [(None, False), (49, False), (50, True), (70, True)])
def test_a_delete_with_uid_of_what_was_published_without_one(
    book: Book, version: int | None, taken: bool
) -> None:
    """It may be the same object; then the delete has to be as new as what is there."""
    book.accepts(update(40, "u1"))
    book.accepts(update(50))
    if not taken:
        assert book.finds_stale(delete(version, "u1")) == "PATH_TAKEN"
        return
    row = book.accepts(delete(version, "u1"))
    assert book.pending() == [("u1", row.message_id)]
    assert (book.row().deleted, book.row().is_replaced, book.row().reason) == (
        True,
        False,
        "deleted with its path",
    )


@pytest.mark.parametrize(("version", "taken"), [(None, True), (49, False), (50, True), (70, True)])
def test_a_delete_without_uid_of_what_was_published_with_one(
    book: Book, version: int | None, taken: bool
) -> None:
    """C51: an older delete does not pass a newer object either."""
    book.accepts(update(50, "u1"))
    if taken:
        assert book.accepts(delete(version)).key == "u1"
    else:
        assert book.finds_stale(delete(version)) == "PATH_TAKEN"


def test_a_delete_of_an_object_that_was_replaced_by_one_that_is_gone_too_is_stale(book: Book) -> None:
    book.accepts(update(50, "u1"))
    book.accepts(update(60, "u2"))
    book.acknowledge(book.accepts(delete(61, "u2")))
    assert book.finds_stale(delete(50, "u1")) == "REPLACED"


# After a delete


def test_nothing_older_than_a_delete_brings_its_object_back(book: Book) -> None:
    """C51: by whichever key; a former object knows its path's newest delete."""
    book.accepts(update(40, "u1"))
    book.accepts(update(50))
    book.accepts(update(60, "u2"))
    book.acknowledge(book.accepts(delete(61, "u2")))
    assert book.finds_stale(update(55)) == "BELOW_FLOOR"
    assert book.finds_stale(update(55, "u1")) == "BELOW_FLOOR"
    assert book.finds_stale(update(70, "u2")) == "DELETED"
    assert book.accepts(update(62)).key == PATH


def test_an_object_with_a_new_uid_follows_a_delete_with_a_uid_in_any_version(book: Book) -> None:
    """C15: it is another object."""
    book.accepts(update(50, "u1"))
    book.accepts(delete(50, "u1"))
    book.accepts(update(1, "u2"))


def test_an_object_with_a_new_uid_follows_a_delete_without_one_in_a_newer_version_only(book: Book) -> None:
    """C51: it may be an older state of the object that was deleted."""
    book.accepts(update(50))
    book.acknowledge(book.accepts(delete(51)))
    assert book.finds_stale(update(51, "u1")) == "BELOW_FLOOR"
    book.accepts(update(52, "u1"))


# Paths


@pytest.mark.parametrize("what", [update(51, "u1"), delete(51, "u1")])
def test_a_uid_names_one_path(book: Book, what: Publication) -> None:
    """C16: an edge would keep two objects, and a delete would end another one."""
    book.accepts(publication(50, uid="u1", path="default/configmap/first"))
    book.accepts(publication(1, path=PATH))
    refusal = book.rejects(what)
    assert (refusal.reason, refusal.field) == ("UID_AT_OTHER_PATH", "message.resource")
    assert "default/configmap/first" in refusal.detail


def test_objects_without_a_path_have_no_place_in_common(book: Book) -> None:
    message = publication(50, uid="u1").message
    message.resource = ""
    for uid in ("u1", "u2"):
        book.accepts(publication(50, uid=uid)._replace(message=message))
    assert [key for key, _ in book.pending()] == ["u1", "u2"]


def test_answers_take_no_path_and_give_none_away(book: Book) -> None:
    """C40."""
    answer = publication(1, path=PATH, is_answer=True, message_id="r1")
    book.accepts(answer)
    book.accepts(update(50, "u1"))
    book.accepts(publication(60, path=PATH, is_answer=True, message_id="r2"))
    assert [key for key, _ in book.pending()] == ["answer:r1", "u1", "answer:r2"]
    book.accepts(update(60))
    assert [key for key, _ in book.pending()] == ["answer:r1", "answer:r2", PATH]
    assert book.ledger.nodes["edge-1"].objects == 2


@pytest.mark.parametrize("turn", [0, 1])
def test_what_a_batch_did_at_a_path_counts_for_the_rest_of_it(book: Book, turn: int) -> None:
    """C51: the rows are looked up once."""
    uids: list[Callable[[int], Publication]] = [lambda version: update(version, "u1"), update]
    first, second = uids[turn], uids[1 - turn]
    book.accepts(first(50))
    book.accepts(second(60))
    assert book.finds_stale(first(55)) == "PATH_TAKEN"
    book.accepts(first(70))
    assert book.finds_stale(second(65)) == "PATH_TAKEN"
    live = [row for row in book.ledger.objects["edge-1"].values() if not row.deleted]
    assert [row.floor for row in live] == [70]


def test_a_long_name_is_cut_where_it_is_told(book: Book) -> None:
    book.accepts(update(50, "u" * 1024))
    assert len(book.stale(update(30)).detail) < 320
    book.accepts(update(60, message_id="m2"))
    ends: list[Event] = [event for event in book.ledger.events if event.kind == EventKind.ENDED]
    assert max(len(event.reason) for event in ends) < 320
