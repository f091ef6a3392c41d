"""Records as messages, within what an answer carries: `services.sessions.wire`, `lease_sql.hand_over`."""

from pathlib import Path

import pytest

from services.runtime.store import open_store
from services.sessions import schema
from services.sessions.fencing import Epoch
from services.sessions.lifecycle import Reason
from services.sessions.limits import Limits
from services.sessions.records import Ending, Event, Ref, TransferResult
from services.sessions.registry import HAND_AGAIN_AFTER_RENEWALS
from services.sessions.registry_sql import SqlRegistry
from services.sessions.wire import within
from tests.support.sessions import opening, renewal

NOW = 1_700_000_000_000


def test_the_earlier_events_of_an_answer_are_bounded_together() -> None:
    """C41: the first ones of the first nodes; those that are left out belong to the caller all the same."""
    events = [object.__new__(Event) for _ in range(5)]
    results = [
        TransferResult(Epoch(1), earlier_events=tuple(events[:2])),
        TransferResult(Epoch(2), earlier_events=tuple(events[2:])),
        TransferResult(Epoch(3), earlier_events=(events[0],)),
        TransferResult(Epoch(4)),
    ]
    kept = list(within(results, 3))
    assert [result.epoch for result in kept] == [1, 2, 3, 4]
    assert [len(result.earlier_events) for result in kept] == [2, 1, 0, 0]
    assert kept[1].earlier_events[0] is events[2]
    assert list(within(results, 6)) == results


async def test_a_node_with_very_many_events_does_not_outgrow_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C41: it came and went while nobody subscribed; its events come in parts, all of them, in order."""
    monkeypatch.setattr("services.sessions.lease_sql.MAX_EVENTS_OF_NODE", 3)
    store = await open_store(f"sqlite:///{tmp_path}/sessions.db", schema.SCHEMA)
    registry = SqlRegistry(store, Limits())
    await registry.renew(renewal("d1", 1), NOW, 10)
    expected: list[str] = []
    for _ in range(4):
        epoch = (await registry.open("d1", [opening()], NOW)).results[0].epoch
        opened = (await registry.activate("d1", [Ref("edge-1", epoch)], NOW)).results[0].event
        closed = await registry.close("d1", [Ending("edge-1", epoch, Reason.EDGE_CLOSED)], NOW)
        ended = closed.results[0].event
        assert opened
        assert ended
        expected += [opened.event_id, ended.event_id]
    told: list[str] = []
    counter = 1
    while len(told) < 8:
        for _ in range(HAND_AGAIN_AFTER_RENEWALS):
            counter += 1
            handed = (await registry.renew(renewal("d1", counter), NOW, 2)).results
            assert len(handed) <= 3
            told += [event.event_id for event in handed]
            if handed:
                await registry.acknowledge([event.event_id for event in handed])
    assert told == expected
    await store.close()
