"""Stored uploads that nobody takes: each node's share, what happens at it, and that others do not notice."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy import func, select

from cloudhub.v1.link_pb2 import CloseReason
from services.dispatcher.outbox.schema import SCHEMA
from services.dispatcher.upstream.settings import UpstreamSettings
from tests.support.postgres import Databases
from tests.support.upstream import Hub, event, open_hub, upload


@pytest.fixture(params=["sqlite", "postgresql"], autouse=True)
async def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here runs on both engines."""
    if request.param == "postgresql":
        databases: Databases = request.getfixturevalue("databases")
        url = await databases.fresh(SCHEMA)
        monkeypatch.setattr("tests.support.upstream.database_url", lambda folder: url)
    return str(request.param)


async def rows(hub: Hub, node_id: str) -> int:
    """A node's uploads on disk."""
    query = select(func.count()).select_from(hub.table).where(hub.table.c.node_id == node_id)
    return await hub.store.read(lambda connection: connection.execute(query).scalar_one())


async def answers(hub: Hub, node_id: str, count: int) -> list[str]:
    """What the node's first uploads were answered, in order: "OK", or the text of an error."""

    def found() -> list[str]:
        return [
            message.content.decode().strip('"') for node, _, message in hub.edge.answers if node == node_id
        ]

    await hub.edge.until(lambda: len(found()) >= count)
    return found()


async def stores_at_once(hub: Hub, node_id: str, number: int = 0) -> None:
    """Another node's upload is stored and answered, and its link neither paused nor closed."""
    hub.receive(node_id, 9, upload(number, sync=True))
    assert await answers(hub, node_id, 1) == ["OK"]
    assert not [one for one in hub.edge.pauses if one[0] == node_id]
    assert not [one for one in hub.edge.closes if one[0] == node_id]


async def test_a_node_whose_share_is_full_is_told_and_may_repeat_later(tmp_path: Path) -> None:
    """C46: uploads that ask for an answer get one at once; nothing pauses, so its acknowledgements pass."""
    settings = UpstreamSettings(max_node_upload_rows=3)
    async with open_hub(tmp_path, settings=settings) as hub:
        for number in range(5):
            hub.receive("edge-1", 5, upload(number, sync=True), frame=number)
        told = await answers(hub, "edge-1", 5)
        assert told[:3] == ["OK"] * 3
        assert told[3] == told[4]
        assert told[3].startswith(
            "no more uploads of this node are kept until subscribers take some: at most 3"
        )
        assert await rows(hub, "edge-1") == 3
        assert hub.edge.pauses == []
        assert sorted(frame for _, _, frame in hub.edge.safe) == list(range(5)), "connectors may forget them"
        assert hub.metric("dropped_total", reason="stored_node_messages") == 2
        await stores_at_once(hub, "edge-2")
        async with hub.subscriber("router") as cloud:
            await cloud.take(4)
            await hub.until(lambda: hub.metric("uploads_settled_total") == 4)
            for number in (3, 4):
                hub.receive("edge-1", 5, upload(number, sync=True))
            assert (await answers(hub, "edge-1", 7))[5:] == ["OK", "OK"]
            assert [one.message.id for one in await cloud.take(2)] == ["upload-3", "upload-4"]


async def test_a_repeat_of_what_is_stored_needs_no_room(tmp_path: Path) -> None:
    """C46: an edge that missed the answer gets it, though its share is full."""
    async with open_hub(tmp_path, settings=UpstreamSettings(max_node_upload_rows=1)) as hub:
        hub.receive("edge-1", 5, upload(1, sync=True))
        hub.receive("edge-1", 5, upload(2, sync=True))
        hub.receive("edge-1", 5, upload(1, sync=True))
        told = await answers(hub, "edge-1", 3)
        assert told[0] == told[2] == "OK"
        assert told[1] != "OK"
        assert await rows(hub, "edge-1") == 1


async def test_a_link_whose_uploads_ask_for_no_answer_pauses_alone_until_there_is_room(
    tmp_path: Path,
) -> None:
    """C46: nothing is lost, the order stands, and other nodes go on."""
    async with open_hub(tmp_path, settings=UpstreamSettings(max_node_upload_rows=3)) as hub:
        for number in range(8):
            hub.receive("edge-1", 5, upload(number))
        await hub.edge.until(lambda: hub.edge.pauses == [("edge-1", 5, True)])
        await stores_at_once(hub, "edge-2", 100)
        assert await rows(hub, "edge-1") == 3
        assert hub.metric("uploads_nodes_full") == 1
        async with hub.subscriber("router") as cloud:
            got = await cloud.take(9)
        assert [int(one.message.content) for one in got if one.node_id == "edge-1"] == list(range(8))
        await hub.edge.until(lambda: hub.edge.pauses[-1] == ("edge-1", 5, False))
        assert hub.edge.closes == []


async def test_a_share_is_bounded_in_bytes_as_well(tmp_path: Path) -> None:
    """C46."""
    async with open_hub(tmp_path, settings=UpstreamSettings(max_node_upload_bytes=100_000)) as hub:
        for number in range(30):
            large = upload(number, sync=True)
            large.content = b'"' + b"x" * 10_000 + b'"'
            hub.receive("edge-1", 5, large)
        told = await answers(hub, "edge-1", 30)
        assert told.count("OK") == 9
        assert 90_000 < hub.metric("uploads_bytes") <= 100_000
        assert hub.metric("dropped_total", reason="stored_node_bytes") == 21
        await stores_at_once(hub, "edge-2")


async def test_few_nodes_cannot_use_the_store_up(tmp_path: Path) -> None:
    """C46: greedy ones get as much as they leave; one that has nothing always finds room."""
    async with open_hub(tmp_path, settings=UpstreamSettings(max_upload_rows=80)) as hub:
        for node in range(3):
            for number in range(40):
                hub.receive(f"greedy-{node}", 5, upload(number, sync=True))
        for node in range(3):
            await answers(hub, f"greedy-{node}", 40)
        shares = [await rows(hub, f"greedy-{node}") for node in range(3)]
        assert 40 <= sum(shares) <= 60
        assert min(shares) >= 5
        assert hub.metric("dropped_total", reason="stored_total_messages") == 120 - sum(shares)
        for node in range(20):
            await stores_at_once(hub, f"modest-{node}")


async def test_a_link_that_waited_in_vain_is_closed_and_what_it_left_is_gone(tmp_path: Path) -> None:
    """C46: with 1013's reason; another node's link is not, however long that one waits."""
    settings = UpstreamSettings(max_node_upload_rows=2, upload_pause_seconds=0.2)
    async with open_hub(tmp_path, settings=settings) as hub:
        for number in range(4):
            hub.receive("edge-1", 5, upload(number))
        await hub.edge.until(lambda: bool(hub.edge.closes))
        ((node_id, epoch, reason, detail),) = hub.edge.closes
        assert (node_id, epoch, reason) == ("edge-1", 5, CloseReason.CLOSE_REASON_OVERLOADED)
        assert detail.startswith("uploads found no room for 0.2 s: no more uploads of this node are kept")
        hub.upstream.session_closed(event("edge-1", 5, "disconnected"))
        assert hub.metric("dropped_total", reason="stored_no_room") == 2
        await stores_at_once(hub, "edge-2")
        async with hub.subscriber("router") as cloud:
            got = await cloud.take(3)
        assert [one.message.id for one in got if one.node_id == "edge-1"] == ["upload-0", "upload-1"]


async def test_a_share_is_what_is_on_disk_after_a_restart_too(tmp_path: Path) -> None:
    """C46: a process that dies forgets no upload, and so no share."""
    settings = UpstreamSettings(max_node_upload_rows=3)
    async with open_hub(tmp_path, settings=settings) as hub:
        for number in range(3):
            hub.receive("edge-1", 5, upload(number, sync=True))
        await answers(hub, "edge-1", 3)
        await hub.crash()
    async with open_hub(tmp_path, settings=settings) as hub:
        hub.receive("edge-1", 6, upload(3, sync=True))
        assert (await answers(hub, "edge-1", 1))[0] != "OK"
        await stores_at_once(hub, "edge-2", 3)
        assert hub.metric("uploads_rows") == 4


async def test_a_node_has_one_share_at_all_dispatchers(tmp_path: Path, engine: str) -> None:
    """C46: its uploads count wherever its session was, and whoever holds them."""
    settings = UpstreamSettings(max_node_upload_rows=3)
    async with (
        open_hub(tmp_path, settings=settings, holder="d1", is_shared=engine == "postgresql") as first,
        second_hub(tmp_path, settings, engine, first) as second,
    ):
        for number in range(3):
            first.receive("edge-1", 5, upload(number, sync=True))
        await answers(first, "edge-1", 3)
        for number in range(3, 6):
            second.receive("edge-1", 6, upload(number, sync=True))
        second.receive("edge-1", 6, upload(0, sync=True))
        told = (await answers(second, "edge-1", 7 if second is first else 4))[-4:]
        assert "OK" not in told[:3]
        assert told[3] == "OK", "a repeat, stored by the other one"
        async with second.subscriber("router") as cloud:
            assert len(await cloud.take(3)) == 3, "taken over though nothing of it was stored here"


async def test_what_other_dispatchers_have_stored_counts_in_the_total(tmp_path: Path, engine: str) -> None:
    """C46: of what the first has left free, the second one's node gets half."""
    settings = UpstreamSettings(max_upload_rows=80)
    async with open_hub(tmp_path, settings=settings, holder="d1", is_shared=engine == "postgresql") as first:
        for number in range(40):
            first.receive("edge-1", 5, upload(number, sync=True))
        assert (await answers(first, "edge-1", 40)).count("OK") == 30
        async with second_hub(tmp_path, settings, engine, first) as second:
            for number in range(40):
                second.receive("edge-2", 6, upload(number, sync=True))
            assert (await answers(second, "edge-2", 40)).count("OK") == 15
            await stores_at_once(second, "edge-3")


@asynccontextmanager
async def second_hub(folder: Path, settings: UpstreamSettings, engine: str, first: Hub) -> AsyncIterator[Hub]:
    """Another dispatcher over the same database, where one can be shared; else the first one."""
    if engine == "sqlite":
        yield first
        return
    async with open_hub(folder, settings=settings, holder="d2", is_shared=True) as second:
        yield second


async def test_a_neighbour_of_greedy_nodes_notices_nothing(tmp_path: Path) -> None:
    """C46: its uploads are answered as fast as ever while five others send what nobody takes."""
    settings = UpstreamSettings(max_node_upload_rows=200, upload_pause_seconds=3600.0)
    async with open_hub(tmp_path, settings=settings) as hub:

        async def seconds(node_id: str) -> list[float]:
            found = []
            for number in range(100):
                began = time.monotonic()
                hub.receive(node_id, 9, upload(number, sync=True))
                await answers(hub, node_id, number + 1)
                found.append(time.monotonic() - began)
            return sorted(found)

        idle = await seconds("calm-0")

        async def greed(node_id: str) -> None:
            for number in range(2000):
                hub.receive(node_id, 5, upload(number, sync=bool(number % 2)))
                await asyncio.sleep(0.0005)

        async with asyncio.TaskGroup() as group:
            greedy = [group.create_task(greed(f"greedy-{node}")) for node in range(5)]
            beside = await seconds("calm-1")
            for task in greedy:
                task.cancel()
        assert set(await answers(hub, "calm-1", 100)) == {"OK"}
        assert {node for node, _, paused in hub.edge.pauses if paused} == {
            f"greedy-{node}" for node in range(5)
        }
        print(f"p50 {idle[50]:.4f} -> {beside[50]:.4f}, p99 {idle[98]:.4f} -> {beside[98]:.4f}")
        assert beside[98] < idle[98] + 1.0


async def test_what_was_handed_on_takes_no_room(tmp_path: Path) -> None:
    """C46: rows, bytes and the age of the oldest are told, and are nothing again when all is taken."""
    async with open_hub(tmp_path, settings=UpstreamSettings(max_node_upload_rows=50)) as hub:
        async with hub.subscriber("router") as cloud:
            for number in range(300):
                hub.receive("edge-1", 5, upload(number))
            assert len(await cloud.take(300)) == 300
            await hub.until(lambda: hub.metric("uploads_settled_total") == 300)
            hub.receive("marker", 1, upload(0, sync=True))
            await answers(hub, "marker", 1)
            await cloud.take(1)
        assert await rows(hub, "edge-1") == 0
        assert hub.metric("uploads_rows") <= 1
        assert hub.metric("uploads_bytes") < 200
