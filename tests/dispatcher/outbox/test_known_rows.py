"""What the outbox knows without asking: `services.dispatcher.outbox.known_rows`."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TypeVar

import pytest
from sqlalchemy import Connection, text

from services.dispatcher.outbox import schema
from services.dispatcher.outbox.contract import SweepPlace
from services.dispatcher.outbox.known_rows import KnownRows
from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import Accepted, Claim, DeleteNode, Op, RowState, Stale
from services.dispatcher.outbox.sql import SqlOutbox
from services.runtime.errors import StoreUnavailable
from services.runtime.store import Store, open_store
from tests.support.outbox import NODE, NOW_MS, accept, publication, settle

T = TypeVar("T")

OTHER = "edge-2"


def applied(*ops: Op) -> Ledger:
    ledger = Ledger(Quotas(), Totals(), {}, {}, {})
    for op in ops:
        ledger.apply(op)
    return ledger


def kept(known: KnownRows, *ops: Op) -> int:
    """A transaction of these; its number."""
    number = known.begin()
    known.keep(applied(*ops))
    return number


def test_rows_of_a_confirmed_transaction_are_known_without_their_body() -> None:
    known = KnownRows()
    known.confirm(kept(known, accept(publication(3, uid="a"))))
    known.begin()
    row = known.object((NODE, "a"))
    assert row is not None
    assert (row.floor, row.state, row.seq, row.body) == (3, RowState.PENDING, 1, None)
    node = known.node(NODE)
    assert node is not None
    assert (node.last_seq, node.pending_rows) == (1, 1)
    assert known.object((NODE, "b")) is None
    assert known.node(OTHER) is None


def test_nothing_is_known_after_a_transaction_that_nobody_confirmed() -> None:
    known = KnownRows()
    known.confirm(kept(known, accept(publication(3, uid="a"))))
    kept(known, accept(publication(4, uid="a")))
    known.begin()
    assert known.object((NODE, "a")) is None
    assert known.node(NODE) is None


def test_a_confirmation_that_comes_late_does_not_cover_the_transaction_behind_it() -> None:
    known = KnownRows()
    first = kept(known, accept(publication(3, uid="a")))
    kept(known, accept(publication(4, uid="a")))
    known.confirm(first)
    known.begin()
    assert known.object((NODE, "a")) is None


def test_a_row_that_is_changed_by_its_taker_stays_as_it_was_written() -> None:
    known = KnownRows()
    known.confirm(kept(known, accept(publication(3, uid="a"))))
    known.begin()
    row = known.object((NODE, "a"))
    assert row is not None
    row.floor = 99
    again = known.object((NODE, "a"))
    assert again is not None
    assert again.floor == 3


def test_what_was_written_longest_ago_is_forgotten_first() -> None:
    known = KnownRows(most_nodes=1, most_objects=2)
    for version, uid, node_id in ((1, "a", NODE), (1, "b", NODE), (2, "a", NODE), (1, "c", OTHER)):
        known.confirm(kept(known, accept(publication(version, uid=uid), node_id)))
    known.begin()
    assert known.object((NODE, "b")) is None
    assert known.object((NODE, "a")) is not None
    assert known.object((OTHER, "c")) is not None
    assert known.node(NODE) is None
    assert known.node(OTHER) is not None


def test_a_deleted_node_is_not_known() -> None:
    known = KnownRows()
    known.confirm(kept(known, Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))))
    known.confirm(kept(known, DeleteNode(NODE, 1)))
    known.begin()
    assert known.node(NODE) is None
    assert known.object((NODE, "a")) is None


class BreakingStore:
    """The real store, whose next transaction can be made to fail when its work is done."""

    is_shared = False

    def __init__(self, store: Store) -> None:
        self._store = store
        self.breaks = False

    async def write(self, work: Callable[[Connection], T]) -> T:
        def broken(connection: Connection) -> T:
            work(connection)
            raise StoreUnavailable("the disk is full")

        return await self._store.write(broken if self.breaks else work)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._store.read(work)

    async def close(self) -> None:
        await self._store.close()


@pytest.fixture
async def broken(tmp_path: Path) -> AsyncIterator[tuple[BreakingStore, SqlOutbox]]:
    store = BreakingStore(await open_store(f"sqlite:///{tmp_path / 'outbox.db'}", schema.SCHEMA))
    outbox = SqlOutbox(store, Quotas())
    await outbox.open()
    yield store, outbox
    await store.close()


async def test_a_transaction_that_failed_leaves_no_trace(broken: tuple[BreakingStore, SqlOutbox]) -> None:
    """An acknowledgement that was not stored, and a version that was not accepted, are as if never tried."""
    store, outbox = broken
    (_, first) = await outbox.commit([Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))])
    store.breaks = True
    with pytest.raises(StoreUnavailable):
        await outbox.commit([settle(first, 1), accept(publication(9, uid="b"))])
    store.breaks = False
    (again, other) = await outbox.commit([accept(publication(4, uid="a")), accept(publication(1, uid="b"))])
    assert isinstance(again, Accepted)
    assert again.superseded_id, "the former version was still pending"
    assert isinstance(other, Accepted)
    assert (again.row.seq, other.row.seq) == (2, 3)
    assert outbox.totals.rows == 2


async def test_what_is_changed_past_the_ledger_is_read_again(
    broken: tuple[BreakingStore, SqlOutbox],
) -> None:
    _, outbox = broken
    (_, first) = await outbox.commit([Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))])
    await outbox.commit([settle(first, 1)])
    (stale,) = await outbox.commit([accept(publication(3, uid="a"))])
    assert isinstance(stale, Stale)
    assert await outbox.resync(NODE, NOW_MS) == 1
    (anew,) = await outbox.commit([accept(publication(3, uid="a"))])
    assert isinstance(anew, Accepted)
    (delete,) = await outbox.commit([accept(publication(None, uid="a", is_delete=True))])
    await outbox.commit([settle(delete, 1)])
    assert (await outbox.sweep(0, NOW_MS + 1, 10, SweepPlace())).rows == 1
    (created,) = await outbox.commit([accept(publication(1, uid="a"))])
    assert isinstance(created, Accepted), "its tombstone is gone"


async def test_known_rows_spare_the_database_the_reading(
    broken: tuple[BreakingStore, SqlOutbox],
) -> None:
    """Rows that somebody else takes away are not missed: they were not read."""
    store, outbox = broken
    await outbox.commit([Claim(NODE, 1, NOW_MS), accept(publication(3, uid="a"))])
    await store.write(lambda connection: connection.execute(text("DELETE FROM delivery")).rowcount)
    (older,) = await outbox.commit([accept(publication(2, uid="a"))])
    assert isinstance(older, Stale)
