"""Watchers and bells: `services.sessions.notices`."""

import asyncio
import itertools
from dataclasses import replace

import pytest

from services.runtime.errors import Refused, Unavailable
from services.sessions.lifecycle import Session, State
from services.sessions.metrics import Metrics
from services.sessions.notices import Notices
from services.sessions.records import Changed, Committed
from tests.sessions.test_lifecycle import session

CHANGE = session(State.ACTIVE)
_numbers = itertools.count(1)


def notices(most_watchers: int = 2, watch_queue: int = 3) -> tuple[Notices, Metrics]:
    metrics = Metrics()
    return Notices(metrics, most_watchers, watch_queue), metrics


def told(*sessions: Session) -> Committed[None]:
    """A transaction later than all before."""
    return Committed([], list(sessions), number=next(_numbers))


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


def numbered(number: int, *sessions: Session) -> Committed[None]:
    return Committed([], list(sessions), number=number)


async def test_what_this_process_told_is_not_told_again_when_it_is_read() -> None:
    made, _ = notices()
    with made.watch("") as watch:
        made.tell(numbered(7, CHANGE))
        made.tell_changed([Changed(7, CHANGE), Changed(8, replace(CHANGE, link=2))])
        assert [item.link for item in await watch.take()] == [CHANGE.link, 2]
        made.forget_told(9)
        made.tell_changed([Changed(9, CHANGE)])
        assert await watch.take() == [CHANGE]


async def test_what_was_read_first_is_not_followed_by_something_older() -> None:
    """A transaction of this process may be read, with what came after it, before it is told."""
    made, _ = notices()
    other = replace(CHANGE, node_id="edge-2")
    with made.watch("") as watch:
        made.tell_changed([Changed(8, replace(CHANGE, link=2))])
        made.forget_told(9)
        made.tell(numbered(7, CHANGE, other))
        made.tell(numbered(9, CHANGE))
        assert [(item.node_id, item.link) for item in await watch.take()] == [
            (CHANGE.node_id, 2),
            ("edge-2", CHANGE.link),
            (CHANGE.node_id, CHANGE.link),
        ]


async def test_transactions_that_end_here_in_another_order_are_told_up_to_the_newest() -> None:
    """Two calls about one node at the same time, through several connections to the database."""
    made, _ = notices()
    with made.watch("") as watch:
        made.tell(numbered(8, replace(CHANGE, link=2)))
        made.tell(numbered(7, CHANGE, replace(CHANGE, node_id="edge-2")))
        made.tell_changed(
            [Changed(7, replace(CHANGE, node_id="edge-2")), Changed(8, replace(CHANGE, link=2))]
        )
        assert [(item.node_id, item.link) for item in await watch.take()] == [
            (CHANGE.node_id, 2),
            ("edge-2", CHANGE.link),
        ]


async def test_nothing_is_kept_of_what_cannot_be_read_again() -> None:
    """C2: no more memory after any number of changes."""
    made, _ = notices(watch_queue=5000)
    with made.watch(""):
        for number in range(1, 1001):
            made.tell(numbered(number, CHANGE))
            made.tell_changed([Changed(number + 5000, replace(CHANGE, node_id=f"edge-{number}"))])
            made.forget_told(number + 1)
    assert not made._told
    assert sum(map(len, made._newest)) <= 2
