"""One path, one object, in every outbox: each engine and the fake (C15, C51, C46)."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, text

from services.dispatcher.outbox.contract import SweepPlace
from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.records import (
    Accepted,
    Claim,
    DeleteNode,
    EventKind,
    Loaded,
    Result,
    Stale,
)
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.outbox.sql import SqlOutbox
from services.dispatcher.outbox.transaction import _deliveries_at_path
from services.dispatcher.publication import Publication, Rejection
from services.runtime.store import open_store
from tests.support.outbox import NODE, NOW_MS, PATH, MemoryOutbox, accept, publication, settle
from tests.support.postgres import Databases

OTHER = "edge-2"
EPOCH = 1
QUOTAS = Quotas(node_objects=3, unknown_node_rows=1)

AnyOutbox = MemoryOutbox | SqlOutbox


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
async def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[AnyOutbox]:
    """With a node that has a session, and small quotas."""
    if request.param == "memory":
        fake = MemoryOutbox(QUOTAS)
        await fake.commit([Claim(NODE, EPOCH, NOW_MS)])
        yield fake
        return
    url = f"sqlite:///{tmp_path / 'outbox.db'}"
    if request.param == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        url = await databases.fresh(SCHEMA)
    real = SqlOutbox(await open_store(url, SCHEMA), QUOTAS)
    await real.open()
    await real.commit([Claim(NODE, EPOCH, NOW_MS)])
    yield real
    await real.store.close()


def update(version: int, uid: str = "", message_id: str = "") -> Publication:
    return publication(version, uid=uid, path=PATH, message_id=message_id)


def delete(version: int | None, uid: str = "") -> Publication:
    return publication(version, uid=uid, path=PATH, is_delete=True)


async def publish(outbox: AnyOutbox, *what: Publication, node_id: str = NODE) -> list[Result]:
    results: list[Result] = []
    for result in await outbox.commit([accept(one, node_id) for one in what]):
        assert not isinstance(result, Exception), result
        results.append(result)
    return results


def forget(outbox: AnyOutbox) -> None:
    """As after a restart: nothing is known but what stands in the database."""
    if isinstance(outbox, SqlOutbox):
        outbox._forget()


async def objects(outbox: AnyOutbox, node_id: str = NODE) -> int:
    summary = await outbox.summary(node_id)
    return summary.node.objects if summary else 0


@pytest.mark.parametrize("known", [True, False], ids=["rows known", "rows read"])
@pytest.mark.parametrize("one_batch", [True, False])
async def test_two_publishers_of_one_path_never_pass_each_other(
    outbox: AnyOutbox, known: bool, one_batch: bool
) -> None:
    """C51: version 50 with a uid, then 30 without, and back; the history says what happened."""
    what = [
        *(update(50, "u1", "m50"), update(30, message_id="m30"), update(60, message_id="m60")),
        *(update(55, "u1", "m55"), update(70, "u1", "m70")),
    ]
    if one_batch:
        results = await publish(outbox, *what)
    else:
        results = []
        for one in what:
            results += await publish(outbox, one)
            if not known:
                forget(outbox)
    assert [type(result) for result in results] == [Accepted, Stale, Accepted, Stale, Accepted]
    assert [result.reason for result in results if isinstance(result, Stale)] == ["PATH_TAKEN", "PATH_TAKEN"]
    assert [row.message_id for row in await outbox.pending(NODE, 0, 10)] == ["m70"]
    assert await objects(outbox) == 2
    ends = await outbox.history(NODE, "m50", "", 9)
    assert (ends[-1].kind, ends[-1].reason) == (EventKind.ENDED, f"replaced at its path by {PATH} version 60")
    former = await outbox.find(NODE, "", PATH)
    assert former
    assert (former.is_replaced, former.reason) == (True, "replaced at its path by u1 version 70")
    assert outbox.totals.rows == 1


@pytest.mark.parametrize("acknowledged", [True, False])
async def test_a_late_delete_never_destroys_what_came_after_it(outbox: AnyOutbox, acknowledged: bool) -> None:
    """C15: in the database too the former object is known, or what is there is."""
    await publish(outbox, update(50, "u1"))
    (gone,) = await publish(outbox, delete(51, "u1"))
    assert isinstance(gone, Accepted)
    if acknowledged:
        await outbox.commit([settle(gone, EPOCH)])
    await publish(outbox, update(7, "u2", "m7"))
    forget(outbox)
    (late,) = await publish(outbox, delete(51, "u1"))
    (unknown,) = await publish(outbox, delete(99, "u9"))
    assert isinstance(unknown, Stale)
    # Pending, it is the same delete, and goes before the new object as it did.
    assert isinstance(late, Stale) == acknowledged
    assert [row.message_id for row in await outbox.pending(NODE, 0, 10)][-1] == "m7"


async def test_what_is_replaced_has_no_message_any_more(outbox: AnyOutbox) -> None:
    """Its body goes."""
    (first,) = await publish(outbox, update(50, "u1"))
    assert isinstance(first, Accepted)
    await publish(outbox, update(60))
    assert await outbox.bodies([(NODE, "u1", first.row.seq)]) == {}
    loaded = (await outbox.commit([Claim(NODE, EPOCH + 1, NOW_MS)]))[0]
    assert isinstance(loaded, Loaded)
    assert [row.key for row in loaded.rows] == [PATH]


async def test_a_publish_reads_one_former_object_of_its_path_however_many_there_were(
    tmp_path: Path,
) -> None:
    """C28: deleted and created a hundred times over."""
    outbox = SqlOutbox(await open_store(f"sqlite:///{tmp_path / 'outbox.db'}", SCHEMA), Quotas())
    await outbox.open()
    await outbox.commit([Claim(NODE, EPOCH, NOW_MS)])
    for turn in range(100):
        await publish(outbox, update(turn, f"u{turn}"), delete(turn, f"u{turn}"))
    forget(outbox)
    read = await outbox.store.read(
        lambda connection: list(_deliveries_at_path.execute(connection, [(NODE, PATH)]))
    )
    assert [row[1] for row in read] == ["u99"]
    await outbox.store.close()


# How many objects a node has (C46)


async def test_objects_on_record_are_bounded_per_node_and_others_do_not_notice(outbox: AnyOutbox) -> None:
    """C46: the refusal says how many and what to do; objects that are on record go on, as do other nodes."""
    for uid in ("a", "b", "c"):
        (result,) = await publish(outbox, publication(1, uid=uid))
        await outbox.commit([settle(result, EPOCH)])
    forget(outbox)
    (refusal,) = await publish(outbox, publication(1, uid="d"))
    assert isinstance(refusal, Rejection)
    assert (refusal.reason, refusal.field) == ("NODE_QUOTA_OBJECTS", "node_ids")
    assert "3 objects on record" in refusal.detail
    assert "--max-node-objects" in refusal.detail
    assert await outbox.find(NODE, "", "d") is None
    results = await publish(outbox, publication(2, uid="a"), publication(None, uid="b", is_delete=True))
    assert [type(result) for result in results] == [Accepted, Accepted]
    answer = publication(None, is_answer=True, message_id="r1")
    (answered,) = await publish(outbox, answer)
    assert isinstance(answered, Accepted)
    assert await objects(outbox) == 3
    await outbox.commit([Claim(OTHER, EPOCH, NOW_MS)])
    (elsewhere,) = await publish(outbox, publication(1, uid="d"), node_id=OTHER)
    assert isinstance(elsewhere, Accepted)


async def test_a_node_that_never_connected_has_fewer(outbox: AnyOutbox) -> None:
    """C46, C50."""
    for uid in "ab":
        (result,) = await publish(outbox, publication(1, uid=uid, expires_at_ms=NOW_MS + 1), node_id=OTHER)
        assert isinstance(result, Accepted)
        await outbox.expire(NOW_MS + 2, 9)
    (refusal,) = await publish(outbox, publication(1, uid="c"), node_id=OTHER)
    assert isinstance(refusal, Rejection)
    assert refusal.reason == "NODE_QUOTA_OBJECTS"
    assert refusal.detail.startswith("never connected node has 2 objects on record")
    assert "--unknown-node-most-rows" in refusal.detail


async def test_a_deleted_object_makes_room_when_it_is_forgotten(outbox: AnyOutbox) -> None:
    """C46: not before: what comes late would bring it back."""
    for uid in ("a", "b", "c"):
        (result,) = await publish(outbox, publication(1, uid=uid, is_delete=True))
        await outbox.commit([settle(result, EPOCH)])
    assert isinstance((await publish(outbox, publication(1, uid="d")))[0], Rejection)
    await outbox.sweep(0, NOW_MS + 1, 2, SweepPlace())
    assert await objects(outbox) == 1
    await outbox.sweep(0, NOW_MS + 1, 100, SweepPlace())
    assert await objects(outbox) == 0
    assert isinstance((await publish(outbox, publication(1, uid="d")))[0], Accepted)


@pytest.mark.parametrize("came_again", [True, False])
async def test_a_deleted_node_has_no_objects(outbox: AnyOutbox, came_again: bool) -> None:
    """C10."""
    await publish(outbox, *(publication(1, uid=uid) for uid in "abc"))
    if came_again:
        await outbox.commit([Claim(NODE, 9, NOW_MS)])
    await outbox.commit([DeleteNode(NODE, 5)])
    assert await objects(outbox) == 0
    assert isinstance((await publish(outbox, publication(1, uid="d")))[0], Accepted)
    assert await objects(outbox) == 1


# What other releases leave


async def as_a_former_release_leaves_it(outbox: AnyOutbox, *keys: str) -> None:
    """These objects are live, whatever else is at their paths; and nobody has counted anything."""
    if isinstance(outbox, MemoryOutbox):
        for key in keys:
            outbox.objects[NODE][key].deleted = False
        outbox.nodes[NODE].objects = 0
        return

    def change(connection: Connection) -> None:
        for key in keys:
            named = {"key": key, "live": False}
            connection.execute(text("UPDATE delivery SET deleted = :live WHERE object_key = :key"), named)
        connection.execute(text("UPDATE node SET objects = 0, revision = revision + 1"))

    await outbox.store.write(change)
    forget(outbox)


async def test_of_several_live_objects_of_a_path_the_newest_stays(outbox: AnyOutbox) -> None:
    """C51: as the issue has it: version 50 with a uid, acknowledged, then 30 without. The edge has the older
    one; so the newer one is taken once more, and nothing older any more."""
    (first,) = await publish(outbox, update(20))
    await outbox.commit([settle(first, EPOCH)])
    (second,) = await publish(outbox, update(50, "u1"))
    await outbox.commit([settle(second, EPOCH)])
    await as_a_former_release_leaves_it(outbox, PATH)
    (third,) = await publish(outbox, update(30, message_id="m30"))
    assert isinstance(third, Accepted), "both are live"
    mended = await outbox.mend("", NOW_MS)
    assert mended == (1, None)
    assert await objects(outbox) == 2
    assert await outbox.pending(NODE, 0, 9) == []
    assert outbox.totals.rows == 0
    reasons = [event.reason for event in await outbox.history(NODE, "m30", "", 9)]
    assert reasons[-1] == "replaced at its path by u1 version 50"
    assert (await outbox.last_seqs([NODE]))[NODE] > third.row.seq, "the owner has to notice"
    (older, again) = await publish(outbox, update(31), update(50, "u1"))
    assert isinstance(older, Stale)
    assert isinstance(again, Accepted)
    assert await outbox.mend("", NOW_MS) == (0, None)


async def test_the_newest_waits_behind_what_the_node_has_got_since(outbox: AnyOutbox) -> None:
    """C51, invariant 3: in the node's order, so that its owner sends it last."""
    await publish(outbox, update(20), update(50, "u1"))
    await as_a_former_release_leaves_it(outbox, PATH)
    (late,) = await publish(outbox, update(30))
    assert isinstance(late, Accepted)
    await outbox.mend("", NOW_MS)
    (row,) = await outbox.pending(NODE, 0, 9)
    assert (row.key, row.version, row.seq) == ("u1", 50, late.row.seq + 1)


async def test_a_right_database_is_not_touched(outbox: AnyOutbox) -> None:
    """Nor are objects without a path, answers and deleted ones taken for doubles."""
    await publish(outbox, update(1, "u1"), delete(2, "u1"), update(1, "u2"))
    await publish(outbox, publication(None, path=PATH, is_answer=True, message_id="r1"))
    before = [await outbox.summary(NODE), await outbox.pending(NODE, 0, 9)]
    assert await outbox.mend("", NOW_MS) == (0, None)
    assert [await outbox.summary(NODE), await outbox.pending(NODE, 0, 9)] == before


async def test_mending_goes_through_all_nodes_and_leaves_damaged_ones_out(tmp_path: Path) -> None:
    """Invariant 10: a row that cannot be read harms nobody else."""
    outbox = SqlOutbox(await open_store(f"sqlite:///{tmp_path / 'outbox.db'}", SCHEMA), Quotas())
    await outbox.open()
    node_ids = [f"n{number:04d}" for number in range(600)]
    await outbox.commit([accept(publication(1), node_id) for node_id in node_ids])

    def spoil(connection: Connection) -> None:
        connection.execute(text("UPDATE node SET objects = 7"))
        connection.execute(text("UPDATE node SET last_seq = 'x' WHERE node_id = 'n0003'"))

    await outbox.store.write(spoil)
    outbox._forget()
    after: str | None = ""
    steps = 0
    while after is not None:
        after = (await outbox.mend(after, NOW_MS)).after
        steps += 1
    assert steps == 3
    counted = text("SELECT objects, count(*) FROM node GROUP BY objects ORDER BY objects")
    rows = await outbox.store.read(lambda connection: [tuple(row) for row in connection.execute(counted)])
    assert rows == [(1, 599), (7, 1)]
    await outbox.store.close()
