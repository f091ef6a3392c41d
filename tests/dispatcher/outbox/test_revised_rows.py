"""What the outbox knows without asking while others write: `services.dispatcher.outbox.revised_rows`."""

from collections.abc import AsyncIterator
from copy import copy

import pytest
from sqlalchemy import text

from services.dispatcher.outbox.contract import SweepPlace
from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import Accepted, Claim, DeleteNode, NodeRow, Op, Stale
from services.dispatcher.outbox.revised_rows import RevisedRows, Transaction
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.outbox.sql import SqlOutbox
from services.runtime.store import open_store
from tests.support.outbox import NODE, NOW_MS, accept, publication, settle
from tests.support.postgres import Databases

OTHER = "edge-2"
FIRST = 1000


def written(rows: RevisedRows, node: NodeRow, *ops: Op) -> Transaction:
    """A transaction of these that is not confirmed yet; `node` is the row that it found."""
    transaction = rows.begin()
    transaction.locked([node])
    ledger = Ledger(Quotas(), Totals(), {node.node_id: node}, {}, {})
    for op in ops:
        ledger.apply(op)
    ledger.revise(FIRST)
    transaction.keep(ledger)
    return transaction


def floor(rows: RevisedRows, node: NodeRow, key: str) -> int | None:
    """Of an object, as a transaction knows it that found this row of its node."""
    transaction = rows.begin()
    transaction.locked([node])
    row = transaction.object((node.node_id, key))
    return row.floor if row else None


def test_what_was_written_is_known_while_the_revision_stands() -> None:
    rows, node = RevisedRows(), NodeRow(NODE)
    written(rows, node, accept(publication(3, uid="a"))).confirm()
    assert node.revision == FIRST
    written(rows, node, accept(publication(4, uid="b"))).confirm()
    assert [floor(rows, node, key) for key in "abc"] == [3, 4, None]
    raised = copy(node)
    raised.revision += 1
    assert floor(rows, raised, "a") is None, "somebody else wrote"
    assert floor(rows, node, "a") is None, "and what was known is forgotten"


def test_what_was_not_confirmed_is_not_known() -> None:
    rows, node = RevisedRows(), NodeRow(NODE)
    written(rows, node, accept(publication(3, uid="a"))).confirm()
    before = copy(node)
    written(rows, node, accept(publication(9, uid="a")))
    assert floor(rows, before, "a") == 3


def test_confirmations_out_of_turn_leave_nothing_wrong() -> None:
    rows, node = RevisedRows(), NodeRow(NODE)
    written(rows, node, accept(publication(3, uid="a"))).confirm()
    earlier = written(rows, node, accept(publication(4, uid="a")))
    between = copy(node)
    later = written(rows, node, accept(publication(5, uid="a")))
    later.confirm()
    earlier.confirm()
    assert floor(rows, between, "a") in (None, 4)
    assert floor(rows, node, "a") in (None, 5)


def test_a_row_that_its_taker_changes_stays_as_it_was_written() -> None:
    rows, node = RevisedRows(), NodeRow(NODE)
    written(rows, node, accept(publication(3, uid="a"))).confirm()
    transaction = rows.begin()
    transaction.locked([node])
    row = transaction.object((NODE, "a"))
    assert row is not None
    assert row.body is None
    row.floor = 99
    assert floor(rows, node, "a") == 3


def test_the_node_that_was_written_longest_ago_is_forgotten_first() -> None:
    rows, one, other = RevisedRows(most_objects=2), NodeRow(NODE), NodeRow(OTHER)
    written(rows, one, accept(publication(1, uid="a")), accept(publication(1, uid="b"))).confirm()
    written(rows, other, accept(publication(1, uid="c"), OTHER)).confirm()
    assert floor(rows, one, "a") is None
    assert floor(rows, other, "c") == 1


@pytest.fixture
async def outboxes(databases: Databases) -> AsyncIterator[tuple[SqlOutbox, SqlOutbox]]:
    """Those of two dispatchers."""
    url = await databases.fresh(SCHEMA)
    one, other = [SqlOutbox(await open_store(url, SCHEMA), Quotas()) for _ in range(2)]
    for outbox in (one, other):
        await outbox.open()
    yield one, other
    for outbox in (one, other):
        await outbox.store.close()


async def test_known_rows_spare_the_database_the_reading(outboxes: tuple[SqlOutbox, SqlOutbox]) -> None:
    """Rows that somebody takes away past the hub are not missed: they were not read."""
    one, _ = outboxes
    await one.commit([Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))])
    await one.store.write(lambda connection: connection.execute(text("DELETE FROM delivery")).rowcount)
    (older,) = await one.commit([accept(publication(2, uid="a"))])
    assert isinstance(older, Stale)


async def test_whatever_another_dispatcher_changes_is_seen(outboxes: tuple[SqlOutbox, SqlOutbox]) -> None:
    """C38: a publish, an acknowledgement, an operator's word, a sweep, and the node's deletion."""
    one, other = outboxes
    _, first = await one.commit([Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))])
    (newer,) = await other.commit([accept(publication(5, uid="a"))])
    (stale,) = await one.commit([accept(publication(4, uid="a"))])
    assert isinstance(newer, Accepted)
    assert newer.superseded_id, first
    assert isinstance(stale, Stale)
    await other.commit([settle(newer, 1)])
    (repeated,) = await one.commit([accept(publication(5, uid="a"))])
    assert isinstance(repeated, Stale)
    assert await other.resync(NODE, NOW_MS) == 1
    (anew,) = await one.commit([accept(publication(5, uid="a"))])
    assert isinstance(anew, Accepted)
    assert await other.purge(NODE, "a", NOW_MS) == 1
    (again,) = await one.commit([accept(publication(5, uid="a"))])
    assert isinstance(again, Accepted), "its message was ended, not acknowledged"
    (delete,) = await one.commit([accept(publication(None, uid="a", is_delete=True))])
    await one.commit([settle(delete, 1)])
    assert (await other.sweep(0, NOW_MS + 1, 10, SweepPlace())).rows == 1
    (created,) = await one.commit([accept(publication(1, uid="a"))])
    assert isinstance(created, Accepted), "its tombstone is gone"
    await other.commit([DeleteNode(NODE, 1)])
    (of_new_life,) = await one.commit([accept(publication(1, uid="a"))])
    assert isinstance(of_new_life, Accepted)
    assert of_new_life.row.seq == 1


async def test_a_node_made_anew_never_has_a_revision_of_its_former_life(
    outboxes: tuple[SqlOutbox, SqlOutbox],
) -> None:
    one, other = outboxes
    await one.commit([Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))])
    await other.commit([DeleteNode(NODE, 1), accept(publication(1, uid="b"))])
    (taken,) = await one.commit([accept(publication(2, uid="a"))])
    assert isinstance(taken, Accepted)
    assert taken.row.seq == 2


async def test_a_dispatcher_of_a_release_without_revisions_is_seen(
    outboxes: tuple[SqlOutbox, SqlOutbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    """C38: while a rollout goes on it writes to the same rows."""
    one, former = outboxes
    await one.commit([Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))])
    with monkeypatch.context() as release:
        release.setattr(Ledger, "revise", lambda *_: None)
        (newer,) = await former.commit([accept(publication(5, uid="a"))])
    (stale,) = await one.commit([accept(publication(4, uid="a"))])
    assert isinstance(stale, Stale)
    with monkeypatch.context() as release:
        release.setattr(Ledger, "revise", lambda *_: None)
        await former.commit([settle(newer, 1)])
    (repeated,) = await one.commit([accept(publication(5, uid="a"))])
    assert isinstance(repeated, Stale)
