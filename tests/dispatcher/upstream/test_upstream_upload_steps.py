"""Work on many nodes' uploads goes in steps of so many; none of them is left out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.outbox.schema import SCHEMA, uploads
from services.dispatcher.upstream.metrics import UpstreamMetrics
from services.dispatcher.upstream.shares import Amount, Shares
from services.dispatcher.upstream.upload_accounts import NODES_PER_COUNT, UploadAccounts
from services.dispatcher.upstream.upload_intake import (
    LOOKS_PER_CHANGE,
    UNFIT_PER_NODE,
    IntakeBounds,
    PauseReads,
    Upload,
    UploadIntake,
)
from services.dispatcher.upstream.upload_keeper import UploadKeeper
from services.dispatcher.upstream.upload_store import NODES_PER_TAKE_OVER, Change, UploadStore
from services.runtime.clock import SystemClock
from services.runtime.store import open_store
from tests.support.dispatcher import Metrics


def test_so_many_nodes_without_room_are_looked_at_whenever_some_was_made() -> None:
    """In turn: each goes on after a few changes, and one that waits for a subscriber of its own holds up
    nobody."""
    intake = UploadIntake(IntakeBounds(30.0))
    nodes = [f"n{number:03}" for number in range(LOOKS_PER_CHANGE + 10)]
    shares = Shares(Amount(10, 10_000), Amount(10_000, 10_000_000))
    for node_id in nodes:
        shares.set(node_id, Amount(10, 100))
        intake.add(Upload(node_id, 1, 1, Message(), 10), 0.0)
    unfit = intake.batch(1000, 1 << 30, shares).unfit
    intake.judged(unfit, 0.0)
    assert intake.full == len(nodes)
    for node_id in nodes[1:]:  # the first one's share stays full
        shares.set(node_id, Amount())
    assert len(intake.room_made(shares)) == LOOKS_PER_CHANGE - 1
    assert PauseReads(nodes[-1], 1, False) in intake.room_made(shares)
    assert intake.full == 1


def test_so_many_uploads_of_a_node_without_room_are_looked_up_together() -> None:
    """Of those that ask for an answer; others' uploads go into the same transaction."""
    intake = UploadIntake(IntakeBounds(30.0))
    shares = Shares(Amount(10, 10_000), Amount(10_000, 10_000_000))
    shares.set("full", Amount(10, 100))
    for number in range(UNFIT_PER_NODE + 5):
        intake.add(Upload("full", 1, number, Message(sync=True), 10), 0.0)
    intake.add(Upload("other", 1, 1, Message(), 10), 0.0)
    batch = intake.batch(1000, 1 << 30, shares)
    assert [one.node_id for one, _ in batch.unfit] == ["full"] * UNFIT_PER_NODE
    assert [one.node_id for one in batch.uploads] == ["other"]


async def test_nodes_that_come_are_counted_so_many_at_a_time() -> None:
    """All of them, before what they send is stored."""
    asked: list[int] = []

    class Counting:
        async def of_nodes(self, nodes: Sequence[str]) -> dict[str, Amount]:
            asked.append(len(nodes))
            return {node_id: Amount(2, 20) for node_id in nodes}

    metrics = UpstreamMetrics(Metrics().registry)
    accounts = UploadAccounts(
        cast("Any", Counting()), SystemClock(), metrics, Amount(10, 1000), Amount(10_000, 1 << 30)
    )
    for number in range(2 * NODES_PER_COUNT + 1):
        accounts.arrived(f"n{number}")
    await accounts.count_arrived()
    assert asked == [NODES_PER_COUNT, NODES_PER_COUNT, 1]
    assert accounts.shares.used.messages == 2 * sum(asked)


async def test_nodes_of_one_that_is_gone_are_taken_over_so_many_at_a_time(tmp_path: Path) -> None:
    """C35: others' transactions get between, and nothing stays behind."""
    store = await open_store(f"sqlite:///{tmp_path / 'uploads.db'}", SCHEMA)
    gone = UploadStore(store, uploads, "d1", is_shared=True)
    heir = UploadStore(store, uploads, "d2", is_shared=True)
    count = NODES_PER_TAKE_OVER + 1
    rows = [gone.row(f"n{number:03}", 1, 1, 10, Message(id="u")) for number in range(count)]
    await gone.change(Change(rows=rows))
    taken = []
    while some := await heir.inherit_some("d1"):
        taken.append(len(some))
    assert taken == [NODES_PER_TAKE_OVER, 1]
    assert len((await heir.count()).own) == count
    await store.close()


def test_sessions_that_are_known_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one known for longest is looked at again; the others are not."""
    monkeypatch.setattr("services.dispatcher.upstream.upload_keeper.MOST_SESSIONS_KNOWN", 3)
    keeper = object.__new__(UploadKeeper)
    keeper._sessions = {}
    keeper._remember({f"n{number}": 1 for number in range(5)})
    keeper._remember({"n3": 2})
    assert keeper._sessions == {"n2": 1, "n3": 2, "n4": 1}
