"""A message over which its edge ends link after link, through a whole hub."""

import asyncio
import json
import time
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from cloudhub.v1 import dispatcher_pb2 as pb
from edge.store import read_set_aside
from tests.support.certs import TestAuthority
from tests.support.figures import Figures
from tests.support.hub import RunningHub, StockEdge, request, running_hub
from tests.support.processes import eventually
from tests.support.strangers import shown

PARKED, ACKNOWLEDGED = pb.DELIVERY_STATE_PARKED, pb.DELIVERY_STATE_ACKNOWLEDGED


async def take_it_badly(edge: StockEdge, poison: str, code: int) -> bool:
    """Acknowledges what comes until the poison does, and ends the link over it; False if it did not come."""
    while True:
        try:
            message = await edge.next(6.0)
        except AssertionError:
            return False
        except ConnectionClosed:
            return True
        if message["route"]["resource"].endswith(poison):
            if code:
                await edge.connection.close(code)
            else:
                edge.cut()
            return True
        await edge.answer(message)


async def dial(hub: RunningHub) -> StockEdge:
    """A link, as soon as a dispatcher is there again."""
    async with asyncio.timeout(10):
        while True:
            try:
                return await hub.open_edge("edge-1")
            except InvalidStatus:
                await asyncio.sleep(0.05)


async def live_with_it(hub: RunningHub, poison: str, code: int, most_links: int) -> int:
    """How many links it took until the poison did not come any more."""
    for link in range(1, most_links + 1):
        edge = await dial(hub)
        try:
            if not await take_it_badly(edge, poison, code):
                return link
        finally:
            await edge.connection.close()
        if link == 3:
            dispatcher = hub.dispatchers[0]
            await dispatcher.stop()
            await dispatcher.start()
    return most_links + 1


async def latencies(hub: RunningHub, bystander: StockEdge, found: list[float]) -> None:
    """Publishes to a bystander without end, one message after the other."""
    version = 0
    while True:
        version += 1
        sent_at = time.perf_counter()
        (outcome,) = await hub.publish(request("edge-2", name="bystander", version=version))
        assert outcome.outcome == pb.OUTCOME_ACCEPTED
        await bystander.answer(await bystander.next())
        found.append(time.perf_counter() - sent_at)


@pytest.mark.parametrize("code", [0, 1009])
async def test_a_message_over_which_its_edge_ends_its_links_is_parked_and_told(
    tmp_path: Path, authority: TestAuthority, code: int
) -> None:
    """C42: in a bounded number of links, over a restart of the dispatcher; the messages behind it arrive."""
    async with running_hub(tmp_path, authority) as hub:
        for name in ("before", "poison", "after", "later"):
            await hub.accept(request("edge-1", name=name))
        assert await live_with_it(hub, "/poison", code, 12) == 6
        told = await hub.explain("edge-1", key="uid-poison")
        assert told.state == PARKED
        how = f"was closed with {code}" if code else "ended without a close frame"
        assert told.explanation == (
            "Parked: its edge ended 5 links in a row while it was the first unanswered message; "
            f"the last {how}. It waits for a newer version, an equal publish, Redeliver or its expiry."
        )
        attempts = [event.attempt for event in told.events if event.kind == "unacknowledged"]
        assert attempts == [2, 3, 4, 5]
        for name in ("before", "after", "later"):
            assert (await hub.explain("edge-1", key=f"uid-{name}")).state == ACKNOWLEDGED
        async with hub.edge("edge-1") as mended:
            await hub.accept(request("edge-1", name="poison", version=2))
            await mended.answer(await mended.next())
            await hub.until_state("edge-1", "uid-poison", ACKNOWLEDGED)


async def test_another_node_notices_nothing(
    tmp_path: Path, authority: TestAuthority, figures: Figures
) -> None:
    """C42: its messages take no longer while one node's links end again and again."""
    async with running_hub(tmp_path, authority) as hub, hub.edge("edge-2") as bystander:
        idle: list[float] = []
        running = asyncio.create_task(latencies(hub, bystander, idle))
        await asyncio.sleep(2)
        found = idle.copy()
        for name in ("poison", "after"):
            await hub.accept(request("edge-1", name=name))
        idle.clear()
        for _ in range(5):
            edge = await hub.open_edge("edge-1")
            assert await take_it_badly(edge, "/poison", 1009)
            await edge.connection.close()
        await hub.until_state("edge-1", "uid-poison", PARKED)
        running.cancel()
        await asyncio.wait([running])
        assert running.cancelled()
        assert len(idle) > 20
        figures(shown("publish to acknowledgement, a poison message elsewhere", sorted(found), sorted(idle)))
        idle_p99, p99 = (sorted(values)[len(values) * 99 // 100 - 1] for values in (found, idle))
        assert p99 < 4 * idle_p99 + 0.1


@pytest.mark.parametrize("transport", ["websocket", "quic"])
async def test_the_agent_sets_aside_what_a_hub_with_a_smaller_limit_ends_links_over(
    tmp_path: Path, authority: TestAuthority, transport: str
) -> None:
    """C43: told and counted; what is behind it arrives."""
    async with (
        running_hub(tmp_path, authority, connector={"frame_most_bytes": 20_000}) as hub,
        hub.subscriber("router") as router,
        hub.fleet("edge-1", transport=transport) as fleet,
    ):
        agent = fleet["edge-1"]
        for data in (b'"first"', b'"' + b"x" * 30_000 + b'"', b'"last"'):
            await agent.upload(data)
        uploads = [await router.until(lambda one: one.message.operation == "upload", 20) for _ in range(2)]
        got = [json.loads(one.message.content) for one in uploads]
        assert [content["data"] for content in got] == ["first", "last"]
        await eventually(lambda: not agent.uploads_waiting)
        assert fleet.total("uploads_set_aside") == 1
    (refused,) = read_set_aside(tmp_path / "edges.db")
    assert refused.upload.number == 2
    assert "1009" in refused.reason
