"""What every registry must do, run on each engine and on the fake of `tests.support.sessions`."""

import asyncio
import itertools
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.runtime.store import open_store
from services.sessions import schema
from services.sessions.book import MAX_EVENTS_PER_NODE
from services.sessions.fencing import NO_EPOCH, Epoch
from services.sessions.leases import Observation
from services.sessions.lifecycle import EventKind, Reason, State
from services.sessions.limits import Limits, LimitsChange, Place, Scope
from services.sessions.records import (
    ConnectorLoad,
    Deletion,
    Ending,
    Event,
    Eviction,
    Filter,
    Lease,
    Ref,
    Replica,
    Transfer,
    Trimmed,
)
from services.sessions.registry import HAND_AGAIN_AFTER_RENEWALS, Registry
from services.sessions.registry_sql import SqlRegistry
from tests.support.sessions import FakeRegistry, opening, recounted, renewal

NOW = 1_700_000_000_000
INITIAL = Limits(per_connector=5)
EVERYTHING = Filter(states=frozenset(State))


@pytest.fixture(params=["fake", "sqlite", "postgresql"])
async def registry(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Registry]:
    if request.param == "fake":
        yield FakeRegistry(INITIAL)
        return
    url = f"sqlite:///{tmp_path}/sessions.db"
    if request.param == "postgresql":
        url = await request.getfixturevalue("databases").fresh(schema.SCHEMA)
    store = await open_store(url, schema.SCHEMA)
    yield SqlRegistry(store, INITIAL)
    await store.close()


async def opened(registry: Registry, node_id: str = "edge-1", dispatcher_id: str = "d1") -> Ref:
    """A new OPENING session."""
    committed = await registry.open(dispatcher_id, [opening(node_id)], NOW)
    return Ref(node_id, committed.results[0].epoch)


async def active(registry: Registry, node_id: str = "edge-1", dispatcher_id: str = "d1") -> tuple[Ref, Event]:
    """A new ACTIVE session and its `connected`."""
    ref = await opened(registry, node_id, dispatcher_id)
    result = (await registry.activate(dispatcher_id, [ref], NOW)).results[0]
    assert result.event
    return ref, result.event


async def state_of(registry: Registry, node_id: str = "edge-1") -> State | None:
    session = await registry.get(node_id)
    return session.state if session else None


async def exact_counts(registry: Registry) -> None:
    """The counters say what the sessions say."""
    usage = await registry.usage(most=1000)
    assert {place: nodes for place, nodes in usage.counts.items() if nodes} == recounted(
        await registry.page(EVERYTHING, "", 10_000)
    )


# Opening


async def test_an_open_is_on_record_with_all_that_was_said(registry: Registry) -> None:
    ref = await opened(registry)
    session = await registry.get("edge-1")
    assert session
    assert (session.epoch, session.state, session.dispatcher_id) == (ref.epoch, State.OPENING, "d1")
    assert (session.project_id, session.connector_id, session.link) == ("p1", "c1", 1)
    assert (session.transport, session.peer_address) == ("websocket", "192.0.2.1:4711")
    assert (session.opened_at_ms, session.closed_at_ms, session.announced) == (NOW, None, False)
    assert ref.epoch == NOW
    await exact_counts(registry)


async def test_an_empty_batch_is_no_fault(registry: Registry) -> None:
    assert (await registry.open("d1", [], NOW)).results == []
    assert (await registry.activate("d1", [], NOW)).results == []
    assert (await registry.close("d1", [], NOW)).results == []
    assert (await registry.transfer("d1", [], NOW)).results == []
    assert await registry.locate([]) == []
    assert (await registry.close_unconfirmed([], NOW)).changes == []


async def test_the_later_of_two_opens_in_one_batch_supersedes_the_earlier(registry: Registry) -> None:
    committed = await registry.open("d1", [opening(link=1), opening("edge-2"), opening(link=2)], NOW)
    first, _, second = committed.results
    assert second.epoch == first.epoch + 1
    assert second.superseded
    assert second.superseded.epoch == first.epoch
    assert second.superseded_event is None
    assert [(s.node_id, s.state) for s in committed.changes] == [
        ("edge-1", State.OPENING),
        ("edge-2", State.OPENING),
        ("edge-1", State.CLOSED),
        ("edge-1", State.OPENING),
    ]
    session = await registry.get("edge-1")
    assert session
    assert (session.epoch, session.link) == (second.epoch, 2)
    await exact_counts(registry)


async def test_epochs_grow_though_the_clock_steps_back(registry: Registry) -> None:
    """C36: a stepped clock neither ends a session nor lets an epoch come again."""
    first = await opened(registry)
    await registry.close("d1", [Ending("edge-1", first.epoch, Reason.EDGE_CLOSED)], NOW - 3_600_000)
    second = await registry.open("d1", [opening()], NOW - 3_600_000)
    assert second.results[0].epoch == first.epoch + 1


async def test_a_takeover_hands_the_former_sessions_event_to_the_opener(registry: Registry) -> None:
    """C8: whoever held it, `disconnected` of the old comes with the verdict, before the new `connected`."""
    old, connected = await active(registry, dispatcher_id="d1")
    committed = await registry.open("d2", [opening(connector_id="c2")], NOW + 5)
    result = committed.results[0]
    assert result.superseded
    assert (result.superseded.state, result.superseded.reason) == (State.CLOSED, Reason.SUPERSEDED)
    assert [e.event_id for e in result.earlier_events] == [connected.event_id]
    assert result.superseded_event
    assert (result.superseded_event.kind, result.superseded_event.epoch) == (
        EventKind.DISCONNECTED,
        old.epoch,
    )
    assert result.superseded_event.reason is Reason.SUPERSEDED
    assert committed.directed == {"d1"}
    directives = await registry.directives("d1", 10)
    assert [(d.node_id, d.epoch, d.reason) for d in directives] == [("edge-1", old.epoch, Reason.SUPERSEDED)]
    await exact_counts(registry)


async def test_events_that_moved_are_no_longer_the_former_dispatchers(registry: Registry) -> None:
    """C8: each event is one dispatcher's at a time, also when the former one is lost."""
    old, connected = await active(registry, dispatcher_id="d1")
    await registry.renew(renewal("d2"), NOW, 10)
    result = (await registry.open("d2", [opening()], NOW)).results[0]
    late = (await registry.close("d1", [Ending("edge-1", old.epoch, Reason.EDGE_CLOSED)], NOW)).results[0]
    assert late.event is None
    await registry.lose(Observation("d1", 0), NOW)
    assert (await registry.renew(renewal("d3"), NOW, 10)).results == []
    await registry.lose(Observation("d2", 1), NOW)
    adopted = (await registry.renew(renewal("d3", 2), NOW, 10)).results
    assert result.superseded_event
    assert [e.event_id for e in adopted] == [connected.event_id, result.superseded_event.event_id]


async def test_a_takeover_by_the_same_dispatcher_needs_no_directive(registry: Registry) -> None:
    await active(registry)
    committed = await registry.open("d1", [opening(link=2)], NOW)
    assert committed.results[0].superseded_event
    assert committed.results[0].earlier_events == ()
    assert committed.directed == frozenset()
    assert await registry.directives("d1", 10) == []


async def test_the_former_dispatchers_close_confirms_and_changes_nothing(registry: Registry) -> None:
    """C1: the old link's teardown comes after the new one's opening."""
    old, _ = await active(registry)
    new = await registry.open("d2", [opening()], NOW)
    result = (await registry.close("d1", [Ending("edge-1", old.epoch, Reason.TRANSPORT_ERROR)], NOW)).results
    assert not result[0].closed
    assert result[0].event is None
    assert await registry.directives("d1", 10) == []
    session = await registry.get("edge-1")
    assert session
    assert (session.epoch, session.state) == (new.results[0].epoch, State.OPENING)


async def test_only_the_dispatcher_that_was_asked_confirms(registry: Registry) -> None:
    old, _ = await active(registry)
    await registry.open("d2", [opening()], NOW)
    await registry.close("d2", [Ending("edge-1", old.epoch, Reason.TRANSPORT_ERROR)], NOW)
    assert len(await registry.directives("d1", 10)) == 1


STEPS = ("old activates", "old closes", "new opens", "new activates")


@pytest.mark.parametrize(
    "order", [o for o in itertools.permutations(STEPS) if o.index("new opens") < o.index("new activates")]
)
@pytest.mark.parametrize("other", ["d1", "d2"])
async def test_the_new_session_stays_whenever_the_old_ones_teardown_comes(
    registry: Registry, order: tuple[str, ...], other: str
) -> None:
    """C1, C8: any interleaving; and what is told alternates, once each."""
    old = await opened(registry)
    new = Ref("edge-1", 0)
    told: list[Event] = []
    for step in order:
        if step == "old activates":
            activated = (await registry.activate("d1", [old], NOW)).results[0]
            told += [activated.event] if activated.event else []
        elif step == "old closes":
            closed = await registry.close("d1", [Ending("edge-1", old.epoch, Reason.TRANSPORT_ERROR)], NOW)
            told += [closed.results[0].event] if closed.results[0].event else []
        elif step == "new opens":
            result = (await registry.open(other, [opening(link=2)], NOW)).results[0]
            new = Ref("edge-1", result.epoch)
            told += [result.superseded_event] if result.superseded_event else []
        else:
            event = (await registry.activate(other, [new], NOW)).results[0].event
            assert event
            told.append(event)
    session = await registry.get("edge-1")
    assert session
    assert (session.epoch, session.state) == (new.epoch, State.ACTIVE)
    distinct = {event.event_id: (event.epoch, event.kind) for event in told}
    assert list(distinct.values()) == sorted(distinct.values())
    assert len(set(distinct.values())) == len(distinct)
    assert [kind for _, kind in distinct.values()][::2] == [EventKind.CONNECTED] * ((len(distinct) + 1) // 2)
    await exact_counts(registry)


# Limits


@pytest.mark.parametrize("batches", [1, 4, 20])
async def test_exactly_as_many_are_admitted_as_there_is_room_for(registry: Registry, batches: int) -> None:
    """C7: of 20 simultaneous opens with room for 5, exactly 5 win, however they are batched."""
    size = 20 // batches
    entries = [[opening(f"edge-{b}-{i}") for i in range(size)] for b in range(batches)]
    done = await asyncio.gather(*(registry.open(f"d{b}", entries[b], NOW) for b in range(batches)))
    results = [result for committed in done for result in committed.results]
    assert sum(result.epoch != NO_EPOCH for result in results) == 5
    refused = [result for result in results if result.epoch == NO_EPOCH]
    assert {(result.full, result.limit) for result in refused} == {((Scope.CONNECTOR, "c1"), 5)}
    # A node that was refused leaves no row.
    assert len(await registry.page(EVERYTHING, "", 100)) == 5
    await exact_counts(registry)


async def test_at_the_limit_a_counted_node_takes_its_own_session_over(registry: Registry) -> None:
    """C7: and no other scope is exempt: moving to a full connector is refused and keeps the old session."""
    await registry.change_limits(LimitsChange(per_connector=1))
    ref = await opened(registry, "edge-1")
    again = await registry.open("d2", [opening("edge-1", link=2)], NOW)
    assert again.results[0].epoch == ref.epoch + 1
    await registry.open("d1", [opening("edge-2", connector_id="c2")], NOW)
    moved = await registry.open("d1", [opening("edge-1", connector_id="c2")], NOW)
    assert moved.results[0].full == (Scope.CONNECTOR, "c2")
    assert moved.changes == []
    assert await state_of(registry) is State.OPENING
    await exact_counts(registry)


async def test_a_node_that_leaves_makes_room_at_once(registry: Registry) -> None:
    """C7: also within one batch of opens, by moving away."""
    await registry.change_limits(LimitsChange(per_connector=1))
    ref = await opened(registry, "edge-1")
    assert (await registry.open("d1", [opening("edge-2")], NOW)).results[0].full
    await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)
    assert not (await registry.open("d1", [opening("edge-2")], NOW)).results[0].full
    moved = await registry.open("d1", [opening("edge-2", connector_id="c2"), opening("edge-3")], NOW)
    assert [result.full for result in moved.results] == [None, None]
    await exact_counts(registry)


async def test_lowering_a_limit_evicts_nobody(registry: Registry) -> None:
    for index in range(3):
        await opened(registry, f"edge-{index}")
    usage = await registry.change_limits(LimitsChange(total=1))
    assert usage.limits == Limits(per_connector=5, total=1)
    assert len(await registry.locate([f"edge-{index}" for index in range(3)])) == 3
    assert (await registry.open("d1", [opening("edge-9")], NOW)).results[0].full == (Scope.TOTAL, "")


async def test_a_projects_exception_comes_and_goes(registry: Registry) -> None:
    await registry.change_limits(LimitsChange(per_project=1, projects={"p1": 2}))
    results = (await registry.open("d1", [opening(f"edge-{i}") for i in range(3)], NOW)).results
    assert [result.full for result in results] == [None, None, (Scope.PROJECT, "p1")]
    usage = await registry.change_limits(LimitsChange(projects={"p1": 0}))
    assert usage.limits.projects == {}
    assert usage.limits.per_project == 1
    result = (await registry.open("d1", [opening("edge-3")], NOW)).results[0]
    assert (result.full, result.limit) == ((Scope.PROJECT, "p1"), 1)
    assert await registry.usage() == usage


# Activating and closing


async def test_activation_writes_connected_once(registry: Registry) -> None:
    """C8: the row is written in the same transaction; a repeated call gets the same event."""
    ref, event = await active(registry)
    assert (event.node_id, event.epoch, event.kind) == ("edge-1", ref.epoch, EventKind.CONNECTED)
    again = await registry.activate("d1", [ref], NOW)
    assert again.results[0].active
    assert again.results[0].event
    assert again.results[0].event.event_id == event.event_id
    assert again.changes == []
    await registry.acknowledge([event.event_id])
    assert (await registry.activate("d1", [ref], NOW)).results[0].event is None


async def test_only_the_holder_of_the_newest_session_activates(registry: Registry) -> None:
    ref = await opened(registry)
    asked = [ref, Ref("edge-1", ref.epoch + 1), Ref("edge-9", 1)]
    assert [r.active for r in (await registry.activate("d2", asked, NOW)).results] == [False, False, False]
    assert [r.active for r in (await registry.activate("d1", asked, NOW)).results] == [True, False, False]


async def test_a_session_asked_to_end_is_not_active_any_more(registry: Registry) -> None:
    ref, _ = await active(registry)
    await registry.evict("edge-1", 0, NOW)
    assert not (await registry.activate("d1", [ref], NOW)).results[0].active


async def test_a_close_ends_once_and_a_late_one_changes_nothing(registry: Registry) -> None:
    """C9, C8: one `disconnected`, the first reason on record."""
    ref, _ = await active(registry)
    first = (
        await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.KEEPALIVE_TIMEOUT)], NOW)
    ).results[0]
    assert first.closed
    assert first.event
    assert (first.event.kind, first.event.reason) == (EventKind.DISCONNECTED, Reason.KEEPALIVE_TIMEOUT)
    late = await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW + 9)
    assert (late.results[0].closed, late.results[0].reason) == (False, Reason.KEEPALIVE_TIMEOUT)
    assert late.results[0].event
    assert late.results[0].event.event_id == first.event.event_id
    assert late.changes == []
    session = await registry.get("edge-1")
    assert session
    assert (session.closed_at_ms, session.reason) == (NOW, Reason.KEEPALIVE_TIMEOUT)
    await exact_counts(registry)


async def test_two_closes_in_one_batch_end_it_once(registry: Registry) -> None:
    ref, _ = await active(registry)
    ending = Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)
    results = (await registry.close("d1", [ending, ending], NOW)).results
    assert [result.closed for result in results] == [True, False]


async def test_a_session_that_never_was_active_ends_without_events(registry: Registry) -> None:
    ref = await opened(registry)
    result = (await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)).results[0]
    assert (result.closed, result.event) == (True, None)


async def test_a_close_of_a_stranger_or_another_epoch_changes_nothing(registry: Registry) -> None:
    ref, _ = await active(registry)
    for who, epoch in (("d2", ref.epoch), ("d1", ref.epoch + 1), ("d1", ref.epoch - 1)):
        result = (await registry.close(who, [Ending("edge-1", epoch, Reason.EDGE_CLOSED)], NOW)).results[0]
        assert (result.closed, result.reason) == (False, None)
    assert await state_of(registry) is State.ACTIVE


# Deleting nodes


async def test_deleting_a_node_asks_its_dispatcher_and_leaves_no_row_of_it(registry: Registry) -> None:
    """C10: the session ends, the row goes, its event stays until taken, and the id comes again."""
    ref, connected = await active(registry)
    committed = await registry.delete_nodes(["edge-1", "edge-9"], NOW)
    assert committed.results == [Deletion(True, Epoch(ref.epoch)), Deletion(False, NO_EPOCH)]
    assert committed.directed == {"d1"}
    assert [d.reason for d in await registry.directives("d1", 10)] == [Reason.NODE_DELETED]
    assert await registry.ended_with_node() == []
    result = (await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.NODE_DELETED)], NOW)).results[0]
    assert result.closed
    assert result.event
    assert await registry.directives("d1", 10) == []
    assert await registry.ended_with_node() == [ref]
    assert await registry.forget_deleted([ref]) == 1
    assert await registry.get("edge-1") is None
    assert await registry.acknowledge([connected.event_id, result.event.event_id]) == 2
    await exact_counts(registry)
    again = await registry.open("d1", [opening()], NOW + 1)
    assert again.results[0].epoch > ref.epoch


async def test_a_deletion_is_told_though_an_eviction_was_asked_before(registry: Registry) -> None:
    """C10: what the dispatcher is asked changes to the stronger end."""
    ref, _ = await active(registry)
    await registry.evict("edge-1", 0, NOW)
    await registry.delete_nodes(["edge-1"], NOW)
    assert [d.reason for d in await registry.directives("d1", 10)] == [Reason.NODE_DELETED]
    again = await registry.delete_nodes(["edge-1"], NOW)
    assert (again.results, again.directed) == ([Deletion(True, Epoch(ref.epoch))], frozenset())


@pytest.mark.parametrize("state", [State.OPENING, State.ORPHANED])
async def test_where_nobody_can_be_asked_a_deleted_nodes_session_ends_at_once(
    registry: Registry, state: State
) -> None:
    """C10."""
    if state is State.OPENING:
        ref = await opened(registry)
    else:
        ref, _ = await active(registry)
        await registry.release("d1", NOW)
    committed = await registry.delete_nodes(["edge-1"], NOW)
    assert [(s.state, s.reason) for s in committed.changes] == [(State.CLOSED, Reason.NODE_DELETED)]
    assert await registry.forget_deleted([ref]) == 1
    await exact_counts(registry)


async def test_a_node_that_came_again_is_not_forgotten(registry: Registry) -> None:
    """C10: what was seen of the deleted session says nothing of the next."""
    ref = await opened(registry)
    await registry.delete_nodes(["edge-1"], NOW)
    assert await registry.ended_with_node() == [ref]
    again = await opened(registry)
    assert again.epoch > ref.epoch
    assert await registry.forget_deleted([ref]) == 0
    await registry.delete_nodes(["edge-1"], NOW)
    assert await registry.forget_deleted([ref]) == 0
    assert await registry.forget_deleted([again]) == 1


async def test_a_node_that_is_away_is_deleted_at_once(registry: Registry) -> None:
    """C10."""
    ref = await opened(registry)
    await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)
    assert (await registry.delete_nodes(["edge-1"], NOW)).results == [Deletion(True, Epoch(ref.epoch))]
    assert await registry.get("edge-1") is None
    assert (await registry.delete_nodes(["edge-1"], NOW)).results == [Deletion(False, NO_EPOCH)]


# What replicas see of each other


async def changes_since(registry: Registry, number: int, size: int = 1000) -> list[tuple[str, State]]:
    """Nodes and states behind a change, read in pages."""
    found: list[tuple[str, State]] = []
    after = number + 1, ""
    while page := await registry.changes_after(*after, size):
        found += [(item.session.node_id, item.session.state) for item in page]
        after = page[-1].number, page[-1].session.node_id
    return found


async def test_changes_stand_in_the_order_of_their_commits(registry: Registry) -> None:
    """Each session once, as it is, where its last change stands."""
    assert await registry.last_change() == 0
    await active(registry, "edge-2")
    ref = await opened(registry, "edge-1")
    await opened(registry, "edge-3")
    before = await registry.last_change()
    committed = await registry.activate("d1", [ref], NOW)
    assert committed.number == before + 1 == await registry.last_change()
    everything = [
        ("edge-2", State.ACTIVE),
        ("edge-3", State.OPENING),
        ("edge-1", State.ACTIVE),
    ]
    for size in (1, 2, 1000):
        assert await changes_since(registry, 0, size) == everything
    assert await changes_since(registry, before) == [("edge-1", State.ACTIVE)]


async def test_every_kind_of_change_gets_a_number_of_its_own(registry: Registry) -> None:
    """Also one that leaves all counters as they were."""
    ref, _ = await active(registry)
    await registry.renew(renewal(), NOW, 10)
    seen = Observation("d1", 1)
    for change in (
        lambda: registry.lose(seen, NOW),
        lambda: registry.renew(renewal(counter=2), NOW, 10),
        lambda: registry.evict("edge-1", 0, NOW),
        lambda: registry.delete_nodes(["edge-1"], NOW),
        lambda: registry.close_unconfirmed([ref], NOW),
    ):
        before = await registry.last_change()
        assert (await change()).number == before + 1
        assert [name for name, _ in await changes_since(registry, before)] == ["edge-1"]
    before = await registry.last_change()
    await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)
    assert await registry.last_change() == before


async def test_what_a_dispatcher_holds_is_listed_in_pages(registry: Registry) -> None:
    refs = [await opened(registry, f"edge-{number}") for number in range(1, 6)]
    await opened(registry, "other-1", dispatcher_id="d2")
    await registry.close("d1", [Ending("edge-2", refs[1].epoch, Reason.EDGE_CLOSED)], NOW)
    await registry.activate("d1", [refs[3]], NOW)
    assert await registry.held("d1", "", 10) == [refs[0], refs[2], refs[3], refs[4]]
    assert await registry.held("d1", "edge-1", 2) == [refs[2], refs[3]]
    assert await registry.held("d3", "", 10) == []


async def test_a_lease_says_what_its_dispatcher_last_said_of_itself(registry: Registry) -> None:
    await opened(registry, dispatcher_id="d2")
    loads = (ConnectorLoad("c1", "north", 7, "", "2.0", True), ConnectorLoad("c2", "söuth", 0))
    await registry.renew(renewal("d1", 1), NOW, 10)
    await registry.renew(renewal("d1", 2, *loads), NOW, 10)
    await registry.renew(replace(renewal("d1", 3, *loads), version="2.0", draining=True), NOW, 10)
    assert await registry.leases() == [
        Lease("d1", 3, False, "name-of-d1", "127.0.0.1:50051", 0, loads, "2.0", True),
        Lease("d2", 0, False),
    ]


async def test_replicas_count_their_signs_of_life(registry: Registry) -> None:
    first = Replica("s1", "one", "127.0.0.1:1", version="2.0")
    second = Replica("s2", "two", "127.0.0.1:2", service="enrolment")
    for replica in (second, first, second):
        await registry.beat(replica)
    assert await registry.replicas() == [replace(first, beats=1), replace(second, beats=2)]
    await registry.drop_replica(replace(second, beats=1))
    assert len(await registry.replicas()) == 2
    await registry.drop_replica(replace(second, beats=2))
    assert await registry.replicas() == [replace(first, beats=1)]


async def test_two_reapers_act_once(registry: Registry) -> None:
    """C35: whichever replica sees the silence, a dispatcher is lost and expired once."""
    _, connected = await active(registry)
    await registry.renew(renewal(), NOW, 10)
    seen = Observation("d1", 1)
    lost = await asyncio.gather(registry.lose(seen, NOW), registry.lose(seen, NOW))
    assert sorted(len(committed.changes) for committed in lost) == [0, 1]
    expired = await asyncio.gather(*(registry.expire(seen, NOW, 10) for _ in range(2)))
    assert sorted(len(committed.changes) for committed in expired) == [0, 1]
    events = (await registry.renew(renewal("d2"), NOW, 10)).results
    assert [event.kind for event in events] == [EventKind.CONNECTED, EventKind.DISCONNECTED]
    assert events[0].event_id == connected.event_id
    await exact_counts(registry)


# Transferring


def transfer(ref: Ref, connector_id: str = "c1", link: int = 1) -> Transfer:
    """The link of `opening()` asks for its session to move."""
    return Transfer(ref.node_id, ref.epoch, connector_id, link)


async def moved(registry: Registry, ref: Ref, dispatcher_id: str, now_ms: int = NOW) -> Ref:
    """A granted transfer."""
    result = (await registry.transfer(dispatcher_id, [transfer(ref)], now_ms)).results[0]
    assert result.reason is None
    return Ref(ref.node_id, result.epoch)


async def test_a_session_moves_with_its_slots_under_a_new_epoch_and_without_events(
    registry: Registry,
) -> None:
    """C37: same session, same slots; the former dispatcher is told to let it go."""
    ref, connected = await active(registry)
    before, usage = await registry.get("edge-1"), await registry.usage(most=1000)
    committed = await registry.transfer("d2", [transfer(ref)], NOW + 5)
    result = committed.results[0]
    after = await registry.get("edge-1")
    assert before
    assert after
    assert result.epoch > ref.epoch
    assert (after.state, after.dispatcher_id, after.epoch) == (State.ACTIVE, "d2", result.epoch)
    assert (after.opened_at_ms, after.link, after.connector_id) == (NOW, before.link, before.connector_id)
    assert (await registry.usage(most=1000)).counts == usage.counts
    assert [event.event_id for event in result.earlier_events] == [connected.event_id]
    assert committed.directed == {"d1"}
    assert [(d.epoch, d.reason) for d in await registry.directives("d1", 9)] == [
        (ref.epoch, Reason.TRANSFERRED)
    ]
    assert committed.changes == [after]
    await exact_counts(registry)


async def test_a_former_dispatcher_can_neither_activate_nor_end_what_moved(registry: Registry) -> None:
    """C36: it was only paused; its directive goes when it says that it let the session go."""
    ref, _ = await active(registry)
    present = await moved(registry, ref, "d2")
    assert not (await registry.activate("d1", [ref], NOW)).results[0].active
    assert (
        not (await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.SHUTDOWN)], NOW))
        .results[0]
        .closed
    )
    assert await state_of(registry) is State.ACTIVE
    assert await registry.directives("d1", 9) == []
    late = Ending("edge-1", present.epoch, Reason.KEEPALIVE_TIMEOUT)
    assert not (await registry.close("d1", [late], NOW)).results[0].closed
    assert (await registry.close("d2", [late], NOW)).results[0].closed


async def test_an_orphan_moves_and_is_no_longer_the_lost_dispatchers(registry: Registry) -> None:
    """C37: the reaper that comes for the lost dispatcher's orphans finds it gone."""
    ref, _ = await active(registry)
    await registry.renew(renewal("d1"), NOW, 10)
    await registry.lose(Observation("d1", 1), NOW)
    assert await state_of(registry) is State.ORPHANED
    await moved(registry, ref, "d2")
    await registry.expire(Observation("d1", 1), NOW, 10)
    await registry.renew(renewal("d1", 2), NOW, 10)
    session = await registry.get("edge-1")
    assert session
    assert (session.state, session.dispatcher_id) == (State.ACTIVE, "d2")


async def test_a_transfer_whose_answer_was_lost_can_be_asked_again(registry: Registry) -> None:
    """C37: by the link as it knows itself, of the same dispatcher or of another; the newest grant counts."""
    ref, _ = await active(registry)
    first = await moved(registry, ref, "d2")
    again = await moved(registry, ref, "d2")
    elsewhere = await moved(registry, ref, "d3")
    assert ref.epoch < first.epoch < again.epoch < elsewhere.epoch
    # A late copy of the first request took the session; the link, which moved on, gets it back.
    await moved(registry, ref, "d2")
    back = await moved(registry, elsewhere, "d3")
    session = await registry.get("edge-1")
    assert session
    assert (session.dispatcher_id, session.epoch) == ("d3", back.epoch)
    await exact_counts(registry)


async def test_a_link_that_is_not_the_nodes_newest_does_not_move(registry: Registry) -> None:
    """C37: of another link or connector, or of no session at all; nothing changes."""
    old, _ = await active(registry)
    newest = (await registry.open("d2", [opening(connector_id="c2", link=7)], NOW)).results[0]
    await registry.activate("d2", [Ref("edge-1", newest.epoch)], NOW)
    before = await registry.get("edge-1")
    committed = await registry.transfer(
        "d3",
        [
            transfer(old),
            transfer(Ref("edge-1", newest.epoch), "c2", 8),
            transfer(Ref("edge-1", newest.epoch), "c3", 7),
            transfer(Ref("edge-1", newest.epoch + 1), "c2", 7),
            transfer(Ref("nobody", 5)),
        ],
        NOW,
    )
    assert [(result.epoch, result.reason) for result in committed.results] == [
        (NO_EPOCH, Reason.SUPERSEDED),
        (NO_EPOCH, Reason.SUPERSEDED),
        (NO_EPOCH, Reason.SUPERSEDED),
        (NO_EPOCH, Reason.PROTOCOL_ERROR),
        (NO_EPOCH, Reason.DISPATCHER_LOST),
    ]
    assert committed.changes == []
    assert await registry.get("edge-1") == before


async def test_what_has_no_verdict_or_is_asked_to_end_does_not_move(registry: Registry) -> None:
    """C37: an eviction during a move wins, and the link learns why it is closed."""
    announced = await opened(registry)
    evicted, _ = await active(registry, "edge-2")
    await registry.evict("edge-2", 0, NOW)
    ended, _ = await active(registry, "edge-3")
    await registry.close("d1", [Ending("edge-3", ended.epoch, Reason.KEEPALIVE_TIMEOUT)], NOW)
    committed = await registry.transfer("d2", [transfer(ref) for ref in (announced, evicted, ended)], NOW)
    assert [(result.epoch, result.reason) for result in committed.results] == [
        (NO_EPOCH, Reason.DISPATCHER_LOST),
        (NO_EPOCH, Reason.EVICTED),
        (NO_EPOCH, Reason.KEEPALIVE_TIMEOUT),
    ]
    assert await state_of(registry, "edge-1") is State.OPENING
    assert await state_of(registry, "edge-2") is State.DRAINING


async def test_an_eviction_after_a_move_asks_the_new_dispatcher(registry: Registry) -> None:
    ref, _ = await active(registry)
    present = await moved(registry, ref, "d2")
    assert (await registry.evict("edge-1", 0, NOW)).directed == {"d2"}
    assert [(d.epoch, d.reason) for d in await registry.directives("d2", 9)] == [
        (present.epoch, Reason.EVICTED)
    ]


async def test_a_dispatcher_takes_its_own_link_back_without_a_directive(registry: Registry) -> None:
    """Its stream broke and the connector came back."""
    ref, connected = await active(registry)
    committed = await registry.transfer("d1", [transfer(ref)], NOW)
    assert committed.directed == frozenset()
    assert committed.results[0].earlier_events == ()
    present = committed.results[0].epoch
    closed = await registry.close("d1", [Ending("edge-1", present, Reason.EDGE_CLOSED)], NOW)
    disconnected = closed.results[0].event
    assert disconnected
    assert (disconnected.kind, disconnected.epoch) == (EventKind.DISCONNECTED, present)
    assert connected.epoch == ref.epoch


async def test_a_dispatcher_that_takes_over_is_watched(registry: Registry) -> None:
    """It has a lease from then on, though it never renewed: what it took is orphaned if it dies."""
    ref, _ = await active(registry)
    await moved(registry, ref, "d2")
    assert "d2" in {lease.dispatcher_id for lease in await registry.leases()}
    await registry.lose(Observation("d2", 0), NOW)
    assert await state_of(registry) is State.ORPHANED


# Looking


async def test_live_sessions_are_found(registry: Registry) -> None:
    ref, _ = await active(registry, "edge-1")
    await opened(registry, "edge-2")
    await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)
    found = await registry.locate(["edge-2", "edge-1", "edge-9", "edge-2"])
    assert [session.node_id for session in found] == ["edge-2"]


async def test_pages_follow_each_other_in_order_of_node_id(registry: Registry) -> None:
    await registry.change_limits(LimitsChange(per_connector=0))
    names = [f"edge-{index:02}" for index in range(7)]
    await registry.open("d1", [opening(name) for name in reversed(names)], NOW)
    seen: list[str] = []
    while page := await registry.page(Filter(), seen[-1] if seen else "", 3):
        seen += [session.node_id for session in page]
    assert seen == names


async def test_filters_narrow(registry: Registry) -> None:
    await registry.open("d1", [opening("a-1", "p1", "c1"), opening("a.2", "p2", "c2")], NOW)
    await registry.open("d2", [opening("b-1", "p1", "c2")], NOW)
    ref, _ = await active(registry, "c-1", "d3")
    await registry.close("d3", [Ending("c-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)

    async def names(wanted: Filter) -> list[str]:
        return [session.node_id for session in await registry.page(wanted, "", 100)]

    assert await names(Filter()) == ["a-1", "a.2", "b-1"]
    assert await names(EVERYTHING) == ["a-1", "a.2", "b-1", "c-1"]
    assert await names(Filter(states=frozenset({State.CLOSED}))) == ["c-1"]
    assert await names(Filter(node_id_prefix="a")) == ["a-1", "a.2"]
    assert await names(Filter(node_id_prefix="a.")) == ["a.2"]
    assert await names(Filter(node_id_prefix="a_")) == []
    assert await names(Filter(project_id="p1")) == ["a-1", "b-1"]
    assert await names(Filter(connector_id="c2")) == ["a.2", "b-1"]
    assert await names(Filter(dispatcher_id="d2", project_id="p1")) == ["b-1"]


async def test_states_are_counted(registry: Registry) -> None:
    await active(registry, "edge-1")
    await opened(registry, "edge-2")
    assert await registry.states() == {State.ACTIVE: 1, State.OPENING: 1}
    await registry.probe()


# Evicting


async def test_evicting_an_active_session_asks_its_dispatcher(registry: Registry) -> None:
    ref, _ = await active(registry)
    committed = await registry.evict("edge-1", ref.epoch, NOW)
    result = committed.results[0]
    assert result.session
    assert (result.eviction, result.session.state) == (Eviction.ASKED, State.DRAINING)
    assert committed.directed == {"d1"}
    directives = await registry.directives("d1", 10)
    assert [(d.epoch, d.reason) for d in directives] == [(ref.epoch, Reason.EVICTED)]
    assert await registry.draining() == [ref]
    again = await registry.evict("edge-1", 0, NOW)
    assert (again.results[0].eviction, again.changes) == (Eviction.ASKED, [])
    closed = (await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)).results[0]
    assert (closed.closed, closed.reason) == (True, Reason.EVICTED)
    assert await registry.directives("d1", 10) == []
    assert await registry.draining() == []


async def test_evicting_an_opening_session_closes_it_at_once(registry: Registry) -> None:
    ref = await opened(registry)
    result = (await registry.evict("edge-1", 0, NOW)).results[0]
    assert result.eviction is Eviction.CLOSED
    assert await state_of(registry) is State.CLOSED
    # The dispatcher may not know yet.
    assert [d.epoch for d in await registry.directives("d1", 10)] == [ref.epoch]
    await exact_counts(registry)


async def test_an_eviction_without_a_matching_session_changes_nothing(registry: Registry) -> None:
    assert (await registry.evict("edge-1", 0, NOW)).results[0].eviction is Eviction.UNKNOWN_NODE
    ref, _ = await active(registry)
    assert (await registry.evict("edge-1", ref.epoch + 1, NOW)).results[0].eviction is Eviction.OTHER_EPOCH
    assert await state_of(registry) is State.ACTIVE
    await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)
    assert (await registry.evict("edge-1", 0, NOW)).results[0].eviction is Eviction.NO_SESSION


async def test_an_end_that_nobody_confirms_is_closed_with_its_reason(registry: Registry) -> None:
    ref, _ = await active(registry)
    other, _ = await active(registry, "edge-2")
    await registry.evict("edge-1", 0, NOW)
    committed = await registry.close_unconfirmed([ref, other, Ref("edge-9", 1)], NOW)
    assert [(s.node_id, s.reason) for s in committed.changes] == [("edge-1", Reason.EVICTED)]
    assert await state_of(registry, "edge-2") is State.ACTIVE
    # Its dispatcher is asked on, and gets the event by its next renewal.
    assert [d.reason for d in await registry.directives("d1", 10)] == [Reason.EVICTED]
    handed = (await registry.renew(renewal("d1"), NOW, 10)).results
    assert [event.kind for event in handed] == [EventKind.CONNECTED, EventKind.DISCONNECTED]


# Leases


async def only_lease(registry: Registry) -> tuple[int, bool]:
    """The renewals of the only lease, and whether it is lost."""
    (lease,) = await registry.leases()
    return lease.renewals, lease.lost


async def test_an_opener_has_a_lease_before_it_renews(registry: Registry) -> None:
    await opened(registry)
    assert await only_lease(registry) == (0, False)
    await registry.renew(renewal("d1"), NOW, 10)
    assert await only_lease(registry) == (1, False)


async def test_a_counter_that_did_not_grow_renews_nothing(registry: Registry) -> None:
    await registry.renew(renewal("d1", 5), NOW, 10)
    await registry.lose(Observation("d1", 1), NOW)
    for counter in (5, 4):
        await registry.renew(renewal("d1", counter), NOW, 10)
        assert await only_lease(registry) == (1, True)
    await registry.renew(renewal("d1", 6), NOW, 10)
    assert await only_lease(registry) == (2, False)


async def test_a_lost_dispatchers_sessions_are_orphans_and_keep_their_slots(registry: Registry) -> None:
    await active(registry, "edge-1")
    await opened(registry, "edge-2")
    await active(registry, "edge-3", "d2")
    committed = await registry.lose(Observation("d1", 0), NOW)
    assert [(s.node_id, s.state) for s in committed.changes] == [
        ("edge-1", State.ORPHANED),
        ("edge-2", State.ORPHANED),
    ]
    assert await state_of(registry, "edge-3") is State.ACTIVE
    assert (await registry.usage(most=1000)).counts[Scope.TOTAL, ""] == 3
    assert (await registry.lose(Observation("d1", 0), NOW)).changes == []
    await exact_counts(registry)


async def test_a_dispatcher_that_renewed_meanwhile_is_not_lost(registry: Registry) -> None:
    await active(registry)
    await registry.renew(renewal("d1"), NOW, 10)
    assert (await registry.lose(Observation("d1", 0), NOW)).changes == []
    assert (await registry.expire(Observation("d1", 0), NOW, 10)).changes == []
    assert (await registry.lose(Observation("d9", 0), NOW)).changes == []
    assert await state_of(registry) is State.ACTIVE


async def test_a_dispatcher_that_comes_back_has_its_sessions_back(registry: Registry) -> None:
    """C36: it was only slow; nobody's session ended, no event was written."""
    await active(registry, "edge-1")
    await opened(registry, "edge-2")
    await registry.lose(Observation("d1", 0), NOW)
    committed = await registry.renew(renewal("d1"), NOW, 10)
    assert [(s.node_id, s.state) for s in committed.changes] == [
        ("edge-1", State.ACTIVE),
        ("edge-2", State.OPENING),
    ]
    assert committed.results == []
    await exact_counts(registry)


async def test_an_orphan_is_superseded_at_once(registry: Registry) -> None:
    await active(registry)
    await registry.lose(Observation("d1", 0), NOW)
    result = (await registry.open("d2", [opening()], NOW)).results[0]
    assert result.superseded_event
    assert [event.kind for event in result.earlier_events] == [EventKind.CONNECTED]
    assert await state_of(registry) is State.OPENING
    await exact_counts(registry)


async def test_orphans_are_closed_in_the_end_and_their_dispatcher_told(registry: Registry) -> None:
    refs = [(await active(registry, f"edge-{index}"))[0] for index in range(3)]
    await registry.lose(Observation("d1", 0), NOW)
    first = await registry.expire(Observation("d1", 0), NOW, 2)
    assert [(s.node_id, s.reason) for s in first.changes] == [
        ("edge-0", Reason.DISPATCHER_LOST),
        ("edge-1", Reason.DISPATCHER_LOST),
    ]
    assert len((await registry.expire(Observation("d1", 0), NOW, 2)).changes) == 1
    assert (await registry.usage(most=1000)).counts.get((Scope.TOTAL, ""), 0) == 0
    assert [Ref(d.node_id, d.epoch) for d in await registry.directives("d1", 10)] == refs


async def test_a_lost_dispatcher_that_opens_is_there_again(registry: Registry) -> None:
    await active(registry, "edge-1")
    await registry.lose(Observation("d1", 0), NOW)
    await opened(registry, "edge-2")
    assert await only_lease(registry) == (1, False)


async def test_an_orphan_whose_dispatcher_activates_it_is_active(registry: Registry) -> None:
    ref = await opened(registry)
    await registry.lose(Observation("d1", 0), NOW)
    result = (await registry.activate("d1", [ref], NOW)).results[0]
    assert result.active
    assert result.event


async def test_a_released_lease_orphans_what_was_left(registry: Registry) -> None:
    await active(registry, "edge-1")
    draining, _ = await active(registry, "edge-2")
    await registry.evict("edge-2", 0, NOW)
    committed = await registry.release("d1", NOW)
    assert {(s.node_id, s.state, s.reason) for s in committed.changes} == {
        ("edge-1", State.ORPHANED, None),
        ("edge-2", State.CLOSED, Reason.EVICTED),
    }
    assert [lease.lost for lease in await registry.leases()] == [True]
    assert (await registry.release("d9", NOW)).changes == []
    assert draining not in await registry.draining()


async def test_a_lost_lease_goes_when_nothing_depends_on_it(registry: Registry) -> None:
    ref, connected = await active(registry)
    await registry.renew(renewal("d2"), NOW, 10)
    await registry.release("d1", NOW)
    await registry.forget_lost()
    assert {lease.dispatcher_id for lease in await registry.leases()} == {"d1", "d2"}
    closed = await registry.expire(Observation("d1", 0), NOW, 10)
    assert [session.epoch for session in closed.changes] == [ref.epoch]
    await registry.forget_lost()
    assert {lease.dispatcher_id for lease in await registry.leases()} == {"d1", "d2"}
    handed = (await registry.renew(renewal("d2", 2), NOW, 10)).results
    assert handed[0].event_id == connected.event_id
    await registry.forget_lost()
    assert [lease.dispatcher_id for lease in await registry.leases()] == ["d2"]


# Events


async def test_events_of_a_gone_dispatcher_are_adopted_once_in_order(registry: Registry) -> None:
    """C8: by one dispatcher at a time, whole nodes."""
    for name in ("edge-1", "edge-2"):
        ref, _ = await active(registry, name)
        await registry.close("d1", [Ending(name, ref.epoch, Reason.EDGE_CLOSED)], NOW)
        await active(registry, name)
    await registry.renew(renewal("d2"), NOW, 100)
    assert (await registry.renew(renewal("d2", 2), NOW, 100)).results == []
    await registry.lose(Observation("d1", 0), NOW)
    first = (await registry.renew(renewal("d2", 3), NOW, 4)).results
    assert [(e.node_id, e.kind) for e in first] == [
        ("edge-1", EventKind.CONNECTED),
        ("edge-1", EventKind.DISCONNECTED),
        ("edge-1", EventKind.CONNECTED),
    ]
    second = (await registry.renew(renewal("d3"), NOW, 2)).results
    assert {event.node_id for event in second} == {"edge-2"}
    assert [event.kind for event in second] == [event.kind for event in first]
    assert (await registry.renew(renewal("d3", 2), NOW, 100)).results == []


async def test_events_of_a_living_dispatcher_stay_its_own(registry: Registry) -> None:
    await registry.renew(renewal("d1"), NOW, 10)
    await active(registry)
    assert (await registry.renew(renewal("d2"), NOW, 10)).results == []
    assert (await registry.renew(renewal("d1", 2), NOW, 10)).results == []


async def test_an_event_that_stays_unacknowledged_is_handed_out_again(registry: Registry) -> None:
    """C8: at least once, also if the answer that carried it was lost."""
    await registry.renew(renewal("d1", 1), NOW, 10)
    _, event = await active(registry)
    for counter in range(2, HAND_AGAIN_AFTER_RENEWALS + 1):
        assert (await registry.renew(renewal("d1", counter), NOW, 10)).results == []
    again = (await registry.renew(renewal("d1", HAND_AGAIN_AFTER_RENEWALS + 1), NOW, 10)).results
    assert [handed.event_id for handed in again] == [event.event_id]
    assert (await registry.renew(renewal("d1", 99), NOW, 10)).results == []


async def test_acknowledged_events_are_gone(registry: Registry) -> None:
    _, event = await active(registry)
    assert await registry.acknowledge([event.event_id, event.event_id, "unknown"]) == 1
    assert await registry.acknowledge([event.event_id]) == 0


async def test_events_are_distinct(registry: Registry) -> None:
    events = [(await active(registry, f"edge-{index}"))[1] for index in range(3)]
    assert len({event.event_id for event in events}) == 3


async def test_a_node_that_comes_and_goes_pushes_out_no_other_nodes_events(registry: Registry) -> None:
    """C46: its own oldest ones go, in the transaction that writes one too many, and are counted."""
    _, theirs = await active(registry, "edge-2")
    made: list[str] = []
    dropped = 0
    for _ in range(MAX_EVENTS_PER_NODE):
        ref = await opened(registry)
        began = await registry.activate("d1", [ref], NOW)
        ended = await registry.close("d1", [Ending("edge-1", ref.epoch, Reason.EDGE_CLOSED)], NOW)
        for event in (began.results[0].event, ended.results[0].event):
            assert event
            made.append(event.event_id)
        dropped += began.dropped_events + ended.dropped_events
    assert dropped == MAX_EVENTS_PER_NODE
    assert await registry.acknowledge(made[:dropped]) == 0
    assert await registry.acknowledge(made) == MAX_EVENTS_PER_NODE
    assert await registry.acknowledge([theirs.event_id]) == 1


async def test_old_rows_are_given_up(registry: Registry) -> None:
    ref = await opened(registry)
    await registry.activate("d1", [ref], NOW)
    await registry.evict("edge-1", 0, NOW)
    await active(registry, "edge-2")
    assert await registry.trim(NOW, 10) == Trimmed(0, 0)
    assert await registry.trim(NOW + 1, 10) == Trimmed(2, 1)
    assert await registry.directives("d1", 10) == []


async def test_events_above_the_bound_are_given_up_oldest_first(registry: Registry) -> None:
    events = []
    for index in range(4):
        ref = await opened(registry, f"edge-{index}")
        event = (await registry.activate("d1", [ref], NOW + index)).results[0].event
        assert event
        events.append(event.event_id)
    assert await registry.trim(0, 3) == Trimmed(1, 0)
    assert await registry.trim(0, 3) == Trimmed(0, 0)
    assert await registry.acknowledge(events) == 3
    assert await registry.acknowledge(events[:1]) == 0


async def test_places_come_in_pages(registry: Registry) -> None:
    """Each link may name a project of its own: an answer has so many connectors and projects, the total, and
    no more."""
    await registry.open("d1", [opening(f"edge-{n}", f"p{n}", f"c{n % 2}") for n in range(5)], NOW)
    total = (Scope.TOTAL, "")
    assert (await registry.usage()).counts == {total: 5}
    found: list[Place] = []
    after = None
    while page := [place for place in (await registry.usage(after, 3)).counts if place != total]:
        assert len(page) <= 3
        found += page
        after = page[-1]
    connectors = [(Scope.CONNECTOR, "c0"), (Scope.CONNECTOR, "c1")]
    assert found == [*connectors, *((Scope.PROJECT, f"p{n}") for n in range(5))]
