"""Watchers and bells: `services.sessions.notices`."""

import asyncio
from dataclasses import replace

import pytest

from services.runtime.errors import Refused, Unavailable
from services.sessions.lifecycle import Session, State
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.records import Committed
from tests.sessions.test_lifecycle import session

CHANGE = session(State.ACTIVE)


def notices(most_watchers: int = 2, watch_queue: int = 3) -> tuple[Notices, Metrics]:
    metrics = Metrics()
    return Notices(metrics, most_watchers, watch_queue), metrics


def told(*sessions: Session) -> Committed[None]:
    return Committed([], list(sessions))


async def test_a_watcher_gets_the_changes_it_asked_for_in_order() -> None:
    made, _ = notices()
    other = replace(CHANGE, node_id="other-1")
    with made.watch("edge") as watch:
        made.tell(told(CHANGE, other, replace(CHANGE, link=2)))
        assert [item.link for item in await watch.take()] == [1, 2]


async def test_a_watcher_waits_for_the_next_change() -> None:
    made, _ = notices()
    with made.watch("") as watch:
        async with asyncio.TaskGroup() as tasks:
            taking = tasks.create_task(watch.take())
            await asyncio.sleep(0)
            assert not taking.done()
            made.tell(told(CHANGE))
        assert taking.result() == [CHANGE]


async def test_a_watcher_that_falls_behind_is_ended_and_told_why() -> None:
    made, metrics = notices(watch_queue=3)
    with made.watch("") as slow, made.watch("") as quick:
        made.tell(told(CHANGE, CHANGE, CHANGE))
        await quick.take()
        made.tell(told(CHANGE))
        assert await quick.take() == [CHANGE]
        with pytest.raises(Unavailable, match=r"WATCH_OVERFLOW.*3 changes behind"):
            await slow.take()
        made.tell(told(CHANGE))
    assert (
        metrics.registry.get_sample_value("cloudhub_sessions_watch_ends_total", {"reason": "overflow"}) == 1
    )


async def test_watchers_are_bounded() -> None:
    made, _ = notices(most_watchers=1)
    with made.watch(""), pytest.raises(Refused, match="1 watchers"), made.watch(""):
        pass
    with made.watch(""):
        pass


async def test_closing_ends_all_and_refuses_new_ones() -> None:
    made, _ = notices()
    with made.watch("") as watch, made.listen("d1") as bell:
        made.close()
        assert bell.is_set()
        with pytest.raises(Unavailable, match="shutting down"):
            await watch.take()
    with pytest.raises(Unavailable), made.watch(""):
        pass
    with pytest.raises(Unavailable), made.listen("d1"):
        pass


async def test_only_the_directed_dispatchers_bells_ring() -> None:
    made, _ = notices()
    with made.listen("d1") as first, made.listen("d1") as second, made.listen("d2") as other:
        made.tell(Committed([], [], frozenset({"d1", "d9"})))
        assert (first.is_set(), second.is_set(), other.is_set()) == (True, True, False)
        made.ring_all()
        assert other.is_set()


async def test_streams_that_ended_leave_nothing_behind() -> None:
    """C2."""
    made, _ = notices()
    for _ in range(100):
        with made.listen("d1"), made.watch(""):
            pass
    assert (made._bells, made._watches) == ({}, set())
