"""What every outbox must do, run on each engine and on the fake of `tests.support.outbox`."""

import asyncio
import json
import random
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text, update

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox import schema
from services.dispatcher.outbox.contract import NodeFilter, NodeSummary, Outbox, SweepPlace
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import (
    Accepted,
    Attempt,
    Claim,
    CountCut,
    CountUnacknowledged,
    Cuts,
    Deleted,
    DeleteNode,
    Done,
    Duplicate,
    End,
    Event,
    EventKind,
    Fenced,
    ForgetNode,
    KeepCuts,
    Loaded,
    ObjectRow,
    Op,
    Park,
    Reload,
    Result,
    RowState,
    Settle,
    Stale,
    Withheld,
)
from services.dispatcher.outbox.retention import NODES_PER_STEP
from services.dispatcher.outbox.sql import SqlOutbox
from services.dispatcher.publication import MOST_TEXT_BYTES, Rejection
from services.runtime.errors import RowDamaged, StoreRefused
from services.runtime.store import Store, open_store
from tests.support.outbox import NODE, NOW_MS, PATH, MemoryOutbox, accept, publication, settle
from tests.support.postgres import Databases

EVERY_NODE = NodeFilter()
OTHER = "edge-2"


async def opened(url: str, quotas: Quotas | None = None) -> SqlOutbox:
    store = await open_store(url, schema.SCHEMA)
    outbox = SqlOutbox(store, quotas or Quotas())
    await outbox.open()
    return outbox


async def refuse_key(store: Store, key: str) -> None:
    """Makes the database refuse every row of this object, as it would a value it cannot hold."""
    statement = (
        f"ALTER TABLE delivery ADD CONSTRAINT refuse_{key} CHECK (object_key <> '{key}') NOT VALID"
        if store.is_shared
        else f"CREATE TRIGGER refuse_{key} BEFORE INSERT ON delivery WHEN NEW.object_key = '{key}' "
        "BEGIN SELECT RAISE(ABORT, 'the row is refused'); END"
    )
    await store.write(lambda connection: connection.execute(text(statement)))


class Case:
    """An outbox under test, and how to make it refuse the rows of one object."""

    def __init__(self, outbox: MemoryOutbox | SqlOutbox) -> None:
        self.outbox: Outbox = outbox
        self._outbox = outbox

    @property
    def totals(self) -> Totals:
        return self._outbox.totals

    async def refuse(self, key: str) -> None:
        if isinstance(self._outbox, MemoryOutbox):
            self._outbox.bad_keys.add(key)
        else:
            await refuse_key(self._outbox.store, key)


Opener = Callable[..., Awaitable[SqlOutbox]]


@pytest.fixture(params=["sqlite", "postgresql"])
async def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of each engine."""
    return await new_database(request, request.param, tmp_path)


async def new_database(request: pytest.FixtureRequest, engine: str, folder: Path) -> str:
    if engine == "sqlite":
        return f"sqlite:///{folder / 'outbox.db'}"
    databases: Databases = request.getfixturevalue("databases")
    return await databases.fresh(schema.SCHEMA)


@pytest.fixture
async def open_outbox(url: str) -> AsyncIterator[Opener]:
    """Opens the database; doing it again is a restart. What is open at the end is closed."""
    held: list[SqlOutbox] = []

    async def open_it(quotas: Quotas | None = None) -> SqlOutbox:
        if held:
            await held.pop().store.close()
        held.append(await opened(url, quotas))
        return held[-1]

    yield open_it
    for outbox in held:
        await outbox.store.close()


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def case(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Case]:
    if request.param == "memory":
        yield Case(MemoryOutbox())
        return
    outbox = await opened(await new_database(request, request.param, tmp_path))
    yield Case(outbox)
    await outbox.store.close()


@pytest.fixture
def outbox(case: Case) -> Outbox:
    return case.outbox


async def commit(outbox: Outbox, *ops: Op) -> list[Result]:
    """All results, none of which may be a failure."""
    results: list[Result] = []
    for result in await outbox.commit(ops):
        assert not isinstance(result, Exception), result
        results.append(result)
    return results


async def accepted(outbox: Outbox, *ops: Op) -> list[ObjectRow]:
    rows: list[ObjectRow] = []
    for result in await commit(outbox, *ops):
        assert isinstance(result, Accepted), result
        rows.append(result.row)
    return rows


async def claim(outbox: Outbox, epoch: int, node_id: str = NODE, at_ms: int = NOW_MS) -> Loaded:
    (loaded,) = await commit(outbox, Claim(node_id, epoch, at_ms))
    assert isinstance(loaded, Loaded)
    return loaded


async def kinds(outbox: Outbox, message_id: str, node_id: str = NODE) -> list[EventKind]:
    return [event.kind for event in await outbox.history(node_id, message_id, "", 100)]


# Accepting


async def test_an_accepted_message_is_pending_with_all_that_was_said(outbox: Outbox) -> None:
    what = publication(
        7,
        uid="u1",
        path=PATH,
        message_id="m1",
        priority=3,
        size_bytes=300,
        expires_at_ms=NOW_MS + 9,
        traceparent="tp",
    )
    await accepted(outbox, accept(what))
    (row,) = await outbox.pending(NODE, 0, 10)
    assert row == ObjectRow(
        NODE,
        "u1",
        PATH,
        "u1",
        floor=7,
        state=RowState.PENDING,
        seq=1,
        message_id="m1",
        version=7,
        operation="update",
        priority=3,
        accepted_at_ms=NOW_MS,
        changed_at_ms=NOW_MS,
        expires_at_ms=NOW_MS + 9,
        size_bytes=300,
        traceparent="tp",
    )
    assert await outbox.bodies([(NODE, "u1", 1)]) == {(NODE, "u1", 1): what.body}


async def test_seqs_count_each_nodes_accepted_messages(outbox: Outbox) -> None:
    await claim(outbox, 1)
    rows = await accepted(
        outbox,
        accept(publication(1, uid="a")),
        accept(publication(1, uid="a"), OTHER),
        accept(publication(1, uid="b")),
    )
    rows += await accepted(outbox, accept(publication(2, uid="a")))
    assert [(row.node_id, row.seq) for row in rows] == [(NODE, 1), (OTHER, 1), (NODE, 2), (NODE, 3)]
    assert [row.key for row in await outbox.pending(NODE, 0, 10)] == ["b", "a"]


async def test_an_empty_batch_is_no_fault(outbox: Outbox) -> None:
    assert await outbox.commit([]) == []
    assert await outbox.bodies([]) == {}


async def test_results_come_in_the_order_of_operations(outbox: Outbox) -> None:
    """C13: of one batch too: newer replaces, lower is stale, equal is a duplicate."""
    results = await commit(
        outbox,
        accept(publication(5, message_id="m5")),
        accept(publication(4, message_id="m4")),
        accept(publication(5, message_id="m5b")),
        accept(publication(6, message_id="m6")),
        accept(publication(None, message_id="m7", is_delete=True, path="x")),
    )
    assert [type(result) for result in results] == [Accepted, Stale, Duplicate, Accepted, Accepted]
    assert isinstance(results[2], Duplicate)
    assert results[2].row.message_id == "m5"
    assert isinstance(results[3], Accepted)
    assert results[3].superseded_id == "m5"


async def test_versions_of_twenty_digits_compare_as_integers(outbox: Outbox) -> None:
    """C17."""
    await accepted(outbox, accept(publication(9)))
    await accepted(outbox, accept(publication(10)))
    await accepted(outbox, accept(publication(10**20 - 2)))
    (stale,) = await commit(outbox, accept(publication(10**20 - 3)))
    assert isinstance(stale, Stale)
    (row,) = await accepted(outbox, accept(publication(10**20 - 1)))
    assert (row.floor, row.version) == (10**20 - 1, 10**20 - 1)
    found = await outbox.find(NODE, "", PATH)
    assert found
    assert found.floor == 10**20 - 1


async def test_a_row_the_database_refuses_fails_alone(case: Case) -> None:
    """C44."""
    outbox = case.outbox
    await case.refuse("bad")
    results = await outbox.commit(
        [accept(publication(1, uid="a")), accept(publication(1, uid="bad")), accept(publication(1, uid="b"))]
    )
    assert isinstance(results[0], Accepted)
    assert isinstance(results[1], StoreRefused)
    assert isinstance(results[2], Accepted)
    assert [(row.key, row.seq) for row in await outbox.pending(NODE, 0, 10)] == [("a", 1), ("b", 2)]
    assert (case.totals.rows, case.totals.bytes) == (2, 200)


async def test_a_row_the_database_refuses_costs_others_few_transactions(
    open_outbox: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C44: of 256 publishes one is refused; the others do not wait for 255 transactions."""
    outbox = await open_outbox(Quotas(unknown_node_rows=1000))
    await refuse_key(outbox.store, "bad")
    writes = 0
    write = outbox.store.write

    async def counted(work: Callable[[Connection], Any]) -> Any:
        nonlocal writes
        writes += 1
        return await write(work)

    monkeypatch.setattr(outbox.store, "write", counted)
    ops = [accept(publication(1, uid=f"k{n}")) for n in range(256)]
    ops[77] = accept(publication(1, uid="bad"))
    results = await outbox.commit(ops)
    assert [place for place, result in enumerate(results) if not isinstance(result, Accepted)] == [77]
    assert [row.seq for row in await outbox.pending(NODE, 0, 300)] == list(range(1, 256))
    assert writes <= 17


async def test_the_longest_names_are_stored(open_outbox: Opener) -> None:
    """C44: names of as many bytes as a publish may have fit into every index, and cannot be compressed."""
    outbox = await open_outbox()
    letters = random.Random(5)

    def name() -> str:
        return "".join(chr(letters.randrange(0x4E00, 0x9FFF)) for _ in range(MOST_TEXT_BYTES // 3))

    node_id, one = "n" * 253, publication(1, uid=name(), path=name(), message_id=name())
    assert len(one.uid.encode()) > MOST_TEXT_BYTES - 3
    answer = publication(None, is_answer=True, message_id=name())
    await accepted(outbox, accept(one, node_id), accept(answer, node_id))
    await accepted(outbox, accept(publication(None, path=one.message.resource, is_delete=True), node_id))
    found = await outbox.find(node_id, one.message.id, "")
    assert found is not None
    assert found.deleted


async def test_what_an_index_does_not_take_fails_alone(open_outbox: Opener) -> None:
    """C44: a name as long as a former release let it be, which PostgreSQL refuses with an error of class 54,
    and SQLite takes; a number that no column holds."""
    outbox = await open_outbox()
    letters = random.Random(5)
    long = "".join(chr(letters.randrange(0x4E00, 0x9FFF)) for _ in range(1015))
    await claim(outbox, 1)
    results = await outbox.commit(
        [
            accept(publication(1, uid="a"), OTHER),
            accept(publication(1, path=long)),
            accept(publication(1, uid="n", expires_at_ms=2**70)),
            accept(publication(1, uid="b"), OTHER),
        ]
    )
    assert isinstance(results[0], Accepted)
    assert isinstance(results[1], StoreRefused if outbox.store.is_shared else Accepted)
    assert isinstance(results[2], StoreRefused)
    assert isinstance(results[3], Accepted)


async def test_a_refused_row_that_is_alone_in_its_batch_is_a_result_too(case: Case) -> None:
    await case.refuse("bad")
    (result,) = await case.outbox.commit([accept(publication(1, uid="bad"))])
    assert isinstance(result, Exception)
    assert case.totals == Totals(0, 0)
    assert await case.outbox.summary(NODE) is None


async def test_a_used_message_id_is_rejected_for_another_version_in_a_later_batch(outbox: Outbox) -> None:
    """C24."""
    await accepted(outbox, accept(publication(1, message_id="m1")))
    (again,) = await commit(outbox, accept(publication(1, message_id="m1")))
    assert isinstance(again, Duplicate)
    (reused,) = await commit(outbox, accept(publication(2, message_id="m1")))
    assert isinstance(reused, Rejection)
    assert (reused.reason, reused.field) == ("MESSAGE_ID_REUSED", "message.id")


async def test_a_delete_by_path_can_be_repeated_with_its_id(outbox: Outbox) -> None:
    """C14: exactly one final delete; repeating a publish with its message id is safe."""
    await accepted(outbox, accept(publication(3, uid="u1", path=PATH)))
    delete = publication(None, message_id="d1", is_delete=True)
    await accepted(outbox, accept(delete))
    (again,) = await commit(outbox, accept(delete))
    assert isinstance(again, Duplicate)
    assert [row.message_id for row in await outbox.pending(NODE, 0, 10)] == ["d1"]


# Owning


async def test_a_claim_loads_what_is_pending_in_order(outbox: Outbox) -> None:
    await accepted(
        outbox,
        accept(publication(1, uid="a")),
        accept(publication(1, uid="b")),
        accept(publication(2, uid="a")),
        accept(publication(1, uid="z"), OTHER),
    )
    loaded = await claim(outbox, 5)
    assert (loaded.node_id, loaded.last_seq, loaded.fenced) == (NODE, 3, False)
    assert [(row.key, row.seq, row.version) for row in loaded.rows] == [("b", 2, 1), ("a", 3, 2)]


async def test_a_claim_of_an_unknown_node_makes_it_known(outbox: Outbox) -> None:
    assert await outbox.summary(NODE) is None
    assert await claim(outbox, 5) == Loaded(NODE, 0, [])
    summary = await outbox.summary(NODE)
    assert summary
    assert (summary.node.known, summary.node.owner_epoch) == (True, 5)


@pytest.mark.parametrize("epoch", [4, 5])
async def test_an_epoch_that_does_not_grow_is_fenced(outbox: Outbox, epoch: int) -> None:
    await accepted(outbox, accept(publication(1)))
    await claim(outbox, 5)
    assert (await claim(outbox, epoch)).fenced
    summary = await outbox.summary(NODE)
    assert summary
    assert summary.node.owner_epoch == 5


def owned_ops(row: ObjectRow, epoch: int) -> list[Op]:
    return [
        Settle(NODE, epoch, row.key, row.seq, row.version, row.message_id, NOW_MS),
        Attempt(NODE, epoch, row.key, row.message_id, row.version, 1, NOW_MS),
        CountUnacknowledged(NODE, epoch, row.key, row.seq, row.message_id, 3, NOW_MS),
        CountCut(NODE, epoch, row.key, row.seq, row.message_id, 2, "cut", NOW_MS),
        KeepCuts(NODE, epoch, Cuts(row.seq, row.seq, 2, 0)),
        Park(NODE, epoch, row.key, row.seq, row.message_id, "why", NOW_MS),
        End(NODE, epoch, row.key, row.seq, row.message_id, "why", NOW_MS),
    ]


async def test_what_is_known_of_a_nodes_cut_links_goes_with_its_next_owner(outbox: Outbox) -> None:
    """C42: the count survives sessions; it goes once nothing is doubtful, and with the node."""
    cuts = Cuts(3, 2**40, 4, 1)
    other = Cuts(1, 2, 3, 4)
    assert (await claim(outbox, 5)).cuts == Cuts()
    await commit(
        outbox, KeepCuts(NODE, 5, Cuts(1, 1, 1, 0)), KeepCuts(NODE, 5, cuts), Claim(OTHER, 5, NOW_MS)
    )
    await commit(outbox, KeepCuts(OTHER, 5, other))
    assert (await claim(outbox, 6)).cuts == cuts
    assert (await claim(outbox, 7)).cuts == cuts
    await commit(outbox, KeepCuts(NODE, 7, Cuts()))
    assert (await claim(outbox, 8)).cuts == Cuts()
    await commit(outbox, KeepCuts(NODE, 8, cuts))
    await commit(outbox, DeleteNode(NODE, 8))
    assert (await claim(outbox, 9)).cuts == Cuts()
    again = (await outbox.commit([Claim(OTHER, 6, NOW_MS)]))[0]
    assert isinstance(again, Loaded)
    assert again.cuts == other


async def test_a_counted_cut_is_a_line_of_the_messages_history(outbox: Outbox) -> None:
    """C42."""
    (row,) = await accepted(outbox, accept(publication(1, message_id="m1")))
    await claim(outbox, 5)
    await commit(
        outbox,
        CountCut(NODE, 5, row.key, row.seq, "m1", 2, "ended without a close frame", NOW_MS + 1),
        CountCut(NODE, 5, row.key, row.seq + 1, "m1", 3, "of another seq", NOW_MS + 1),
    )
    lines = await outbox.history(NODE, "m1", "", 10)
    assert [(line.kind, line.attempt, line.reason) for line in lines] == [
        (EventKind.ACCEPTED, 0, ""),
        (EventKind.UNACKNOWLEDGED, 2, "ended without a close frame"),
    ]


@pytest.mark.parametrize("epoch", [0, 6, 8])
async def test_records_under_another_epoch_change_nothing(outbox: Outbox, epoch: int) -> None:
    """C36: who lost the node can neither settle, count, park nor end."""
    (row,) = await accepted(outbox, accept(publication(1, message_id="m1")))
    await claim(outbox, 7)
    before = await outbox.find(NODE, "", PATH)
    assert await commit(outbox, *owned_ops(row, epoch)) == [Fenced()] * 7
    assert await outbox.find(NODE, "", PATH) == before
    assert await kinds(outbox, "m1") == [EventKind.ACCEPTED]


async def test_a_settled_row_drops_its_body_and_keeps_floor_and_mark(outbox: Outbox) -> None:
    (result,) = await commit(outbox, accept(publication(4, message_id="m1")))
    await claim(outbox, 1)
    assert await commit(outbox, settle(result, 1, NOW_MS + 5)) == [Done()]
    row = await outbox.find(NODE, "", PATH)
    assert row
    assert (row.state, row.reason, row.floor, row.acknowledged) == (RowState.SETTLED, "acknowledged", 4, 4)
    assert await outbox.bodies([(NODE, PATH, 1)]) == {}
    assert await outbox.pending(NODE, 0, 10) == []
    summary = await outbox.summary(NODE)
    assert summary
    assert (summary.node.pending_rows, summary.node.pending_bytes, summary.node.last_ack_ms) == (
        0,
        0,
        NOW_MS + 5,
    )


async def test_a_delete_gets_the_type_that_its_acknowledged_object_had(outbox: Outbox) -> None:
    """C23: nothing else is left of the content."""
    await claim(outbox, 1)
    web = publication(1, path="shop/deployment/web")._replace(type_meta="apps/v1 Deployment")
    (result,) = await commit(outbox, accept(web))
    await commit(outbox, settle(result, 1))
    bare = publication(None, path="shop/deployment/web", is_delete=True, content=b"null")
    (row,) = await accepted(outbox, accept(bare._replace(incomplete=True)))
    (body,) = (await outbox.bodies([(NODE, row.key, row.seq)])).values()
    assert isinstance(body, bytes)
    assert json.loads(Message.FromString(body).content) == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "web", "namespace": "shop"},
    }
    assert row.size_bytes == len(body)


async def test_counts_parks_and_ends_are_kept(outbox: Outbox) -> None:
    row_a, row_b = await accepted(outbox, accept(publication(1, uid="a")), accept(publication(1, uid="b")))
    await claim(outbox, 1)
    await commit(
        outbox,
        CountUnacknowledged(NODE, 1, "a", row_a.seq, row_a.message_id, 3, NOW_MS + 1),
        Park(NODE, 1, "a", row_a.seq, row_a.message_id, "no space left", NOW_MS + 2, refused=True),
        End(NODE, 1, "b", row_b.seq, row_b.message_id, "expired", NOW_MS + 3),
    )
    (row,) = await outbox.pending(NODE, 0, 10)
    assert (row.key, row.state, row.attempts, row.reason) == ("a", RowState.PARKED, 3, "no space left")
    ended = await outbox.find(NODE, "", "b")
    assert ended
    assert (ended.state, ended.reason, ended.floor) == (RowState.SETTLED, "expired", 1)
    assert await kinds(outbox, row_a.message_id) == [
        EventKind.ACCEPTED,
        EventKind.UNACKNOWLEDGED,
        EventKind.REFUSED,
        EventKind.PARKED,
    ]
    assert await outbox.bodies([(NODE, "a", row_a.seq)]) != {}


async def test_records_of_a_message_that_moved_on_change_nothing(outbox: Outbox) -> None:
    old, new = await accepted(outbox, accept(publication(1)), accept(publication(2)))
    await claim(outbox, 1)
    await commit(outbox, *owned_ops(old, 1)[2:])
    (row,) = await outbox.pending(NODE, 0, 10)
    assert (row.seq, row.state, row.attempts) == (new.seq, RowState.PENDING, 0)


async def test_a_reload_sees_everything_submitted_before_it_in_its_batch(outbox: Outbox) -> None:
    """And nothing that comes after it, though that is in the same transaction."""
    (row,) = await accepted(outbox, accept(publication(1, uid="a")))
    await claim(outbox, 1)
    results = await commit(
        outbox,
        accept(publication(1, uid="b")),
        Reload(NODE),
        Settle(NODE, 1, "a", row.seq, 1, row.message_id, NOW_MS),
        accept(publication(2, uid="b")),
        Reload(NODE),
    )
    first, second = results[1], results[4]
    assert isinstance(first, Loaded)
    assert isinstance(second, Loaded)
    assert [(row.key, row.seq, row.state) for row in first.rows] == [
        ("a", 1, RowState.PENDING),
        ("b", 2, RowState.PENDING),
    ]
    assert first.last_seq == 2
    assert [(row.key, row.seq) for row in second.rows] == [("b", 3)]


async def test_answers_end_when_another_session_claims_the_node(outbox: Outbox) -> None:
    """C40: an answer ends with its session, and leaves no row."""
    await claim(outbox, 1)
    await accepted(outbox, accept(publication(None, is_answer=True, message_id="r1")))
    loaded = await claim(outbox, 2)
    assert loaded.rows == []
    assert await outbox.find(NODE, "", "answer:r1") is None
    assert await kinds(outbox, "r1") == [EventKind.ACCEPTED, EventKind.ENDED]


async def test_answers_stay_when_their_session_changes_its_dispatcher(outbox: Outbox) -> None:
    """C40, C37: it is claimed under another epoch, and what the former owner records is fenced."""
    await claim(outbox, 1)
    (row,) = await accepted(outbox, accept(publication(None, is_answer=True, message_id="r1")))
    loaded, late = await commit(
        outbox,
        Claim(NODE, 2, NOW_MS, same_session=True),
        Settle(NODE, 1, row.key, row.seq, row.version, "r1", NOW_MS),
    )
    assert isinstance(loaded, Loaded)
    assert [found.key for found in loaded.rows] == ["answer:r1"]
    assert isinstance(late, Fenced)


# Portions


@pytest.mark.parametrize("others", [0, 3])
async def test_a_large_backlog_comes_in_portions_that_miss_nothing(outbox: Outbox, others: int) -> None:
    """C28, C38: each portion is a transaction of its own, with others' rows in it; between them a key that
    was met gets newer versions."""
    await claim(outbox, 4)
    await accepted(outbox, *(accept(publication(1, uid=f"u{number:04}")) for number in range(1200)))
    for other in range(others):
        await accepted(outbox, accept(publication(1, uid="other"), f"other-{other}"))
    taking = Claim(NODE, 5, NOW_MS)
    met: dict[str, int] = {}
    portions = 0
    while True:
        loaded, *rest = await commit(outbox, taking, *(Reload(f"other-{other}") for other in range(others)))
        assert isinstance(loaded, Loaded)
        assert all(isinstance(one, Loaded) and len(one.rows) == 1 for one in rest)
        assert loaded.pending == 1200
        seqs = [row.seq for row in loaded.rows]
        assert seqs == sorted(set(seqs))
        assert len(seqs) <= 512 // (1 + others)
        assert all(seq > taking.after_seq for seq in seqs)
        met |= {row.key: row.seq for row in loaded.rows}
        if loaded.through_seq is None:
            break
        taking = taking._replace(after_seq=loaded.through_seq, last_seq=taking.last_seq or loaded.last_seq)
        await accepted(outbox, accept(publication(2 + portions, uid="u0000")))
        portions += 1
    assert portions >= (2 if not others else 9)
    assert met == {row.key: row.seq for row in await outbox.pending(NODE, 0, 2000)}


async def test_a_portion_sees_what_the_same_batch_did(outbox: Outbox) -> None:
    """Rows that leave the portion do not let it pass over those behind it."""
    await claim(outbox, 5)
    rows = await accepted(outbox, *(accept(publication(1, uid=f"u{number}")) for number in range(520)))
    first = rows[0]
    *_, loaded = await commit(
        outbox,
        Settle(NODE, 5, first.key, first.seq, 1, first.message_id, NOW_MS),
        accept(publication(2, uid="u1")),
        accept(publication(1, uid="new")),
        Reload(NODE),
    )
    assert isinstance(loaded, Loaded)
    assert loaded.through_seq is not None
    (rest,) = await commit(outbox, Reload(NODE, loaded.through_seq))
    assert isinstance(rest, Loaded)
    assert rest.through_seq is None
    assert [row.seq for row in (*loaded.rows, *rest.rows)] == [*range(3, 521), 521, 522]


# Bodies


def read(body: bytes | Withheld) -> Message:
    assert isinstance(body, bytes)
    return Message.FromString(body)


async def test_bodies_that_no_link_takes_are_not_loaded(
    open_outbox: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: rows of a former release, which counted the content alone: one is too large to be sent, and those
    that would be too much for memory at once wait for the next reading."""
    monkeypatch.setattr("services.dispatcher.outbox.sql.MAX_BODY_BYTES", 1000)
    monkeypatch.setattr("services.dispatcher.outbox.sql.MAX_LOADED_BYTES", 1000)
    outbox = await open_outbox()
    await accepted(outbox, *(accept(publication(1, uid=uid)) for uid in "abc"))

    def grow(connection: Connection) -> None:
        for uid, size_bytes in (("a", 1400), ("b", 700), ("c", 700)):
            body = Message(id=uid, content=b"x" * size_bytes).SerializeToString()
            connection.execute(
                update(schema.delivery).where(schema.delivery.c.object_key == uid).values(message=body)
            )

    await outbox.store.write(grow)
    wanted = [(NODE, "a", 1), (NODE, "b", 2), (NODE, "c", 3)]
    found = await outbox.bodies(wanted)
    assert list(found) == wanted
    large, loaded, waiting = found.values()
    assert isinstance(large, Withheld)
    assert (large.size_bytes, large.fault[:20]) == (1406, "too large to be sent")
    assert read(loaded).id == "b"
    assert waiting == Withheld(706)
    assert read((await outbox.bodies(wanted[2:]))[wanted[2]]).id == "c"


async def test_bodies_of_messages_that_moved_on_are_absent(outbox: Outbox) -> None:
    await accepted(outbox, accept(publication(1)), accept(publication(2)))
    found = await outbox.bodies([(NODE, PATH, 1), (NODE, PATH, 2), (OTHER, PATH, 2), (NODE, "no", 1)])
    versions = {key: read(body).resource_version for key, body in found.items()}
    assert versions == {(NODE, PATH, 2): "2"}


# Operators


async def parked(outbox: Outbox, *uids: str, node_id: str = NODE, epoch: int = 1) -> None:
    await claim(outbox, epoch, node_id)
    for uid in uids:
        (row,) = await accepted(outbox, accept(publication(1, uid=uid, message_id=f"m-{uid}"), node_id))
        await commit(
            outbox,
            CountUnacknowledged(node_id, epoch, uid, row.seq, row.message_id, 10, NOW_MS),
            Park(node_id, epoch, uid, row.seq, row.message_id, "silence", NOW_MS),
        )


async def test_redeliver_unparks_one_object(outbox: Outbox) -> None:
    """C20: the message keeps its place; the node's order grows, so that its owner notices."""
    await parked(outbox, "a", "b")
    assert await outbox.redeliver(NODE, "a", NOW_MS + 1) == 1
    first, second = await outbox.pending(NODE, 0, 10)
    assert (first.key, first.seq, first.state, first.attempts, first.reason) == (
        "a",
        1,
        RowState.PENDING,
        0,
        "",
    )
    assert (second.key, second.state) == ("b", RowState.PARKED)
    summary = await outbox.summary(NODE)
    assert summary
    assert (summary.parked, summary.node.last_seq) == (1, 3)
    assert (await kinds(outbox, "m-a"))[-1] == EventKind.REDELIVERED


async def test_redeliver_unparks_all_of_a_node_and_of_no_other(outbox: Outbox) -> None:
    await parked(outbox, "a", "b")
    await parked(outbox, "c", node_id=OTHER)
    await accepted(outbox, accept(publication(1, uid="waits")))
    assert await outbox.redeliver(NODE, "", NOW_MS) == 2
    assert await outbox.redeliver(NODE, "", NOW_MS) == 0
    assert {row.state for row in await outbox.pending(NODE, 0, 10)} == {RowState.PENDING}
    assert [row.state for row in await outbox.pending(OTHER, 0, 10)] == [RowState.PARKED]
    assert await outbox.redeliver("nobody", "", NOW_MS) == 0
    assert await outbox.summary("nobody") is None


async def test_purge_ends_one_object_and_keeps_its_floor(case: Case) -> None:
    """C13: stale below the floor also after a purge."""
    outbox = case.outbox
    await claim(outbox, 1)
    await accepted(outbox, accept(publication(5, uid="a", message_id="m1")), accept(publication(1, uid="b")))
    assert await outbox.purge(NODE, "a", NOW_MS) == 1
    assert await outbox.purge(NODE, "a", NOW_MS) == 0
    assert [row.key for row in await outbox.pending(NODE, 0, 10)] == ["b"]
    row = await outbox.find(NODE, "m1", "")
    assert row
    assert (row.state, row.reason, row.floor) == (RowState.SETTLED, "purged", 5)
    assert (case.totals.rows, case.totals.bytes) == (1, 100)
    (stale,) = await commit(outbox, accept(publication(4, uid="a")))
    assert isinstance(stale, Stale)
    assert (await outbox.history(NODE, "m1", "", 10))[-1].reason == "purged"


async def test_purge_ends_everything_pending_of_a_node(case: Case) -> None:
    await parked(case.outbox, "a", "b")
    await accepted(case.outbox, accept(publication(1, uid="c")), accept(publication(1, uid="c"), OTHER))
    assert await case.outbox.purge(NODE, "", NOW_MS) == 3
    assert await case.outbox.pending(NODE, 0, 10) == []
    assert (case.totals.rows, case.totals.bytes) == (1, 100)


async def test_last_seqs_tell_of_whatever_others_did_to_a_node(outbox: Outbox) -> None:
    """C38: a publish, an un-parking, a purge; not of an acknowledgement, which its owner wrote."""
    assert await outbox.last_seqs([NODE, OTHER]) == {}
    await parked(outbox, "a", "b")
    await accepted(outbox, accept(publication(1, uid="c"), OTHER))
    assert await outbox.last_seqs([NODE, OTHER, "nobody"]) == {NODE: 2, OTHER: 1}
    await outbox.redeliver(NODE, "a", NOW_MS)
    assert await outbox.last_seqs([NODE]) == {NODE: 3}
    await outbox.purge(NODE, "a", NOW_MS)
    assert await outbox.last_seqs([NODE]) == {NODE: 4}
    assert await outbox.purge(NODE, "a", NOW_MS) == 0
    assert await outbox.last_seqs([NODE]) == {NODE: 4}
    await commit(outbox, Settle(OTHER, 0, "c", 1, 1, "m", NOW_MS))
    assert await outbox.last_seqs([OTHER]) == {OTHER: 1}
    assert await outbox.last_seqs([]) == {}


async def test_resync_forgets_marks_and_keeps_floors(outbox: Outbox) -> None:
    """C13: equal and acknowledged is stale, unless after `ResyncNode`."""
    await claim(outbox, 1)
    results = await commit(outbox, accept(publication(4, uid="a")), accept(publication(1, uid="b")))
    await commit(outbox, settle(results[0], 1))
    (stale,) = await commit(outbox, accept(publication(4, uid="a")))
    assert isinstance(stale, Stale)
    assert await outbox.resync(NODE, NOW_MS) == 1
    assert await outbox.resync(NODE, NOW_MS) == 0
    assert await outbox.resync("nobody", NOW_MS) == 0
    (below,) = await commit(outbox, accept(publication(3, uid="a")))
    assert isinstance(below, Stale)
    await accepted(outbox, accept(publication(4, uid="a")))


async def test_resync_leaves_acknowledged_deletes_alone(outbox: Outbox) -> None:
    """C14: a node without its disk has nothing to delete."""
    await claim(outbox, 1)
    (result,) = await commit(outbox, accept(publication(4, uid="a", is_delete=True)))
    await commit(outbox, settle(result, 1))
    assert await outbox.resync(NODE, NOW_MS) == 0
    (stale,) = await commit(outbox, accept(publication(4, uid="a", is_delete=True)))
    assert isinstance(stale, Stale)


# Expiry and retention


async def test_expiry_ends_what_is_over_and_says_which(case: Case) -> None:
    """C19."""
    outbox = case.outbox
    await claim(outbox, 1)
    await accepted(
        outbox,
        accept(publication(1, uid="a", message_id="m1", expires_at_ms=NOW_MS + 10, traceparent="tp")),
        accept(publication(1, uid="b", expires_at_ms=NOW_MS + 11)),
        accept(publication(1, uid="c")),
    )
    assert await outbox.expire(NOW_MS + 9, 10) == []
    (row,) = await outbox.expire(NOW_MS + 10, 10)
    assert (row.key, row.message_id, row.traceparent, row.state) == ("a", "m1", "tp", RowState.SETTLED)
    assert [row.key for row in await outbox.pending(NODE, 0, 10)] == ["b", "c"]
    assert case.totals == Totals(2, 200)
    assert (await outbox.history(NODE, "m1", "", 10))[-1].reason == "expired"
    assert await outbox.expire(NOW_MS + 10, 10) == []
    (stale,) = await commit(outbox, accept(publication(0, uid="a")))
    assert isinstance(stale, Stale)


async def test_expiry_ends_parked_messages_and_answers_too(outbox: Outbox) -> None:
    """C40: a late answer expires."""
    await claim(outbox, 1)
    (row, _) = await accepted(
        outbox,
        accept(publication(1, uid="a", expires_at_ms=NOW_MS + 1)),
        accept(publication(None, is_answer=True, message_id="r1", expires_at_ms=NOW_MS + 1)),
    )
    await commit(outbox, Park(NODE, 1, "a", row.seq, row.message_id, "silence", NOW_MS))
    assert {row.key for row in await outbox.expire(NOW_MS + 1, 10)} == {"a", "answer:r1"}
    assert await outbox.find(NODE, "", "answer:r1") is None


async def test_expiry_is_bounded(outbox: Outbox) -> None:
    await claim(outbox, 1)
    await accepted(outbox, *(accept(publication(1, uid=f"u{n}", expires_at_ms=NOW_MS + 1)) for n in range(5)))
    assert [len(await outbox.expire(NOW_MS + 1, 2)) for _ in range(4)] == [2, 2, 1, 0]


async def swept(outbox: Outbox, events_before_ms: int, tombstones_before_ms: int, limit: int) -> int:
    """The rows of the first step."""
    return (await outbox.sweep(events_before_ms, tombstones_before_ms, limit, SweepPlace())).rows


async def test_sweep_drops_old_events_and_old_tombstones(outbox: Outbox) -> None:
    await claim(outbox, 1)
    (result,) = await commit(outbox, accept(publication(1, uid="a", message_id="m1", is_delete=True)))
    await commit(outbox, settle(result, 1, NOW_MS + 1))
    await accepted(outbox, accept(publication(1, uid="b", message_id="m2")))
    assert await swept(outbox, NOW_MS, NOW_MS + 1, 10) == 0
    assert await swept(outbox, NOW_MS + 10, NOW_MS + 2, 10) == 3
    assert await outbox.find(NODE, "", "a") is None
    assert await kinds(outbox, "m1") == []
    # What is still pending keeps its acceptance, so that its message id stays known.
    assert await kinds(outbox, "m2") == [EventKind.ACCEPTED]
    assert await outbox.find(NODE, "m2", "") is not None


async def test_sweep_keeps_floors_and_pending_deletes(outbox: Outbox) -> None:
    """C14: a delete is sent until acknowledged, also after a long offline time."""
    await claim(outbox, 1)
    results = await commit(
        outbox, accept(publication(5, uid="a")), accept(publication(1, uid="b", is_delete=True))
    )
    await commit(outbox, settle(results[0], 1))
    await swept(outbox, NOW_MS + 10**9, NOW_MS + 10**9, 100)
    (stale,) = await commit(outbox, accept(publication(4, uid="a")))
    assert isinstance(stale, Stale)
    assert [row.key for row in await outbox.pending(NODE, 0, 10)] == ["b"]


async def test_sweep_is_bounded(outbox: Outbox) -> None:
    await claim(outbox, 1)
    await commit(
        outbox,
        *(Event(NODE, EventKind.REJECTED, NOW_MS, f"m{n}", reason=f"X{n}") for n in range(5)),
    )
    assert [await swept(outbox, NOW_MS + 10, 0, 2) for _ in range(4)] == [2, 2, 1, 0]


async def test_a_sweep_comes_through_all_nodes_step_by_step(outbox: Outbox) -> None:
    """What is young stays, of every node."""
    nodes = [f"edge-{number:04}" for number in range(2 * NODES_PER_STEP + 1)]
    await commit(outbox, *(Claim(node, 1, NOW_MS) for node in nodes))
    for at_ms in (NOW_MS, NOW_MS + 100):
        reason = f"at {at_ms}"
        await commit(outbox, *(Event(node, EventKind.REJECTED, at_ms, "m1", reason=reason) for node in nodes))
    place, rows = SweepPlace(), []
    while not place.is_through:
        step = await outbox.sweep(NOW_MS + 50, 0, 1000, place)
        place = step.place
        rows.append(step.rows)
    assert sum(rows) == len(nodes)
    assert [len(await outbox.history(node, "m1", "", 10)) for node in (nodes[0], nodes[300], nodes[-1])] == [
        1,
        1,
        1,
    ]


async def test_a_step_of_a_sweep_looks_at_some_nodes_only(open_outbox: Opener) -> None:
    outbox = await open_outbox()
    nodes = [f"edge-{number:04}" for number in range(NODES_PER_STEP + 2)]
    await commit(outbox, *(Claim(node, 1, NOW_MS) for node in nodes))
    await commit(outbox, *(Event(node, EventKind.REJECTED, NOW_MS, "m1", reason="X") for node in nodes))
    one = await outbox.sweep(NOW_MS + 1, 0, 1000, SweepPlace())
    assert one == (NODES_PER_STEP, SweepPlace(nodes[NODES_PER_STEP - 1], None))
    assert await outbox.sweep(NOW_MS + 1, 0, 1000, one.place) == (2, SweepPlace(None, None))
    # What came to be behind it waits for the next round.
    await commit(outbox, Event(nodes[0], EventKind.REJECTED, NOW_MS, "m2", reason="X"))
    assert (await outbox.sweep(NOW_MS + 1, 0, 1000, one.place)).rows == 0


async def test_a_step_that_removed_as_much_as_it_may_goes_on_where_it_was(open_outbox: Opener) -> None:
    outbox = await open_outbox()
    await claim(outbox, 1)
    await commit(
        outbox, *(Event(NODE, EventKind.REJECTED, NOW_MS, f"m{n}", reason=f"X{n}") for n in range(3))
    )
    one = await outbox.sweep(NOW_MS + 1, 0, 2, SweepPlace())
    assert one == (2, SweepPlace("", None))
    assert await outbox.sweep(NOW_MS + 1, 0, 2, one.place) == (1, SweepPlace(None, None))


# Questions


async def names(
    outbox: Outbox, after: str = "", limit: int = 100, only: NodeFilter = EVERY_NODE
) -> list[str]:
    return [summary.node.node_id for summary in await outbox.list_nodes(after, limit, only)]


async def test_nodes_are_listed_in_order_and_in_pages(outbox: Outbox) -> None:
    for node_id in ("n3", "n1", "n2", "m9"):
        await accepted(outbox, accept(publication(1), node_id))
    assert await names(outbox) == ["m9", "n1", "n2", "n3"]
    assert await names(outbox, limit=2) == ["m9", "n1"]
    assert await names(outbox, after="n1") == ["n2", "n3"]
    assert await names(outbox, after="n3") == []


async def test_nodes_are_filtered_by_prefix_without_wildcards(outbox: Outbox) -> None:
    for node_id in ("shop-1", "shop-2", "shopx1", "plant-1"):
        await claim(outbox, 1, node_id)
    assert await names(outbox, only=NodeFilter(prefix="shop-")) == ["shop-1", "shop-2"]
    assert await names(outbox, only=NodeFilter(prefix="shop_")) == []
    assert await names(outbox, only=NodeFilter(prefix="%")) == []


async def test_a_prefix_in_capitals_names_no_node_in_small_letters(outbox: Outbox) -> None:
    await claim(outbox, 1, "shop-1")
    assert await names(outbox, only=NodeFilter(prefix="SHOP")) == []


async def test_nodes_are_filtered_by_parked_messages_and_by_age(outbox: Outbox) -> None:
    await parked(outbox, "a", node_id="parked")
    await accepted(outbox, accept(publication(1), "old", NOW_MS - 100))
    await claim(outbox, 1, "idle")
    assert await names(outbox, only=NodeFilter(only_parked=True)) == ["parked"]
    assert await names(outbox, only=NodeFilter(older_than_ms=NOW_MS)) == ["old"]
    assert await names(outbox, only=NodeFilter(older_than_ms=NOW_MS + 1)) == ["old", "parked"]
    assert await names(outbox, only=NodeFilter(older_than_ms=NOW_MS + 1, only_parked=True)) == ["parked"]
    assert await names(outbox, after="old", limit=1, only=NodeFilter(older_than_ms=NOW_MS + 1)) == ["parked"]


async def test_a_summary_has_the_nodes_figures(outbox: Outbox) -> None:
    await parked(outbox, "a")
    await accepted(outbox, accept(publication(1, uid="b", size_bytes=50), at_ms=NOW_MS - 7))
    summary = await outbox.summary(NODE)
    assert summary
    assert (summary.parked, summary.oldest_pending_ms) == (1, NOW_MS - 7)
    node = summary.node
    assert (node.pending_rows, node.pending_bytes, node.last_seq, node.owner_epoch) == (2, 150, 2, 1)


async def test_pending_rows_come_in_pages(outbox: Outbox) -> None:
    await claim(outbox, 1)
    await accepted(outbox, *(accept(publication(1, uid=f"u{n}")) for n in range(5)))
    page = await outbox.pending(NODE, 0, 2)
    assert [row.seq for row in page] == [1, 2]
    assert [row.seq for row in await outbox.pending(NODE, 2, 2)] == [3, 4]
    assert [row.seq for row in await outbox.pending(NODE, 4, 2)] == [5]
    assert await outbox.pending(OTHER, 0, 2) == []


async def test_an_object_is_found_by_key_and_by_any_message_it_had(outbox: Outbox) -> None:
    await accepted(
        outbox,
        accept(publication(1, uid="a", message_id="m1")),
        accept(publication(2, uid="a", message_id="m2")),
    )
    for message_id, key in (("m1", ""), ("m2", ""), ("", "a")):
        row = await outbox.find(NODE, message_id, key)
        assert row
        assert (row.key, row.message_id) == ("a", "m2")
    assert await outbox.find(NODE, "m3", "") is None
    assert await outbox.find(NODE, "", "b") is None
    assert await outbox.find(OTHER, "m1", "") is None


async def test_an_object_is_found_by_its_path_on_every_node(outbox: Outbox) -> None:
    """C41: of those that had the path the last; a node without one is there all the same."""
    await claim(outbox, 1)
    await accepted(outbox, accept(publication(1, uid="old", path=PATH, message_id="m1")))
    await commit(outbox, accept(publication(2, uid="old", path=PATH, message_id="m2", is_delete=True)))
    await accepted(
        outbox,
        accept(publication(3, uid="new", path=PATH, message_id="m3")),
        accept(publication(1, uid="x", path="other/path/x", message_id="m4"), OTHER),
        accept(publication(3, uid="new", path=PATH, message_id="m3"), "edge-3"),
    )

    async def on_nodes(name: str, after: str = "", limit: int = 10, prefix: str = "") -> list[Any]:
        found = await outbox.on_nodes(name, after, limit, prefix)
        return [(node_id, row and (row.key, row.version)) for node_id, row in found]

    found = await outbox.find(NODE, "", PATH)
    assert found
    assert (found.key, found.version) == ("new", 3)
    everywhere = [(NODE, ("new", 3)), (OTHER, None), ("edge-3", ("new", 3))]
    assert await on_nodes(PATH) == await on_nodes("new") == everywhere
    assert await on_nodes("old") == [(NODE, ("old", 2)), (OTHER, None), ("edge-3", None)]
    assert await on_nodes(PATH, NODE, 1) == everywhere[1:2]
    assert await on_nodes(PATH, prefix="edge-3") == everywhere[2:]
    assert await on_nodes(PATH, prefix="shop-") == []
    assert [row.key for row in await outbox.objects_of(NODE, "", 10)] == ["new", "old"]
    assert [row.key for row in await outbox.objects_of(NODE, "new", 10)] == ["old"]
    assert [row.key for row in await outbox.objects_of(NODE, "", 1)] == ["new"]


async def test_an_object_is_purged_by_its_path(outbox: Outbox) -> None:
    """C41: a path that purges nothing would be taken for a node that has nothing pending."""
    await accepted(
        outbox, accept(publication(3, uid="a", path=PATH)), accept(publication(3, uid="b", path="b"))
    )
    assert await outbox.purge(NODE, PATH, NOW_MS) == 1
    assert [row.key for row in await outbox.pending(NODE, 0, 10)] == ["b"]


async def test_history_has_the_newest_events_oldest_first(outbox: Outbox) -> None:
    await claim(outbox, 1)
    (row,) = await accepted(outbox, accept(publication(3, uid="a", message_id="m1")))
    await commit(outbox, Attempt(NODE, 1, "a", "m1", 3, 1, NOW_MS + 1))
    await commit(outbox, Settle(NODE, 1, "a", row.seq, 3, "m1", NOW_MS + 2))
    events = await outbox.history(NODE, "m1", "", 10)
    assert events == [
        Event(NODE, EventKind.ACCEPTED, NOW_MS, "m1", "a", 3),
        Event(NODE, EventKind.SENT, NOW_MS + 1, "m1", "a", 3, attempt=1, epoch=1),
        Event(NODE, EventKind.ACKNOWLEDGED, NOW_MS + 2, "m1", "a", 3, epoch=1),
    ]
    assert await outbox.history(NODE, "", "a", 10) == events
    assert await outbox.history(NODE, "m1", "", 2) == events[1:]
    assert await outbox.history(OTHER, "m1", "", 10) == []


async def test_an_acknowledgement_tells_of_the_attempt_that_it_brings_along(outbox: Outbox) -> None:
    """One row, two lines; what happened between them stands between them."""
    await claim(outbox, 1)
    first, _ = await accepted(
        outbox,
        accept(publication(3, uid="a", message_id="m1")),
        accept(publication(4, uid="a", message_id="m2"), at_ms=NOW_MS + 2),
    )
    attempt = Attempt(NODE, 1, "a", "m1", 3, 2, NOW_MS + 1)
    await commit(outbox, Settle(NODE, 1, "a", first.seq, 3, "m1", NOW_MS + 3, sent=attempt))
    events = await outbox.history(NODE, "m1", "", 10)
    assert events == [
        Event(NODE, EventKind.ACCEPTED, NOW_MS, "m1", "a", 3),
        Event(NODE, EventKind.SENT, NOW_MS + 1, "m1", "a", 3, attempt=2, epoch=1),
        Event(NODE, EventKind.ENDED, NOW_MS + 2, "m1", "a", 3, reason="superseded"),
        Event(NODE, EventKind.ACKNOWLEDGED, NOW_MS + 3, "m1", "a", 3, epoch=1),
    ]
    assert await outbox.history(NODE, "m1", "", 3) == events[1:]
    assert await outbox.history(NODE, "m1", "", 1) == events[3:]


async def test_a_message_without_an_id_of_its_publisher_tells_of_its_acceptance_at_its_end(
    outbox: Outbox,
) -> None:
    """Until then its row does; the history reads the same, and it is found by its id all the while."""
    await claim(outbox, 1)
    first, second = await accepted(
        outbox,
        accept(publication(3, uid="a")),
        accept(publication(4, uid="a"), at_ms=NOW_MS + 2),
    )
    one, two = first.message_id, second.message_id
    told = [
        Event(NODE, EventKind.ACCEPTED, NOW_MS, one, "a", 3),
        Event(NODE, EventKind.ENDED, NOW_MS + 2, one, "a", 3, reason="superseded"),
        Event(NODE, EventKind.ACCEPTED, NOW_MS + 2, two, "a", 4),
    ]
    assert await outbox.history(NODE, "", "a", 10) == told
    assert await outbox.history(NODE, one, "", 10) == told[:2]
    assert await outbox.history(NODE, two, "", 10) == told[2:]
    await commit(outbox, Attempt(NODE, 1, "a", two, 4, 1, NOW_MS + 3))
    attempt = Attempt(NODE, 1, "a", two, 4, 2, NOW_MS + 4)
    settle_it = Settle(NODE, 1, "a", second.seq, 4, two, NOW_MS + 5, sent=attempt)
    told += [
        Event(NODE, EventKind.SENT, NOW_MS + 3, two, "a", 4, attempt=1, epoch=1),
        Event(NODE, EventKind.SENT, NOW_MS + 4, two, "a", 4, attempt=2, epoch=1),
        Event(NODE, EventKind.ACKNOWLEDGED, NOW_MS + 5, two, "a", 4, epoch=1),
    ]
    for message_id in (one, two):
        row = await outbox.find(NODE, message_id, "")
        assert row
        assert (row.key, row.message_id, row.state) == ("a", two, RowState.PENDING)
    await commit(outbox, settle_it)
    assert await outbox.history(NODE, "", "a", 10) == told
    assert await outbox.history(NODE, two, "", 10) == told[2:]
    assert await outbox.history(NODE, "", "a", 2) == told[-2:]
    # An acknowledgement that comes again has nothing to tell of the acceptance.
    await commit(outbox, settle_it._replace(at_ms=NOW_MS + 6, sent=None))
    again = Event(NODE, EventKind.ACKNOWLEDGED, NOW_MS + 6, two, "a", 4, epoch=1)
    assert await outbox.history(NODE, two, "", 10) == [*told[2:], again]
    for message_id in (one, two):
        assert await outbox.find(NODE, message_id, "")


@pytest.mark.parametrize("ending", ["purge", "expire", "end", "park and purge", "delete of the path"])
async def test_however_a_message_ends_its_history_begins_with_its_acceptance(
    outbox: Outbox, ending: str
) -> None:
    await claim(outbox, 1)
    (row,) = await accepted(outbox, accept(publication(3, uid="a", expires_at_ms=NOW_MS + 10)))
    if ending == "end":
        await commit(outbox, End(NODE, 1, "a", row.seq, row.message_id, "why", NOW_MS + 1))
    elif ending == "expire":
        assert len(await outbox.expire(NOW_MS + 10, 10)) == 1
    elif ending == "delete of the path":
        await accepted(outbox, accept(publication(None, is_delete=True), at_ms=NOW_MS + 1))
    else:
        if ending == "park and purge":
            await commit(outbox, Park(NODE, 1, "a", row.seq, row.message_id, "why", NOW_MS + 1))
        assert await outbox.purge(NODE, "a", NOW_MS + 2) == 1
    told = await outbox.history(NODE, row.message_id, "", 10)
    middle = [EventKind.PARKED] if ending == "park and purge" else []
    assert [event.kind for event in told] == [EventKind.ACCEPTED, *middle, EventKind.ENDED]
    assert (told[0].at_ms, told[0].key, told[0].version) == (NOW_MS, "a", 3)


async def test_a_refused_publish_is_in_the_history_with_its_reason(outbox: Outbox) -> None:
    await accepted(outbox, accept(publication(5)))
    await commit(
        outbox,
        accept(publication(4, message_id="old")),
        Event(NODE, EventKind.REJECTED, NOW_MS, "noted", reason="CONTENT_NOT_JSON"),
    )
    (event,) = await outbox.history(NODE, "old", "", 10)
    assert (event.kind, event.reason, event.version) == (EventKind.REJECTED, "BELOW_FLOOR", 4)
    (noted,) = await outbox.history(NODE, "noted", "", 10)
    assert noted.reason == "CONTENT_NOT_JSON"


# What a database does


async def test_what_was_committed_is_there_without_a_close(tmp_path: Path) -> None:
    """C12: the process is gone without a word; the file has all that was answered."""
    outbox = await opened(f"sqlite:///{tmp_path / 'outbox.db'}")
    await claim(outbox, 3)
    await accepted(outbox, accept(publication(9, uid="a", message_id="m1")), accept(publication(1, uid="b")))
    await outbox.purge(NODE, "b", NOW_MS)
    (tmp_path / "copy").mkdir()
    for file in tmp_path.glob("outbox.db*"):
        shutil.copy(file, tmp_path / "copy" / file.name)
    survivor = await opened(f"sqlite:///{tmp_path / 'copy' / 'outbox.db'}")
    assert survivor.totals == outbox.totals == Totals(1, 100)
    assert await visible(survivor) == await visible(outbox)
    body = (await survivor.bodies([(NODE, "a", 1)]))[NODE, "a", 1]
    assert read(body).id == "m1"
    await survivor.store.close()
    await outbox.store.close()


async def test_totals_and_rules_go_on_after_a_restart(open_outbox: Opener) -> None:
    """C18, C13, C24: quotas, floors and message ids outlive the process."""
    quotas = Quotas(total_rows=2)
    outbox = await open_outbox(quotas=quotas)
    await claim(outbox, 1)
    await accepted(outbox, accept(publication(5, uid="a", message_id="m1")), accept(publication(1, uid="b")))
    outbox = await open_outbox(quotas=quotas)
    assert outbox.totals == Totals(2, 200)
    results = await commit(
        outbox,
        accept(publication(1, uid="c")),
        accept(publication(4, uid="a")),
        accept(publication(6, uid="a", message_id="m1")),
    )
    assert isinstance(results[0], Rejection)
    assert results[0].reason == "TOTAL_QUOTA_ROWS"
    assert isinstance(results[1], Stale)
    assert isinstance(results[2], Rejection)
    assert results[2].reason == "MESSAGE_ID_REUSED"
    assert (await claim(outbox, 1)).fenced


async def test_history_goes_on_after_a_restart_with_a_clock_that_stepped_back(open_outbox: Opener) -> None:
    """C36: a clock stepped by an hour harms nothing; no event takes the place of an earlier one."""
    outbox = await open_outbox()
    await claim(outbox, 1)
    await accepted(outbox, *(accept(publication(n, message_id=f"m{n}")) for n in (1, 2, 3)))
    outbox = await open_outbox()
    await accepted(outbox, *(accept(publication(n, message_id=f"m{n}")) for n in (4, 5)))
    events = await outbox.history(NODE, "", PATH, 100)
    accepted_ids = [event.message_id for event in events if event.kind == EventKind.ACCEPTED]
    assert accepted_ids == ["m1", "m2", "m3", "m4", "m5"]


@pytest.mark.parametrize(
    ("column", "value"),
    [("floor", "'not a number'"), ("state", "7"), ("version", "'x'"), ("message", "body")],
)
async def test_a_row_that_cannot_be_read_harms_nothing_else(
    open_outbox: Opener, column: str, value: str
) -> None:
    """Invariant 10: bad database content gives an error to whoever asks for it and harms nothing else."""
    outbox = await open_outbox()
    await accepted(outbox, accept(publication(1, uid="a")), accept(publication(1, uid="b"), OTHER))
    if value == "body":
        value = r"'\xff'::bytea" if outbox.store.is_shared else "x'ff'"
    statement = text(
        f"UPDATE delivery SET {column} = {value.replace(':', chr(92) + ':')} WHERE object_key = 'a'"
    )
    await outbox.store.write(lambda c: c.execute(statement))
    if column != "message":
        results = await outbox.commit([accept(publication(2, uid="a")), Claim(NODE, 1, NOW_MS)])
        assert [type(result) for result in results] == [RowDamaged, RowDamaged]
    results = await outbox.commit(
        [accept(publication(3, uid="a")), accept(publication(2, uid="b"), OTHER), Claim(OTHER, 1, NOW_MS)]
        if column != "message"
        else [Claim(NODE, 1, NOW_MS), accept(publication(2, uid="b"), OTHER)]
    )
    assert isinstance(results[1], Accepted)
    found = await outbox.bodies([(NODE, "a", 1), (OTHER, "b", 2)])
    assert read(found[OTHER, "b", 2]).resource_version == "2"
    assert (NODE, "a", 1) not in found or isinstance(found[NODE, "a", 1], Withheld) == (column == "message")


# Deleting nodes


async def nothing_left(case: Case, node_id: str = NODE) -> None:
    """No row of the node, in whatever way one asks."""
    assert await case.outbox.summary(node_id) is None
    assert await case.outbox.pending(node_id, 0, 10) == []
    assert await case.outbox.find(node_id, "", PATH) is None
    for message_id in ("m1", "m2", "m9"):
        assert await case.outbox.history(node_id, message_id, "", 10) == []


async def test_a_deleted_node_leaves_no_row(case: Case) -> None:
    """C10: what is pending, parked, settled and told of it; other nodes stay as they are."""
    await claim(case.outbox, 5)
    rows = await accepted(
        case.outbox,
        accept(publication(1, uid="u1", message_id="m1")),
        accept(publication(1, uid="u2", message_id="m2", path="p/x/2")),
        accept(publication(1, message_id="m9")),
        accept(publication(1, message_id="m1"), OTHER),
    )
    await commit(case.outbox, Park(NODE, 5, rows[0].key, rows[0].seq, "m1", "why", NOW_MS))
    await commit(case.outbox, Settle(NODE, 5, rows[1].key, rows[1].seq, 1, "m2", NOW_MS))
    assert await commit(case.outbox, DeleteNode(NODE, 5)) == [Deleted(2)]
    await nothing_left(case)
    assert (case.totals.rows, case.totals.bytes) == (1, 100)
    assert [row.message_id for row in await case.outbox.pending(OTHER, 0, 10)] == ["m1"]


async def test_deleting_an_unknown_node_changes_nothing(case: Case) -> None:
    """C10."""
    assert await commit(case.outbox, DeleteNode(NODE, 0), DeleteNode(NODE, 7)) == [Deleted(0), Deleted(0)]
    await nothing_left(case)


async def test_what_a_deleted_nodes_session_still_records_is_fenced(case: Case) -> None:
    """C10: its rows do not come back, also when the deletion is in the same batch."""
    await claim(case.outbox, 5)
    (row,) = await accepted(case.outbox, accept(publication(1, message_id="m1")))
    late = owned_ops(row, 5)
    results = await commit(case.outbox, DeleteNode(NODE, 5), *late)
    assert results == [Deleted(1), *[Fenced()] * len(late)]
    assert await commit(case.outbox, *late) == [Fenced()] * len(late)
    await nothing_left(case)


async def test_a_deleted_nodes_id_comes_again_clean(case: Case) -> None:
    """C10: no floor, no message id and no order is left of the former life."""
    await claim(case.outbox, 5)
    (row,) = await accepted(case.outbox, accept(publication(9, message_id="m1")))
    await commit(case.outbox, Settle(NODE, 5, row.key, row.seq, 9, "m1", NOW_MS))
    _, result = await commit(case.outbox, DeleteNode(NODE, 5), accept(publication(1, message_id="m1")))
    assert isinstance(result, Accepted)
    assert (result.row.seq, result.row.floor) == (1, 1)
    loaded = await claim(case.outbox, 6)
    assert [row.version for row in loaded.rows] == [1]
    assert [event.kind for event in await case.outbox.history(NODE, "m1", "", 10)] == [EventKind.ACCEPTED]


async def test_a_session_that_the_node_opened_since_keeps_what_it_owns(case: Case) -> None:
    """C10: deletion and a new link at the same time; the newer session can still settle."""
    await claim(case.outbox, 5)
    await accepted(case.outbox, accept(publication(1, uid="old", message_id="m1")))
    await claim(case.outbox, 8)
    assert await commit(case.outbox, DeleteNode(NODE, 5)) == [Deleted(1)]
    assert await case.outbox.pending(NODE, 0, 10) == []
    (row,) = await accepted(case.outbox, accept(publication(1, uid="new", message_id="m2")))
    assert await commit(case.outbox, Settle(NODE, 8, row.key, row.seq, 1, "m2", NOW_MS)) == [Done()]
    assert case.totals == Totals()


async def test_what_a_deleted_nodes_session_left_behind_is_forgotten(case: Case) -> None:
    """C10: a late claim of the session that ended, and lines of history."""
    await commit(case.outbox, DeleteNode(NODE, 5))
    await claim(case.outbox, 5)
    await commit(case.outbox, Event(NODE, EventKind.DROPPED, NOW_MS, "m9", reason="link_gone"))
    assert await commit(case.outbox, ForgetNode(NODE, 5)) == [Deleted(0)]
    await nothing_left(case)


async def test_an_id_that_is_in_use_again_is_not_forgotten(case: Case) -> None:
    """C10: what was accepted after the deletion stays."""
    await accepted(case.outbox, accept(publication(1, message_id="m1")))
    assert await commit(case.outbox, ForgetNode(NODE, 5)) == [Done()]
    await claim(case.outbox, 8, OTHER)
    assert await commit(case.outbox, ForgetNode(OTHER, 5)) == [Done()]
    assert [row.message_id for row in await case.outbox.pending(NODE, 0, 10)] == ["m1"]
    assert await case.outbox.summary(OTHER)


# Both alike, whatever is done to them

NODES = ("n1", "n2")
KEYS = ("a", "b", "")
small = st.integers(1, 4)
publications = st.builds(
    publication,
    version=st.one_of(st.integers(0, 6), st.just(10**20 - 1)),
    uid=st.sampled_from(KEYS),
    path=st.sampled_from(["p/x/1", "p/x/2"]),
    message_id=st.sampled_from(["", "", "", "m1", "m2", "m3"]),
    is_delete=st.sampled_from([False, False, True]),
    is_answer=st.just(False),
    force=st.sampled_from([False, False, True]),
    size_bytes=st.integers(1, 300),
    expires_at_ms=st.sampled_from([0, 0, NOW_MS + 40]),
) | st.builds(
    publication,
    version=st.none(),
    is_answer=st.just(True),
    message_id=st.sampled_from(["r1", "r2"]),
    expires_at_ms=st.just(NOW_MS + 20),
)
node_ids = st.sampled_from(NODES)
keys = st.sampled_from(["a", "b", "p/x/1", "p/x/2", "answer:r1"])
ids = st.sampled_from(["m1", "m2", "hub-a-1-update"])
at = st.integers(NOW_MS, NOW_MS + 60)
attempts = st.builds(Attempt, node_ids, small, keys, ids, st.integers(0, 6), small, at)
operations: st.SearchStrategy[Op] = st.one_of(
    st.builds(accept, publications, node_ids, at),
    st.builds(accept, publications, node_ids, at),
    st.builds(Claim, node_ids, small, at, st.booleans(), st.integers(0, 6), st.integers(0, 8)),
    st.builds(Reload, node_ids, st.integers(0, 8)),
    st.builds(
        Settle,
        *(node_ids, small, keys, st.integers(1, 8), st.integers(0, 6), ids, at, st.just("")),
        st.none() | attempts,
    ),
    attempts,
    st.builds(CountUnacknowledged, node_ids, small, keys, st.integers(1, 8), ids, small, at),
    st.builds(Park, node_ids, small, keys, st.integers(1, 8), ids, st.just("why"), at, st.booleans()),
    st.builds(End, node_ids, small, keys, st.integers(1, 8), ids, st.just("why"), at),
    st.builds(lambda node, at_ms, name: Event(node, EventKind.REJECTED, at_ms, name), node_ids, at, ids),
    st.builds(DeleteNode, node_ids, small),
    st.builds(ForgetNode, node_ids, small),
)

Step = Callable[[Outbox], Awaitable[object]]


def named_step(name: str, step: Step) -> Step:
    step.__name__ = name
    return step


async def expired_keys(outbox: Outbox, at_ms: int) -> object:
    return sorted((row.node_id, row.key, row.message_id) for row in await outbox.expire(at_ms, 100))


steps: st.SearchStrategy[Step] = st.one_of(
    st.lists(operations, min_size=1, max_size=6).map(
        lambda ops: named_step(f"commit {ops}", lambda outbox: outbox.commit(ops))
    ),
    st.tuples(node_ids, keys | st.just(""), at).map(
        lambda args: named_step(f"redeliver {args}", lambda outbox: outbox.redeliver(*args))
    ),
    st.tuples(node_ids, keys | st.just(""), at).map(
        lambda args: named_step(f"purge {args}", lambda outbox: outbox.purge(*args))
    ),
    st.tuples(node_ids, at).map(
        lambda args: named_step(f"resync {args}", lambda outbox: outbox.resync(*args))
    ),
    at.map(lambda now: named_step(f"expire {now}", lambda outbox: expired_keys(outbox, now))),
    at.map(lambda now: named_step(f"forget_unknown {now}", lambda outbox: outbox.forget_unknown(now, 100))),
    st.tuples(at, at).map(
        lambda args: named_step(f"sweep {args}", lambda outbox: swept(outbox, *args, 1000))
    ),
)


async def visible(outbox: Outbox) -> dict[str, object]:
    """Everything an outbox shows."""
    shown: dict[str, object] = {}
    summaries: Sequence[NodeSummary] = await outbox.list_nodes("", 100, EVERY_NODE)
    shown["nodes"] = summaries
    for summary in summaries:
        node_id = summary.node.node_id
        pending = await outbox.pending(node_id, 0, 1000)
        shown[f"pending {node_id}"] = pending
        shown[f"bodies {node_id}"] = await outbox.bodies([(node_id, row.key, row.seq) for row in pending])
    for node_id in (*NODES, NODE):
        for key in ("a", "b", "p/x/1", "p/x/2", "answer:r1", "answer:r2"):
            shown[f"row {node_id} {key}"] = await outbox.find(node_id, "", key)
            shown[f"events {node_id} {key}"] = await outbox.history(node_id, "", key, 1000)
        for message_id in ("m1", "m2", "m3"):
            shown[f"events {node_id} {message_id}"] = await outbox.history(node_id, message_id, "", 1000)
    return shown


def without_bodies(answer: object) -> object:
    """Rows just accepted carry their body; whether rows loaded in the same batch do is nobody's business."""
    if isinstance(answer, list):
        return [without_bodies(item) for item in answer]
    if isinstance(answer, Loaded):
        return replace(answer, rows=[msgspec.structs.replace(row, body=None) for row in answer.rows])
    return answer


def empty(connection: Connection) -> None:
    """Leaves nothing in any table."""
    for table in schema.metadata.sorted_tables:
        connection.execute(table.delete())


@pytest.fixture(scope="module")
def emptied_databases() -> dict[str, str]:
    """By engine: one database for all examples, since a new one takes longer than most of them."""
    return {}


@pytest.mark.no_cover
@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(script=st.lists(steps, min_size=1, max_size=12))
def test_both_outboxes_show_the_same_after_any_operations(
    script: list[Step],
    engine: str,
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    emptied_databases: dict[str, str],
) -> None:
    quotas = Quotas(
        node_objects=4,
        node_rows=3,
        node_bytes=700,
        unknown_node_rows=2,
        unknown_node_seconds=0.05,
        total_rows=5,
        unknown_rows=3,
        unknown_nodes=2,
        history_rows=9,
    )

    async def run() -> None:
        if engine not in emptied_databases:
            folder = tmp_path_factory.mktemp("outbox")
            emptied_databases[engine] = await new_database(request, engine, folder)
        store = await open_store(emptied_databases[engine], schema.SCHEMA)
        await store.write(empty)
        real = SqlOutbox(store, quotas)
        await real.open()
        fake = MemoryOutbox(quotas)
        try:
            for step in script:
                assert without_bodies(await step(real)) == without_bodies(await step(fake)), step.__name__
                assert real.totals == fake.totals
            assert await visible(real) == await visible(fake)
        finally:
            await real.store.close()

    asyncio.run(run())
