"""Durable uploads over a real store: cuts, repeats, a store in trouble, and processes that die."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import func, select, update

from cloudhub.v1.link_pb2 import CloseReason
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.upstream import upload_loader
from services.dispatcher.upstream.settings import UpstreamSettings
from services.runtime.clock import SystemClock
from tests.support.postgres import Databases
from tests.support.upstream import Hub, event, open_hub, report, upload


@pytest.fixture(params=["sqlite", "postgresql"], autouse=True)
async def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here runs on both engines."""
    if request.param == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        url = await databases.fresh(SCHEMA)
        monkeypatch.setattr("tests.support.upstream.database_url", lambda folder: url)


async def rows(hub: Hub) -> int:
    """Uploads on disk."""
    return await hub.store.read(
        lambda connection: connection.execute(select(func.count()).select_from(hub.table)).scalar_one()
    )


async def until_settled(hub: Hub, count: int) -> None:
    """Waits until `count` uploads are settled, then writes one more: with it the former are deleted."""
    await hub.until(lambda: hub.metric("uploads_settled_total") == count)
    before = len(hub.edge.answers)
    hub.receive("marker", 1, upload(before, sync=True))
    await hub.edge.until(lambda: len(hub.edge.answers) > before)


async def test_a_synchronous_upload_is_answered_after_it_is_stored(tmp_path: Path) -> None:
    """C31: `response OK`, and by then the row is there."""
    async with open_hub(tmp_path) as hub:
        hub.receive("edge-1", 5, upload(1, sync=True))
        assert hub.edge.answers == []
        await hub.edge.until(lambda: bool(hub.edge.answers))
        assert await rows(hub) == 1
        ((node_id, epoch, message),) = hub.edge.answers
        assert (node_id, epoch, message.parent_id) == ("edge-1", 5, "upload-1")
        assert (message.operation, json.loads(message.content)) == ("response", "OK")
        assert message.resource == "sensors/readings"


async def test_an_upload_is_told_to_be_safe_after_it_is_stored_and_not_before(tmp_path: Path) -> None:
    """C31: until then its connector keeps it for another dispatcher."""
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        hub.store.fails_before = True
        hub.receive("edge-1", 5, upload(1), 1)
        hub.receive("edge-2", 6, upload(1), 1)
        await hub.edge.until(lambda: len(hub.edge.pauses) == 2)
        assert hub.edge.safe == []
        hub.store.fails_before = False
        await hub.edge.until(lambda: len(hub.edge.safe) == 2)
        assert hub.edge.safe == [("edge-1", 5, 1), ("edge-2", 6, 1)]
        assert await rows(hub) == 2
        await cloud.take(2)
        await hub.until(lambda: hub.metric("uploads_settled_total") == 2)
        hub.receive("edge-1", 5, upload(1), 2)
        assert hub.edge.safe[2:] == [("edge-1", 5, 2)], "a repeat needs no storing"


async def test_an_upload_is_gone_from_disk_when_a_subscriber_took_it(tmp_path: Path) -> None:
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        for number in range(20):
            hub.receive("edge-1", 5, upload(number))
        got = await cloud.take(20)
        assert [int(one.message.content) for one in got] == list(range(20))
        assert {one.message.resource for one in got} == {"node/edge-1/sensors/readings"}
        assert not any(one.redelivered for one in got)
        hub.receive("edge-1", 5, upload(99))
        await cloud.next()
        await until_settled(hub, 20)
        assert await rows(hub) == 2
        assert hub.edge.answers[0][0] == "marker", "who does not ask gets no answer"


async def test_a_repeat_is_answered_and_not_handed_on_twice(tmp_path: Path) -> None:
    """C31: while it waits for the store, while it is stored, and after it was settled."""
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        hub.receive("edge-1", 5, upload(1, sync=True))
        hub.receive("edge-1", 5, upload(1, sync=True))
        await hub.edge.until(lambda: len(hub.edge.answers) == 2)
        hub.receive("edge-1", 5, upload(1, sync=True))
        await hub.edge.until(lambda: len(hub.edge.answers) == 3)
        (delivery,) = await cloud.take(1)
        await until_settled(hub, 1)
        await cloud.take(1)
        hub.receive("edge-1", 6, upload(1, sync=True))
        await hub.edge.until(lambda: len(hub.edge.answers) == 5)
        hub.receive("edge-1", 6, upload(3))
        assert [one.message.id for one in await cloud.next()] == ["upload-3"]
        assert {message.operation for _, _, message in hub.edge.answers} == {"response"}
        assert delivery.message.id == "upload-1"
        assert hub.metric("uploads_repeated_total") == 3


async def test_a_repeat_that_waited_while_the_first_was_settled_is_not_handed_on(tmp_path: Path) -> None:
    """C31: it came in before and is stored after the settlement."""
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        hub.receive("edge-1", 5, upload(1))
        (delivery,) = await cloud.next()
        hub.store.fails_before = True
        hub.receive("edge-1", 5, upload(1, sync=True))
        await cloud.acknowledge(delivery)
        await hub.until(lambda: hub.metric("uploads_settled_total") == 1)
        hub.store.fails_before = False
        await hub.edge.until(lambda: len(hub.edge.answers) == 1)
        assert await rows(hub) == 0
        hub.receive("edge-1", 5, upload(2))
        assert [one.message.id for one in await cloud.next()] == ["upload-2"]


async def test_a_session_that_ended_is_not_closed_for_its_uploads(tmp_path: Path) -> None:
    settings = UpstreamSettings(upload_pause_seconds=0.05)
    async with open_hub(tmp_path, settings=settings) as hub:
        hub.store.fails_before = True
        hub.receive("edge-1", 5, upload(1))
        hub.receive("edge-2", 6, upload(1))
        await hub.edge.until(lambda: len(hub.edge.pauses) == 2)
        hub.upstream.session_closed(event("edge-1", 5, "disconnected"))
        await hub.edge.until(lambda: bool(hub.edge.closes))
        assert [(node_id, epoch) for node_id, epoch, _, _ in hub.edge.closes] == [("edge-2", 6)]


async def test_what_memory_has_no_room_for_comes_from_disk_in_order(tmp_path: Path) -> None:
    """C31: no subscriber for long; the backlog of one node does not delay another's uploads."""
    async with open_hub(tmp_path) as hub:
        for number in range(1000):
            hub.receive("busy", 5, upload(number))
        hub.receive("calm", 6, upload(7, sync=True))
        await hub.edge.until(lambda: bool(hub.edge.answers))
        assert hub.metric("waiting") == 256 + 1
        assert hub.metric("uploads_rows") == 1001
        async with hub.subscriber("router") as cloud:
            got = await cloud.take(1001)
        assert [one.node_id for one in got].index("calm") <= 1
        assert [int(one.message.content) for one in got if one.node_id == "busy"] == list(range(1000))


async def test_uploads_survive_a_process_that_dies(tmp_path: Path) -> None:
    """C31: stored and unsettled ones are handed on by the next process, marked, in order, before new ones."""
    async with open_hub(tmp_path) as hub:
        async with hub.subscriber("router") as cloud:
            for number in range(300):
                hub.receive("edge-1", 5, upload(number, sync=True))
            await cloud.next(10)
            await hub.edge.until(lambda: len(hub.edge.answers) == 300)
        await hub.crash()
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        hub.upstream.session_opened(event("edge-1", 6, "connected"))
        hub.receive("edge-1", 6, upload(300))
        got = await cloud.take(302)
        assert [one.message.id for one in got] == [
            *[f"upload-{number}" for number in range(300)],
            "edge-1-6-connected",
            "upload-300",
        ]
        assert {one.epoch for one in got[:300]} == {5}
        assert all(one.redelivered for one in got[:300])
        assert not got[301].redelivered


@dataclass(frozen=True)
class SteppedClock(SystemClock):
    """A machine whose wall clock is off."""

    off_ms: int = 0

    def wall_ms(self) -> int:
        return super().wall_ms() + self.off_ms


async def test_a_clock_that_was_stepped_back_does_not_change_the_order(tmp_path: Path) -> None:
    """C31, C36: what is on disk comes first, whatever the clock says."""
    async with open_hub(tmp_path, clock=SteppedClock(3_600_000)) as hub:
        for number in range(300):
            hub.receive("edge-1", 5, upload(number, sync=True))
        await hub.edge.until(lambda: len(hub.edge.answers) == 300)
        await hub.crash()
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        for number in range(300, 310):
            hub.receive("edge-1", 6, upload(number))
        got = await cloud.take(310)
        assert [int(one.message.content) for one in got] == list(range(310))
        assert [one.redelivered for one in got] == [True] * 300 + [False] * 10


@pytest.mark.parametrize("seed", range(6))
async def test_every_answered_upload_is_handed_on_over_cuts_and_kills(tmp_path: Path, seed: int) -> None:
    """C31: kills at random instants; the edge repeats what was not answered, as our agent does."""
    chance = random.Random(seed)
    nodes = ("edge-1", "edge-2", "edge-3")
    sent = dict.fromkeys(nodes, 0)
    answered: set[tuple[str, str]] = set()
    handed: dict[str, list[int]] = {node: [] for node in nodes}
    for life in range(6):
        async with open_hub(tmp_path) as hub:
            credit = chance.choice([3, 50, 256])
            async with hub.subscriber("router", credit=credit) as cloud:
                for node in nodes:
                    again = [n for n in range(sent[node]) if (node, f"upload-{n}") not in answered]
                    fresh = chance.randrange(60) if life < 5 else 0
                    for number in [*again, *range(sent[node], sent[node] + fresh)]:
                        hub.receive(node, life + 1, upload(number, sync=True))
                    sent[node] += fresh
                goal = sum(sent.values()) - len(answered) if life == 5 else chance.randrange(40)
                goal = min(goal, sum(sent.values()) - len(answered))
                await hub.edge.until(lambda goal=goal: len(hub.edge.answers) >= goal)  # type: ignore[misc]
                present = await rows(hub)
                take = present if life == 5 else chance.randrange(present + 1)
                unacknowledged = 0
                for _ in range(take):
                    if unacknowledged == credit:
                        break
                    (one,) = await cloud.next()
                    handed[one.node_id].append(int(one.message.content))
                    if life == 5 or chance.random() < 0.7:
                        await cloud.acknowledge(one)
                    else:
                        unacknowledged += 1
            await hub.crash()
            answered |= {(node, message.parent_id) for node, _, message in hub.edge.answers}
    for node in nodes:
        first = list(dict.fromkeys(handed[node]))
        assert set(first) == set(range(sent[node])), "each was handed on at least once"
        assert first == sorted(first), "in order per node"


async def test_a_commit_with_unknown_outcome_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """C25, C31: the transaction is run again; what it had stored is handed on once."""
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        hub.store.fail_after_commits = 1
        for number in range(5):
            hub.receive("edge-1", 5, upload(number, sync=True))
        got = await cloud.take(5)
        assert [int(one.message.content) for one in got] == list(range(5))
        await hub.edge.until(lambda: len(hub.edge.answers) == 5)
        await until_settled(hub, 5)
        assert await rows(hub) == 1
        assert [one.node_id for one in await cloud.take(1)] == ["marker"], "the five came once"
        assert hub.metric("store_failures_total") == 1


async def test_a_settled_row_is_deleted_when_the_store_is_back(tmp_path: Path) -> None:
    """C25: nothing is handed on again for it by this process."""
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        hub.receive("edge-1", 5, upload(1))
        (delivery,) = await cloud.next()
        hub.store.fails_before = True
        hub.store.attempted.clear()
        await cloud.acknowledge(delivery)
        await hub.store.attempted.wait()
        assert hub.edge.pauses == []
        hub.store.fails_before = False
        await until_settled(hub, 1)
        assert await rows(hub) == 1


async def test_links_pause_while_the_store_does_not_answer(tmp_path: Path) -> None:
    """C31: reads stop, nothing is answered, and all goes on when the store is back."""
    async with open_hub(tmp_path) as hub, hub.subscriber("router", "edgecontroller") as cloud:
        hub.store.fails_before = True
        hub.receive("edge-1", 5, upload(1, sync=True))
        await hub.edge.until(lambda: hub.edge.pauses == [("edge-1", 5, True)])
        hub.receive("edge-1", 5, report("p"))
        assert [one.message.id for one in await cloud.take(1)] == ["p--update"], "the rest goes on"
        assert hub.edge.answers == []
        hub.store.fails_before = False
        await hub.edge.until(lambda: hub.edge.pauses == [("edge-1", 5, True), ("edge-1", 5, False)])
        assert [one.message.id for one in await cloud.take(1)] == ["upload-1"]
        assert len(hub.edge.answers) == 1
        assert hub.edge.closes == []


async def test_a_link_is_closed_when_its_uploads_find_no_room_in_time(tmp_path: Path) -> None:
    """C31: with reason OVERLOADED; what was taken in is stored all the same."""
    settings = UpstreamSettings(upload_pause_seconds=0.05)
    async with open_hub(tmp_path, settings=settings) as hub, hub.subscriber("router") as cloud:
        hub.store.fails_before = True
        hub.receive("edge-1", 5, upload(1))
        await hub.edge.until(lambda: bool(hub.edge.closes))
        ((node_id, epoch, reason, detail),) = hub.edge.closes
        assert (node_id, epoch, reason) == ("edge-1", 5, CloseReason.CLOSE_REASON_OVERLOADED)
        assert detail == "uploads found no room for 0.05 s: the store does not answer"
        hub.upstream.session_closed(event("edge-1", 5, "disconnected"))
        hub.store.fails_before = False
        assert [one.message.id for one in await cloud.take(2)] == ["upload-1", "edge-1-5-disconnected"]
        assert hub.edge.pauses == [("edge-1", 5, True)]


async def test_uploads_over_the_bounds_are_dropped_and_those_who_ask_are_told(tmp_path: Path) -> None:
    """Invariant 9: links that ignore a pause, or a hub that has no room at all."""
    async with open_hub(tmp_path, started=False) as hub:
        for number in range(2048):
            hub.receive("edge-1", 5, upload(number))
        hub.receive("edge-1", 5, upload(2048))
        hub.receive("edge-1", 5, upload(2049, sync=True))
        assert hub.metric("dropped_total", reason="upload_node_messages") == 2
        ((_, _, message),) = hub.edge.answers
        assert (message.operation, message.parent_id) == ("error", "upload-2049")
        assert hub.edge.pauses == [("edge-1", 5, True)]


async def test_events_that_come_before_the_store_was_read_keep_their_place(tmp_path: Path) -> None:
    """C8: a `disconnected` that is adopted at start comes after what the session had stored."""
    async with open_hub(tmp_path) as hub:
        hub.receive("edge-1", 5, upload(1, sync=True))
        await hub.edge.until(lambda: bool(hub.edge.answers))
        await hub.crash()
    async with open_hub(tmp_path, unreadable=True) as hub, hub.subscriber("router") as cloud:
        hub.upstream.adopt_events([event("edge-1", 5, "disconnected")])
        hub.receive("edge-1", 6, upload(2))
        hub.store.fails_before = False
        got = await cloud.take(3)
        assert [one.message.id for one in got] == ["upload-1", "edge-1-5-disconnected", "upload-2"]


async def test_a_row_that_is_no_message_is_counted_and_harms_nothing(tmp_path: Path) -> None:
    """C29, invariant 10: bad database content."""
    async with open_hub(tmp_path) as hub:
        for number in range(3):
            hub.receive("edge-1", 5, upload(number, sync=True))
        await hub.edge.until(lambda: len(hub.edge.answers) == 3)
        await hub.crash()
        await hub.store.write(
            lambda connection: connection.execute(
                update(hub.table).where(hub.table.c.message_id == "upload-1").values(message=b"\xff")
            )
        )
    async with open_hub(tmp_path) as hub, hub.subscriber("router") as cloud:
        assert [one.message.id for one in await cloud.take(2)] == ["upload-0", "upload-2"]
        assert hub.metric("uploads_unreadable_total") == 1


async def test_the_store_is_asked_again_until_it_can_be_loaded_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_hub(tmp_path) as hub:
        for number in range(300):
            hub.receive("edge-1", 5, upload(number, sync=True))
        await hub.edge.until(lambda: len(hub.edge.answers) == 300)
        async with hub.subscriber("router", credit=1000) as cloud:
            held = await cloud.next(256)
            hub.store.fails_before = True
            hub.store.attempted.clear()
            await cloud.acknowledge(*held)
            await hub.store.attempted.wait()
            hub.store.fails_before = False
            rest = await cloud.next(44)
            assert [int(one.message.content) for one in rest] == list(range(256, 300))
    assert upload_loader.RETRY.most_seconds <= 1.0
