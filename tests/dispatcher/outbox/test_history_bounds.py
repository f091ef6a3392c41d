"""How much history a node may have, and what nodes that never connected may: both engines."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from sqlalchemy import func, select

from services.dispatcher.outbox import history as history_sql
from services.dispatcher.outbox.event_ids import EventIds
from services.dispatcher.outbox.quotas import Quotas
from services.dispatcher.outbox.records import (
    Accepted,
    Attempt,
    Claim,
    DeleteNode,
    Event,
    EventKind,
    Op,
    Result,
)
from services.dispatcher.outbox.repetitions import ALONE, MERGE_MS, OpenLines
from services.dispatcher.outbox.rows import event_values
from services.dispatcher.outbox.schema import delivery_event, node
from services.dispatcher.outbox.sql import SqlOutbox, notes_query
from services.dispatcher.publication import Rejection
from tests.dispatcher.outbox.test_contract import new_database, opened
from tests.support.outbox import NODE, NOW_MS, accept, publication, settle

OTHER = "edge-2"
# A node keeps 100 lines of each kind when it is cut.
QUOTAS = Quotas(
    history_rows=300,
    node_rows=1000,
    unknown_node_rows=50,
    unknown_rows=60,
    unknown_bytes=7000,
    unknown_nodes=3,
)


@pytest.fixture(params=["sqlite", "postgresql"])
async def outbox(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[SqlOutbox]:
    made = await opened(await new_database(request, request.param, tmp_path), QUOTAS)
    yield made
    await made.store.close()


async def commit(outbox: SqlOutbox, *ops: Op) -> list[Result]:
    results: list[Result] = []
    for result in await outbox.commit(ops):
        assert not isinstance(result, Exception), result
        results.append(result)
    return results


async def lines(outbox: SqlOutbox, node_id: str) -> int:
    """Rows in the table."""
    query = select(func.count()).select_from(delivery_event).where(delivery_event.c.node_id == node_id)
    return await outbox.store.read(lambda c: int(c.execute(query).scalar_one()))


async def nodes(outbox: SqlOutbox) -> list[str]:
    query = select(node.c.node_id).order_by(node.c.node_id)
    return await outbox.store.read(lambda c: list(c.execute(query).scalars()))


def rejected(results: list[Result]) -> list[str]:
    return [result.reason for result in results if isinstance(result, Rejection)]


# Repetitions


async def test_a_flapping_edge_makes_a_line_per_message_and_hour(outbox: SqlOutbox) -> None:
    """C46: it takes 64 messages over each of 50 links and answers nothing; it was 3 200 lines."""
    outbox.quotas = Quotas()
    await commit(outbox, Claim(NODE, 1, NOW_MS), Claim(OTHER, 1, NOW_MS))
    await commit(outbox, *(accept(publication(1, uid=f"u{n}")) for n in range(64)))
    rows = await outbox.pending(NODE, 0, 100)
    for link in range(2, 52):
        at_ms = NOW_MS + link * 50
        await commit(
            outbox,
            Claim(NODE, link, at_ms),
            *(Attempt(NODE, link, row.key, row.message_id, row.version, 1, at_ms) for row in rows),
        )
    assert await lines(outbox, NODE) == 64 * (ALONE + 1)
    *alone, sent = (await outbox.history(NODE, rows[0].message_id, "", 100))[1:]
    assert [(event.kind, event.repeats) for event in alone] == [(EventKind.SENT, 0)] * ALONE
    assert (sent.kind, sent.repeats) == (EventKind.SENT, 49 - ALONE)
    assert (sent.at_ms, sent.last_at_ms) == (NOW_MS + (2 + ALONE) * 50, NOW_MS + 51 * 50)
    # What happens next has a line of its own, and so has what comes an hour later.
    late = NOW_MS + MERGE_MS + 1000
    await commit(outbox, Attempt(NODE, 51, rows[1].key, rows[1].message_id, 1, 1, late))
    told = await outbox.history(NODE, rows[1].message_id, "", 100)
    assert [event.repeats for event in told][-2:] == [49 - ALONE, 0]
    assert outbox.history_counts.repeats == (49 - ALONE) * 64


async def test_refusals_for_one_reason_are_one_line_with_the_last_message(outbox: SqlOutbox) -> None:
    """C46: of a publisher in a loop, and of NO-ACK messages to a node that is away."""
    await commit(outbox, Claim(NODE, 1, NOW_MS), accept(publication(9, message_id="m9")))
    for number in range(20):
        refused = accept(publication(8, message_id=f"old-{number}"), at_ms=NOW_MS + number)
        dropped = Event(NODE, EventKind.DROPPED, NOW_MS + number, f"n{number}", reason="no_session")
        await commit(outbox, refused, dropped)
    assert await lines(outbox, NODE) == 1 + 2 * (ALONE + 1)
    (told,) = await outbox.history(NODE, "old-19", "", 10)
    assert (told.repeats, told.at_ms, told.last_at_ms) == (19 - ALONE, NOW_MS + ALONE, NOW_MS + 19)
    (told,) = await outbox.history(NODE, "n19", "", 10)
    assert (told.kind, told.repeats) == (EventKind.DROPPED, 19 - ALONE)


async def test_a_line_goes_on_only_while_it_is_known_to_be_the_last(outbox: SqlOutbox) -> None:
    """An acknowledgement in between, or a deleted node: nothing is counted in a line from before."""
    await commit(outbox, Claim(NODE, 1, NOW_MS))
    (result,) = await commit(outbox, accept(publication(1, uid="a")))
    assert isinstance(result, Accepted)
    message_id = result.row.message_id
    attempts = [Attempt(NODE, 1, "a", message_id, 1, 1, NOW_MS)] * (ALONE + 3)
    await commit(outbox, *attempts, settle(result, 1), attempts[0])
    told = [(e.kind, e.repeats) for e in await outbox.history(NODE, message_id, "", 100)]
    assert told[-3:] == [(EventKind.SENT, 2), (EventKind.ACKNOWLEDGED, 0), (EventKind.SENT, 0)]
    await commit(outbox, *attempts)
    await commit(outbox, DeleteNode(NODE, 1))
    await commit(outbox, Claim(NODE, 2, NOW_MS))
    await commit(outbox, attempts[0]._replace(epoch=2))
    assert [event.repeats for event in await outbox.history(NODE, message_id, "", 10)] == [0]


def test_open_lines_are_bounded() -> None:
    """What was counted in longest ago begins a new line."""
    open_lines, ids = OpenLines(max_lines=2), EventIds()

    def sent(name: str) -> list[Event]:
        return [Event(NODE, EventKind.SENT, NOW_MS, name)] * (ALONE + 1)

    def lay(name: str) -> bool:
        transaction = open_lines.begin()
        written = transaction.lay(sent(name), ids)
        transaction.confirm()
        return bool(written.changed)

    assert [lay(name) for name in ("a", "b", "a", "c", "b", "a")] == [False, False, True, False, False, False]
    assert len(open_lines) == 2
    unconfirmed = open_lines.begin()
    assert unconfirmed.lay(sent("a"), ids).changed
    assert not unconfirmed.lay(sent("z"), ids).changed
    assert not open_lines.begin().lay(sent("z"), ids).changed


# The bound of a node


async def test_a_node_at_its_bound_loses_its_oldest_lines_and_no_other_any(outbox: SqlOutbox) -> None:
    """C46: also between two sweeps, and whatever it is that fills it. What is pending keeps its acceptance,
    by which its id is known (C24)."""
    await commit(outbox, Claim(NODE, 1, NOW_MS), Claim(OTHER, 1, NOW_MS))
    await commit(outbox, accept(publication(1, uid="kept", message_id="kept")))
    await commit(outbox, accept(publication(1, uid="theirs", message_id="theirs"), OTHER))
    most = 0
    for number in range(60):
        results = await commit(
            outbox,
            *(accept(publication(20 * number + n, uid="u", message_id=f"m{number}-{n}")) for n in range(20)),
        )
        assert all(isinstance(result, Accepted) for result in results)
        most = max(most, await lines(outbox, NODE))
    assert 200 < most <= 300 + 40 + 1
    assert [event.kind for event in await outbox.history(NODE, "kept", "", 10)] == [EventKind.ACCEPTED]
    assert rejected(await commit(outbox, accept(publication(2, uid="kept", message_id="kept")))) == [
        "MESSAGE_ID_REUSED"
    ]
    # The newest ids are known, the oldest are not any more.
    assert rejected(await commit(outbox, accept(publication(1, uid="x", message_id="m59-3")))) == [
        "MESSAGE_ID_REUSED"
    ]
    assert await outbox.history(NODE, "m0-0", "", 10) == []
    assert await lines(outbox, OTHER) == 1
    assert outbox.history_counts.trimmed > 1500


async def test_refusals_push_no_acceptance_out(outbox: SqlOutbox) -> None:
    """C24: acceptances have a share of their own."""
    await commit(outbox, Claim(NODE, 1, NOW_MS))
    (result,) = await commit(outbox, accept(publication(1, uid="a", message_id="mine")))
    await commit(outbox, settle(result, 1))
    for number in range(40):
        await commit(
            outbox,
            *(Event(NODE, EventKind.REJECTED, NOW_MS, "m", reason=f"{number}, {n}") for n in range(20)),
        )
    assert await lines(outbox, NODE) <= 320
    assert rejected(await commit(outbox, accept(publication(1, uid="b", message_id="mine")))) == [
        "MESSAGE_ID_REUSED"
    ]


async def test_a_history_from_before_the_bound_is_cut_in_portions(
    outbox: SqlOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A release that did not count left more than one transaction should delete."""
    await commit(outbox, Claim(NODE, 1, NOW_MS))
    rows = [Event(NODE, EventKind.REJECTED, NOW_MS, "m", reason=str(n)) for n in range(290)]
    await commit(outbox, *rows)
    ids = EventIds()
    many = [event_values(row, ids.next(NOW_MS - 1000)) for row in rows * 4]
    await outbox.store.write(lambda c: history_sql._insert_event.execute(c, many))
    monkeypatch.setattr(history_sql, "MAX_TRIMMED", 200)
    found = []
    for number in range(16):
        await commit(
            outbox, *(Event(NODE, EventKind.REJECTED, NOW_MS, "m", reason=f"{number} {n}") for n in "ab")
        )
        found.append(await lines(outbox, NODE))
    assert found[0] == 290 * 5 + 2
    assert all(-2 <= before - after <= 201 for before, after in pairwise(found))
    assert found[-1] < 320


async def test_nodes_that_come_to_their_bound_together_take_turns(
    outbox: SqlOutbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that cut the histories of all of them held their rows for longer than others wait for a
    row, was given up, and met the same work when it was tried again: for good."""
    monkeypatch.setattr(history_sql, "MAX_TRIMMED", 40)
    nodes_at_bound = [f"alike-{n}" for n in range(6)]
    await commit(outbox, *(Claim(node_id, 1, NOW_MS) for node_id in nodes_at_bound))

    async def refuse(number: int, count: int) -> None:
        await commit(
            outbox,
            *(
                Event(node_id, EventKind.REJECTED, NOW_MS, "m", reason=f"{number} {n}")
                for node_id in nodes_at_bound
                for n in range(count)
            ),
        )

    await refuse(0, 299)
    trimmed = []
    for number in range(1, 61):
        before = outbox.history_counts.trimmed
        await refuse(number, 1)
        trimmed.append(outbox.history_counts.trimmed - before)
    assert max(trimmed) == 40
    left = [await lines(outbox, node_id) for node_id in nodes_at_bound]
    assert max(left) <= 300
    # What is counted in their rows is what there is.
    query = select(node.c.node_id, node.c.history_rows)
    counted = await outbox.store.read(lambda c: {row[0]: row[1] for row in c.execute(query)})
    assert [counted[node_id] for node_id in nodes_at_bound] == left


def test_cuts_that_are_forgotten_are_looked_up_again() -> None:
    """At their bound those of the node that was cut longest ago."""
    cuts = history_sql.Cuts(max_nodes=2)
    for node_id in ("a", "b", "c"):
        cuts.keep(node_id, {0: 7})
    assert [cuts.get(node_id) for node_id in ("a", "b", "c")] == [None, {0: 7}, {0: 7}]
    cuts.keep("b", {})
    assert "b" not in cuts


# Nodes that never connected


async def test_refusals_of_ids_that_name_no_node_leave_nothing(outbox: SqlOutbox) -> None:
    """C50: counted instead; 20 refused publishes to 10 000 ids each were 200 009 rows."""
    await commit(outbox, Claim(NODE, 1, NOW_MS))
    noted = [
        Event(f"ghost-{n}", EventKind.REJECTED, NOW_MS, "m", reason="CONTENT_NOT_JSON") for n in range(500)
    ]
    await commit(outbox, *noted, Event(NODE, EventKind.REJECTED, NOW_MS, "m", reason="CONTENT_NOT_JSON"))
    assert await nodes(outbox) == [NODE]
    assert (
        await outbox.store.read(
            lambda c: c.execute(select(func.count()).select_from(delivery_event)).scalar()
        )
        == 1
    )
    assert outbox.history_counts.left_out == 500


async def test_unknown_nodes_have_a_share_and_known_ones_never_notice(outbox: SqlOutbox) -> None:
    """C50: rows, bytes and nodes; each has its own reason."""
    await commit(outbox, Claim(NODE, 1, NOW_MS))
    ghosts = [accept(publication(1, uid=f"u{n}"), f"ghost-{n % 2}") for n in range(80)]
    assert set(rejected(await commit(outbox, *ghosts))) == {"UNKNOWN_QUOTA_ROWS"}
    assert (outbox.totals.unknown_rows, outbox.totals.unknown_nodes) == (60, 2)
    assert rejected(await commit(outbox, accept(publication(1, uid="known")))) == []
    await outbox.purge("ghost-0", "", NOW_MS)
    large = accept(publication(1, uid="large", size_bytes=6000), "ghost-2")
    assert rejected(await commit(outbox, large)) == ["UNKNOWN_QUOTA_BYTES"]
    assert rejected(await commit(outbox, accept(publication(1), "ghost-2"))) == []
    assert rejected(await commit(outbox, accept(publication(1), "ghost-3"))) == ["UNKNOWN_QUOTA_NODES"]
    assert await nodes(outbox) == [NODE, "ghost-0", "ghost-1", "ghost-2"]
    assert rejected(await commit(outbox, accept(publication(1, uid="again"), NODE))) == []


async def test_a_node_that_connects_is_unknown_no_more(outbox: SqlOutbox) -> None:
    """C50: what waited for it counts as others' does, also after a restart."""
    await commit(outbox, accept(publication(1), "edge-9"), accept(publication(1), "ghost"))
    await commit(outbox, Claim("edge-9", 1, NOW_MS))
    totals = outbox.totals
    assert (totals.rows, totals.unknown_rows, totals.unknown_bytes, totals.unknown_nodes) == (2, 1, 100, 1)
    again = SqlOutbox(outbox.store, QUOTAS)
    await again.open()
    assert again.totals == totals


async def test_the_total_of_the_others_does_not_count_unknown_nodes(outbox: SqlOutbox) -> None:
    """C50: no known node is refused for what mistyped ids hold."""
    outbox.quotas = Quotas(total_rows=2, total_bytes=200, unknown_rows=5)
    await commit(outbox, Claim(NODE, 1, NOW_MS), *(accept(publication(1), f"ghost-{n}") for n in range(5)))
    results = await commit(outbox, *(accept(publication(1, uid=f"u{n}")) for n in range(3)))
    assert rejected(results) == ["TOTAL_QUOTA_ROWS"]
    assert [type(result) for result in results[:2]] == [Accepted, Accepted]


async def test_messages_of_unknown_nodes_expire_and_their_nodes_go(outbox: SqlOutbox) -> None:
    """C50: rows, floors and history, once nothing is pending; not those of a node that came."""
    day = 86_400_000
    outbox.quotas = Quotas(unknown_node_seconds=86_400)
    year = publication(1, uid="b", expires_at_ms=NOW_MS + 365 * day)
    await commit(outbox, accept(publication(1, uid="a", message_id="m")), accept(year), accept(year, OTHER))
    await commit(outbox, Claim(OTHER, 1, NOW_MS))
    ended = await outbox.expire(NOW_MS + day, 100)
    assert sorted((row.node_id, row.key) for row in ended) == [(NODE, "a"), (NODE, "b"), (OTHER, "b")]
    assert await outbox.forget_unknown(NOW_MS + day, 100) == 0  # somebody may still ask what became of it
    assert await outbox.forget_unknown(NOW_MS + day + 1, 100) == 1
    assert await nodes(outbox) == [OTHER]
    assert await lines(outbox, NODE) == 0
    assert outbox.totals.unknown_nodes == 0


# Clocks


async def test_a_step_of_the_clock_expires_nothing_that_was_accepted_before_it(outbox: SqlOutbox) -> None:
    """C19: a lifetime is time that passes; what comes after the step goes by the new clock."""
    hour = 3_600_000
    await commit(outbox, Claim(NODE, 1, NOW_MS))
    before = accept(publication(1, uid="before", expires_at_ms=NOW_MS + 60_000))
    after = accept(publication(1, uid="after", expires_at_ms=NOW_MS + hour + 10), at_ms=NOW_MS + hour)
    await commit(outbox, before, after)
    now = NOW_MS + hour + 20
    stepped = {"stepped_at_ms": NOW_MS + 1000, "former_at_ms": NOW_MS + 1020}
    assert [row.key for row in await outbox.expire(now, 100, **stepped)] == ["after"]
    stepped["former_at_ms"] = NOW_MS + 60_000
    assert [row.key for row in await outbox.expire(now + 60_000, 100, **stepped)] == ["before"]


async def test_how_far_time_was_seen_is_kept(outbox: SqlOutbox) -> None:
    assert await outbox.seen_ms() == 0
    for at_ms in (NOW_MS + 5, NOW_MS):
        await outbox.note_seen(at_ms)
        assert await outbox.seen_ms() == at_ms


async def test_what_is_noted_of_a_node_is_found_past_its_history(tmp_path: Path) -> None:
    """C46: an index holds the notes alone; a node may have 30 000 other lines."""
    outbox = await opened(f"sqlite:///{tmp_path / 'outbox.db'}", QUOTAS)
    noted = Event(NODE, EventKind.NOTED, NOW_MS, "", reason="returned: x")
    await commit(outbox, Claim(NODE, 1, NOW_MS), noted, accept(publication(1, message_id="m1")))
    assert [event.reason for event in await outbox.notes(NODE, 5)] == ["returned: x"]
    query = str(notes_query(NODE, 5).compile(compile_kwargs={"literal_binds": True}))
    plan = await outbox.store.read(lambda c: c.exec_driver_sql(f"EXPLAIN QUERY PLAN {query}").all())
    assert ["USING INDEX delivery_event_noted" in step[3] for step in plan] == [True], plan
    await outbox.store.close()
