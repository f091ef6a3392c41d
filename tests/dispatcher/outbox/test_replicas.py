"""Several dispatchers over one database: `services.dispatcher.outbox` on PostgreSQL."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import asyncpg
import pytest
from sqlalchemy import Connection, text

from services.dispatcher.outbox.contract import NodeFilter, SweepPlace
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import (
    Accepted,
    Claim,
    Event,
    EventKind,
    Fenced,
    Loaded,
    Op,
    Result,
    RowState,
    Settle,
    Stale,
)
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.outbox.sql import SqlOutbox
from services.dispatcher.publication import Rejection
from services.runtime import store_postgresql
from services.runtime.errors import StoreBusy
from services.runtime.store import Store, open_store
from tests.support.outbox import NODE, NOW_MS, PATH, accept, publication
from tests.support.postgres import Databases

T = TypeVar("T")
OTHER = "edge-2"
EVERY_NODE = NodeFilter()


class DelayedStore:
    """Commits `seconds` after the work is done, with all its locks held until then."""

    is_shared = True

    def __init__(self, store: Store, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self.worked = asyncio.Event()

    async def write(self, work: Callable[[Connection], T]) -> T:
        def delayed(connection: Connection) -> T:
            result = work(connection)
            self.worked.set()
            connection.execute(text(f"SELECT pg_sleep({self._seconds})"))
            return result

        return await self._store.write(delayed)

    async def read(self, work: Callable[[Connection], T]) -> T:
        return await self._store.read(work)

    async def close(self) -> None:
        await self._store.close()


@pytest.fixture
async def url(databases: Databases) -> str:
    return await databases.fresh(SCHEMA)


async def opened(url: str, quotas: Quotas | None = None) -> SqlOutbox:
    outbox = SqlOutbox(await open_store(url, SCHEMA), quotas or Quotas())
    await outbox.open()
    return outbox


@pytest.fixture
async def outboxes(url: str) -> AsyncIterator[list[SqlOutbox]]:
    """Those of three dispatchers."""
    several = [await opened(url) for _ in range(3)]
    yield several
    for outbox in several:
        await outbox.store.close()


async def commit(outbox: SqlOutbox, *ops: Op) -> list[Result]:
    """All results, none of which may be a failure."""
    results: list[Result] = []
    for result in await outbox.commit(ops):
        assert not isinstance(result, Exception), result
        results.append(result)
    return results


async def test_publishes_to_the_same_objects_leave_no_gap_and_the_highest_floors(
    outboxes: list[SqlOutbox],
) -> None:
    """C34, C38: whoever writes, a node's order has each place once, and the newest version stands."""
    choose = random.Random(7)
    nodes, keys = [f"n{n}" for n in range(5)], ["a", "b", "c"]
    seqs: dict[str, list[int]] = {node_id: [] for node_id in nodes}
    highest: dict[tuple[str, str], int] = {}
    await commit(outboxes[0], *(Claim(node_id, 1, NOW_MS) for node_id in nodes))

    async def publish(outbox: SqlOutbox) -> None:
        for _ in range(25):
            ops = [
                accept(publication(choose.randint(1, 10**9), uid=choose.choice(keys)), choose.choice(nodes))
                for _ in range(20)
            ]
            for result in await commit(outbox, *ops):
                if isinstance(result, Accepted):
                    row = result.row
                    seqs[row.node_id].append(row.seq)
                    where = (row.node_id, row.key)
                    highest[where] = max(highest.get(where, 0), row.version or 0)
                else:
                    assert isinstance(result, Stale)

    await asyncio.gather(*(publish(outbox) for outbox in outboxes))
    for summary in await outboxes[0].list_nodes("", 100, EVERY_NODE):
        node = summary.node
        # A later operation of a batch shows in the rows of earlier results: each place once, none beyond.
        assert set(seqs[node.node_id]) <= set(range(1, node.last_seq + 1))
        rows = await outboxes[1].pending(node.node_id, 0, 100)
        assert len({row.seq for row in rows}) == len(rows) == node.pending_rows
        assert {row.key: row.floor for row in rows} == {row.key: row.version for row in rows}
        for row in rows:
            assert row.floor == highest[node.node_id, row.key]
    events = [e for n in nodes for k in keys for e in await outboxes[2].history(n, "", k, 10_000)]
    accepted = [event for event in events if event.kind == EventKind.ACCEPTED]
    lasts = [s.node.last_seq for s in await outboxes[0].list_nodes("", 100, EVERY_NODE)]
    assert len(accepted) == sum(lasts)


async def test_first_messages_of_a_node_from_several_dispatchers_at_once(outboxes: list[SqlOutbox]) -> None:
    """A node that nothing is known of has no row to wait at; it is made for that."""
    for attempt in range(10):
        node_id = f"new-{attempt}"
        results = await asyncio.gather(
            *(
                commit(outbox, accept(publication(1, uid=f"u{n}"), node_id))
                for n, outbox in enumerate(outboxes)
            )
        )
        seqs = sorted(result.row.seq for (result,) in results if isinstance(result, Accepted))
        assert seqs == [1, 2, 3]


async def test_batches_that_name_nodes_in_any_order_do_not_wait_in_a_circle(
    outboxes: list[SqlOutbox], url: str
) -> None:
    """Locks are taken in the order of ids: no transaction is a deadlock's victim, new nodes or known ones."""
    nodes = [f"n{n:03}" for n in range(60)]
    for version in (1, 2):
        shuffled = [random.Random(n).sample(nodes, len(nodes)) for n in range(3)]
        await asyncio.gather(
            *(
                commit(outbox, *(accept(publication(version, uid=f"u{n}"), node_id) for node_id in order))
                for n, (outbox, order) in enumerate(zip(outboxes, shuffled, strict=True))
            )
        )
    asked = await asyncpg.connect(url)
    deadlocks = await asked.fetchval(
        "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    )
    await asked.close()
    assert deadlocks == 0


@pytest.mark.parametrize("is_new", [True, False], ids=["new node", "known node"])
async def test_an_older_version_whose_commit_is_delayed_is_not_sent_after_the_newer(
    outboxes: list[SqlOutbox], is_new: bool
) -> None:
    """C38: the newer version, published through another dispatcher meanwhile, comes behind it."""
    slow, fast, _ = outboxes
    if not is_new:
        await commit(fast, Claim(NODE, 1, NOW_MS))
    slow.store = delayed = DelayedStore(slow.store, 0.3)
    older = asyncio.create_task(commit(slow, accept(publication(5))))
    await delayed.worked.wait()
    (newer,) = await commit(fast, accept(publication(6)))
    assert older.done()
    (first,) = await older
    assert isinstance(first, Accepted)
    assert isinstance(newer, Accepted)
    assert (first.row.seq, newer.row.seq) == (1, 2)
    assert newer.superseded_id == first.row.message_id
    (row,) = await fast.pending(NODE, 0, 10)
    assert (row.version, row.floor) == (6, 6)


async def test_an_older_version_behind_a_newer_whose_commit_is_delayed_is_stale(
    outboxes: list[SqlOutbox],
) -> None:
    """C38, the other way round."""
    slow, fast, _ = outboxes
    slow.store = delayed = DelayedStore(slow.store, 0.3)
    newer = asyncio.create_task(commit(slow, accept(publication(6))))
    await delayed.worked.wait()
    (older,) = await commit(fast, accept(publication(5)))
    assert isinstance(older, Stale)
    assert isinstance((await newer)[0], Accepted)


@pytest.mark.parametrize("uids", [("u1", ""), ("", "u1"), ("u1", "u2")])
async def test_two_publishers_of_a_path_at_two_dispatchers_never_pass_each_other(
    outboxes: list[SqlOutbox], uids: tuple[str, str]
) -> None:
    """C51: the second looks at the path when the first has committed, whichever version that has."""
    slow, fast, other = outboxes
    await commit(fast, Claim(NODE, 1, NOW_MS))
    slow.store = delayed = DelayedStore(slow.store, 0.3)

    def update(version: int, uid: str) -> Op:
        return accept(publication(version, uid=uid, path=PATH))

    first = asyncio.create_task(commit(slow, update(50, uids[0])))
    await delayed.worked.wait()
    (older,) = await commit(fast, update(30, uids[1]))
    assert isinstance((await first)[0], Accepted)
    assert isinstance(older, Stale)
    assert older.reason == "PATH_TAKEN"
    delayed.worked.clear()
    second = asyncio.create_task(commit(slow, update(60, uids[1])))
    await delayed.worked.wait()
    (late,) = await commit(fast, update(55, uids[0]))
    assert isinstance((await second)[0], Accepted)
    assert isinstance(late, Stale)
    (row,) = await other.pending(NODE, 0, 10)
    assert (row.key, row.version) == (uids[1] or PATH, 60)


async def test_publishers_of_a_path_at_several_dispatchers_leave_one_live_object(
    outboxes: list[SqlOutbox],
) -> None:
    """C51: whatever meets whom, what is there has the highest version ever accepted."""
    choose = random.Random(11)
    accepted: list[tuple[int, int]] = []  # seq and version
    keys: set[str] = set()
    await commit(outboxes[0], Claim(NODE, 1, NOW_MS))

    async def publish(outbox: SqlOutbox) -> None:
        for turn in range(40):
            uid, version = choose.choice(["", "u1", "u2"]), 10 * turn + choose.randint(0, 30)
            (result,) = await commit(outbox, accept(publication(version, uid=uid, path=PATH)))
            if isinstance(result, Accepted):
                accepted.append((result.row.seq, version))
                keys.add(result.row.key)

    async with asyncio.TaskGroup() as group:
        for outbox in outboxes:
            group.create_task(publish(outbox))
    in_order = [version for _, version in sorted(accepted)]
    assert in_order == sorted(in_order), "none passed another"
    (row,) = await outboxes[0].pending(NODE, 0, 10)
    assert row.version == in_order[-1]
    summary = await outboxes[0].summary(NODE)
    assert summary
    assert (summary.node.pending_rows, summary.node.objects) == (1, len(keys))
    assert len(keys) > 1


async def test_a_new_owner_loads_what_is_being_committed(outboxes: list[SqlOutbox]) -> None:
    """C38: a commit that ends while a new owner loads is in what it loads, or behind it in the order."""
    slow, owner, _ = outboxes
    slow.store = delayed = DelayedStore(slow.store, 0.3)
    publish = asyncio.create_task(commit(slow, accept(publication(1))))
    await delayed.worked.wait()
    (loaded,) = await commit(owner, Claim(NODE, 1, NOW_MS))
    assert isinstance(loaded, Loaded)
    assert ([row.seq for row in loaded.rows], loaded.last_seq) == ([1], 1)
    await publish


async def test_a_former_owner_settles_nothing(outboxes: list[SqlOutbox]) -> None:
    """C36: a dispatcher that was paused finds its epoch gone, also if the claim is being committed."""
    former, new, _ = outboxes
    await commit(former, Claim(NODE, 1, NOW_MS), accept(publication(1)))
    new.store = delayed = DelayedStore(new.store, 0.3)
    claim = asyncio.create_task(commit(new, Claim(NODE, 2, NOW_MS)))
    await delayed.worked.wait()
    settle = Settle(NODE, 1, publication(1).key, 1, 1, publication(1).message.id, NOW_MS)
    assert await commit(former, settle) == [Fenced()]
    await claim
    (row,) = await new.pending(NODE, 0, 10)
    assert row.state == RowState.PENDING


async def test_events_of_one_instant_from_several_dispatchers_are_all_kept(
    outboxes: list[SqlOutbox],
) -> None:
    """Two processes give the same event id to one node; neither commit fails."""
    await commit(outboxes[0], Claim(NODE, 1, NOW_MS))
    for times in range(5):
        notes = [Event(NODE, EventKind.REJECTED, NOW_MS, "m", key=f"from {n}, {times}") for n in range(3)]
        await asyncio.gather(*(commit(outbox, note) for outbox, note in zip(outboxes, notes, strict=True)))
    assert len(await outboxes[0].history(NODE, "m", "", 100)) == 15


async def test_a_node_that_somebody_keeps_locked_holds_up_nobody_else(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C25, invariant 7: its operations fail alone and can be tried again."""
    monkeypatch.setattr(store_postgresql, "LOCK_SECONDS", 0.3)
    outbox = await opened(url)
    await commit(outbox, Claim(NODE, 1, NOW_MS), Claim(OTHER, 1, NOW_MS))
    operator = await asyncpg.connect(url)
    async with operator.transaction():
        await operator.execute("SELECT * FROM node WHERE node_id = $1 FOR UPDATE", NODE)
        ops: list[Op] = [
            accept(publication(1)),
            accept(publication(1), OTHER),
            Claim(NODE, 2, NOW_MS),
            accept(publication(1), "edge-3"),
        ]
        results = await outbox.commit(ops)
        assert [type(result) for result in results] == [StoreBusy, Accepted, StoreBusy, Accepted]
        assert [type(result) for result in await outbox.commit([ops[0]])] == [StoreBusy]
    await operator.close()
    assert isinstance((await commit(outbox, ops[0]))[0], Accepted)
    assert (outbox.totals.rows, outbox.totals.bytes) == (3, 300)
    await outbox.store.close()


async def test_a_refused_publish_leaves_no_row_of_its_node(url: str) -> None:
    """Invariant 6: a mistyped id fills nothing, though a row was made for the transaction."""
    outbox = await opened(url, Quotas(refuse_unknown_nodes=True))
    (result,) = await commit(outbox, accept(publication(1), "mistyped"))
    assert isinstance(result, Rejection)
    await outbox.resync("mistyped", NOW_MS)
    await outbox.purge("mistyped", "", NOW_MS)
    assert await outbox.list_nodes("", 10, EVERY_NODE) == []
    await outbox.store.close()


async def test_totals_that_others_change_are_read_again(outboxes: list[SqlOutbox], url: str) -> None:
    """C18: the quotas of all dispatchers together hold as far as the last look at them."""
    first, second, _ = outboxes
    await commit(first, *(accept(publication(1, uid=f"u{n}")) for n in range(3)))
    assert second.totals == Totals(0, 0)
    await second.refresh()
    assert second.totals == first.totals == Totals(3, 300, 3, 300, 1)


async def test_a_message_expires_once_and_not_if_it_was_replaced_meanwhile(
    outboxes: list[SqlOutbox],
) -> None:
    """C19: two dispatchers sweep while a third replaces one of the two messages."""
    first, second, third = outboxes
    for key in ("a", "b"):
        await commit(first, accept(publication(1, uid=key, expires_at_ms=NOW_MS + 5)))
    third.store = delayed = DelayedStore(third.store, 0.3)
    replaced = asyncio.create_task(commit(third, accept(publication(2, uid="a", expires_at_ms=NOW_MS + 99))))
    await delayed.worked.wait()
    ended = await asyncio.gather(first.expire(NOW_MS + 9, 100), second.expire(NOW_MS + 9, 100))
    assert [row.key for rows in ended for row in rows] == ["b"]
    await replaced
    (row,) = await first.pending(NODE, 0, 10)
    assert (row.key, row.version) == ("a", 2)


async def test_a_tombstone_that_became_an_object_anew_is_not_swept(outboxes: list[SqlOutbox]) -> None:
    """C13: under a path a create replaces the delete, while the sweep is looking for old deletes."""
    sweeper, publisher, _ = outboxes
    await commit(sweeper, Claim(NODE, 1, NOW_MS), accept(publication(5, is_delete=True)))
    (row,) = await sweeper.pending(NODE, 0, 10)
    await commit(sweeper, Settle(NODE, 1, row.key, row.seq, 5, row.message_id, NOW_MS))
    publisher.store = delayed = DelayedStore(publisher.store, 0.3)
    created = asyncio.create_task(commit(publisher, accept(publication(6), at_ms=NOW_MS + 1)))
    await delayed.worked.wait()
    await sweeper.sweep(NOW_MS, NOW_MS + 1000, 100, SweepPlace())
    await created
    (row,) = await sweeper.pending(NODE, 0, 10)
    assert (row.version, row.deleted) == (6, False)
