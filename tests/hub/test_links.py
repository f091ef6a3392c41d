"""Links and sessions of a whole hub."""

import asyncio
import gc
import os
import time
from pathlib import Path

import pytest
from websockets.exceptions import InvalidStatus

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.link_pb2 import (
    CLOSE_REASON_EDGE_CLOSED,
    CLOSE_REASON_EVICTED,
    CLOSE_REASON_KEEPALIVE_TIMEOUT,
)
from tests.support.certs import TestAuthority
from tests.support.edge_peer import PROJECT, EdgePeers, frame_bytes, keepalive, request_bytes
from tests.support.hub import RunningHub, StockEdge, request, running_hub
from tests.support.processes import eventually

ACTIVE, CLOSED = sessions_pb2.SESSION_STATE_ACTIVE, sessions_pb2.SESSION_STATE_CLOSED


async def receives(hub: RunningHub, edge: StockEdge, version: int) -> None:
    """A message published now reaches the edge."""
    await hub.accept(request(edge.node_id, name="probe", version=version))
    message = await edge.next()
    assert message["header"]["resourceversion"] == str(version)
    await edge.answer(message)
    await hub.until_state(edge.node_id, "uid-probe", pb.DELIVERY_STATE_ACKNOWLEDGED)


@pytest.mark.parametrize("how", ["close", "cut", "stay"])
async def test_a_second_link_takes_over_whatever_becomes_of_the_first(
    tmp_path: Path, authority: TestAuthority, how: str
) -> None:
    """C1: the first ends before, while and after the second opens; the second gets the next message."""
    async with running_hub(tmp_path, authority) as hub:
        for round_number in range(5):
            first = await hub.open_edge()
            if how == "close":
                ending = asyncio.create_task(first.connection.close())
            elif how == "cut":
                first.cut()
            second = await hub.open_edge()
            if how == "close":
                await ending
            elif how == "stay":
                code, text = await first.closed()
                assert (code, text.split(":")[0]) == (4001, "superseded by a newer link of this node")
            await receives(hub, second, 2 * round_number + 1)
            session = await hub.session("edge-1")
            assert session.state == ACTIVE
            await receives(hub, second, 2 * round_number + 2)
            assert (await hub.session("edge-1")).epoch == session.epoch
            await eventually(lambda: len(hub.connector.app.links) == 1)
            await second.connection.close()


async def test_simultaneous_links_of_one_node_leave_one(tmp_path: Path, authority: TestAuthority) -> None:
    """C1, invariant 4: whichever opened last is the node's session and gets the message."""
    async with running_hub(tmp_path, authority) as hub:
        edges = await asyncio.gather(*(hub.open_edge() for _ in range(6)), return_exceptions=True)
        opened = [edge for edge in edges if isinstance(edge, StockEdge)]
        assert opened
        await eventually(lambda: len(hub.connector.app.links) == 1)
        await hub.accept(request(version=1))
        live = await hub.session("edge-1")
        assert live.state == ACTIVE
        reading = {asyncio.create_task(edge.next(), name=str(n)): edge for n, edge in enumerate(opened)}
        got = []
        for task in reading:
            await asyncio.wait({task})
            if task.exception() is None:
                got.append(reading[task])
        assert len(got) == 1, "one of the links is live"
        for edge in opened:
            await edge.connection.close()


async def test_after_two_hundred_reconnects_everything_is_that_of_one_link(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C2, invariant 6."""
    async with running_hub(tmp_path, authority) as hub:

        async def quiet() -> None:
            await eventually(lambda: not hub.dispatcher.app.delivery.sessions and not hub.connector.app.links)

        def figures() -> tuple[int, int]:
            gc.collect()
            return len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))  # noqa: PTH208

        for number in range(220):
            if number == 20:
                await quiet()
                before = figures()
            edge = await hub.open_edge()
            if number % 2:
                edge.cut()
            else:
                await edge.connection.close()
        await quiet()
        # The last connections' descriptors go with their transports, a moment later.
        await eventually(lambda: figures() <= before, 10, "as many tasks and descriptors as before")
        assert hub.metric("dispatcher", "sessions") == 0
        assert hub.metric("connector", "connections") == 0
        async with hub.edge() as edge:
            await receives(hub, edge, 1)
            assert list(hub.dispatcher.app.delivery.sessions) == ["edge-1"]
            assert len(hub.connector.app.links) == 1
        page = await hub.sessions_admin.ListSessions(
            sessions_pb2.ListSessionsRequest(states=[ACTIVE, CLOSED]), timeout=5
        )
        assert len(page.sessions) == 1, "one row per node, however often it came"


async def test_a_node_too_many_is_refused_and_says_when_to_come_back(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C5, C7: 429 with Retry-After; a limit set at run time; nothing stays of a refused link."""
    async with running_hub(tmp_path, authority, sessions={"limit_retry_seconds": 7}) as hub:
        await hub.sessions_admin.SetLimits(sessions_pb2.SetLimitsRequest(total=1), timeout=5)
        async with hub.edge("edge-1"):
            with pytest.raises(InvalidStatus) as refused:
                await hub.open_edge("edge-2")
            response = refused.value.response
            assert response.status_code == 429
            assert response.headers["Retry-After"] == "7"
            assert b"1" in (response.body or b"")
            await eventually(lambda: hub.connector.app.listener.connections == 1)
            # A node that is counted takes its own session over at the limit.
            async with hub.edge("edge-1") as again:
                await receives(hub, again, 1)
        # A node that leaves makes room at once.
        await hub.until_session("edge-1", lambda session: session.state == CLOSED)
        async with hub.edge("edge-2") as other:
            await receives(hub, other, 1)


async def test_what_a_refused_edge_sends_is_not_looked_at(tmp_path: Path, authority: TestAuthority) -> None:
    """C5: frames sent along with the upgrade request, before its answer."""
    async with running_hub(tmp_path, authority) as hub:
        await hub.sessions_admin.SetLimits(sessions_pb2.SetLimitsRequest(total=1), timeout=5)
        async with hub.edge("edge-1"), hub.subscriber("router") as cloud:
            reader, writer = await hub.peers.raw("edge-2")
            # A masked text frame with an empty mask: {"header":...} of an upload.
            payload = b'{"header":{"msg_id":"m","timestamp":1},"route":{"group":"user","operation":"upload"}}'
            frame = b"\x81" + bytes([0x80 | len(payload)]) + b"\0\0\0\0" + payload
            writer.write(request_bytes("edge-2") + frame)
            async with asyncio.timeout(10):
                answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 429 ")
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
            async with hub.edge("edge-1") as edge:
                await edge.send("upload", "x", "mine", group="user")
                delivery = await cloud.until(lambda one: one.message.operation == "upload")
                assert (delivery.node_id, delivery.message.content) == ("edge-1", b'"mine"')


async def test_an_edge_whose_beat_is_slower_than_the_keepalive_keeps_its_link(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """`heartbeat: 60`: a stock edge answers pings, and nobody else asks it for a sign of life so often."""
    seconds = 0.6
    async with (
        running_hub(tmp_path, authority, dispatcher={"keepalive_seconds": seconds}) as hub,
        hub.edge() as edge,
    ):
        epoch = (await hub.session("edge-1")).epoch
        # The library answers pings; nothing else is said.
        await edge.gets_nothing(6 * seconds)
        assert (await hub.session("edge-1")).epoch == epoch
        await hub.accept(request())
        await edge.answer(await edge.next())
        assert hub.metric("dispatcher", "sessions_closed_total", reason="keepalive_timeout") == 0


async def test_keepalives_keep_a_session_and_silence_ends_it(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C9: a gap over the interval, with no answer to the one ping, ends it with reason keepalive timeout."""
    seconds = 2.0
    async with running_hub(tmp_path, authority, dispatcher={"keepalive_seconds": seconds}) as hub:
        reader, writer = await EdgePeers(authority, hub.connector.app.edge_port).upgraded()
        epoch = (await hub.session("edge-1")).epoch
        for _ in range(6):
            writer.write(frame_bytes(keepalive()))
            await asyncio.sleep(seconds / 3)
        assert (await hub.session("edge-1")).epoch == epoch
        writer.write(frame_bytes(keepalive()))
        began = time.monotonic()
        async with asyncio.timeout(3 * seconds):
            said = await reader.read()
            silent = time.monotonic() - began
        # A ping without content, and the close; under load it may be asked again.
        assert said.startswith(b"\x89\x00")
        close = said.lstrip(b"\x89\x00")
        assert (close[0], int.from_bytes(close[2:4], "big")) == (0x88, 4008)
        assert b"no byte for" in said
        assert silent > seconds  # `dispatcher/test_keepalive.py` has the whole time, on a clock of its own
        ended = await hub.until_session("edge-1", lambda session: session.state == CLOSED)
        assert ended.close_reason == CLOSE_REASON_KEEPALIVE_TIMEOUT
        assert hub.metric("dispatcher", "sessions_closed_total", reason="keepalive_timeout") == 1
        writer.transport.abort()


@pytest.mark.parametrize(("says", "window"), [("", 100), ("150", 150), ("many", 100), ("65536", 160)])
async def test_a_stock_edge_is_sent_no_more_at_a_time_than_its_queue_holds(
    tmp_path: Path, authority: TestAuthority, says: str, window: int
) -> None:
    """Its inbound queue of 100 drops the oldest without a word, whatever the window is set to; an edge that
    takes more says so."""
    changes = {"window_messages": 160, "window_bytes": 16 * 1024 * 1024, "ack_seconds": 600}
    changes |= {"ack_most_seconds": 600}
    headers = {"Node_id": "edge-1", "Project_id": PROJECT} | ({"Cloudhub-Window": says} if says else {})
    async with (
        running_hub(tmp_path, authority, dispatcher=changes) as hub,
        hub.edge(headers=headers) as edge,
    ):
        await hub.accept(*(request(name=f"c{number}") for number in range(200)))
        first = await edge.take(window, 20)
        await edge.gets_nothing(0.3)
        await edge.answer(first[0])
        await edge.next(10)


@pytest.mark.parametrize("transport", ["websocket", "quic"])
async def test_an_agent_with_a_slow_beat_keeps_its_link(
    tmp_path: Path, authority: TestAuthority, transport: str
) -> None:
    """C9 with our agent, over both transports: it beats every seventh keepalive."""
    changes = {"keepalive_seconds": 10.0, "silence_seconds": 40.0}
    async with (
        running_hub(tmp_path, authority, dispatcher={"keepalive_seconds": 1.5}) as hub,
        hub.fleet("edge-1", transport=transport, **changes) as fleet,
    ):
        epoch = (await hub.session("edge-1")).epoch
        await asyncio.sleep(5.0)
        assert (await hub.session("edge-1")).epoch == epoch
        assert fleet["edge-1"].counters.links_opened == 1


async def test_an_acknowledgement_for_a_session_that_is_gone_changes_nothing(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C9, C24: the old link's late words; the message is sent again over the new one."""
    async with running_hub(tmp_path, authority) as hub:
        async with hub.edge() as edge:
            await hub.accept(request(version=1, message_id="m1"))
            late = await edge.next()
        await hub.until_session("edge-1", lambda session: session.state == CLOSED)
        # On the connector's wire to the dispatcher the former epoch is what makes it late; on a new link
        # of another node it is an acknowledgement of nothing.
        async with hub.edge("edge-2") as other:
            await other.answer(late)
            await eventually(lambda: hub.metric("dispatcher", "ignored_total", reason="unknown_message") == 1)
        explained = await hub.explain("edge-1", key="uid-cm1")
        assert explained.state == pb.DELIVERY_STATE_PENDING
        async with hub.edge() as edge:
            assert (await edge.next())["header"]["msg_id"] == "m1"


async def test_an_evicted_edge_is_told_and_comes_back(tmp_path: Path, authority: TestAuthority) -> None:
    """EvictSession: operation `disconnected`, link closed with reason EVICTED, back by itself."""
    async with running_hub(tmp_path, authority) as hub:
        async with hub.edge() as edge:
            before = await hub.session("edge-1")
            await hub.sessions_admin.EvictSession(
                sessions_pb2.EvictSessionRequest(node_id="edge-1"), timeout=5
            )
            told = await edge.next()
            assert (told["route"]["operation"], told["route"]["source"]) == ("disconnected", "cloudhub")
            assert told["content"]["client_id"] == "edge-1"
            code, text = await edge.closed()
            assert (code, text.split(":")[0]) == (4002, "evicted by an operator")
        ended = await hub.until_session("edge-1", lambda session: session.state == CLOSED)
        assert (ended.epoch, ended.close_reason) == (before.epoch, CLOSE_REASON_EVICTED)
        async with hub.fleet("edge-9") as fleet:
            first = await hub.session("edge-9")
            await hub.sessions_admin.EvictSession(
                sessions_pb2.EvictSessionRequest(node_id="edge-9"), timeout=5
            )
            await eventually(lambda: fleet["edge-9"].counters.links_opened == 2)
            back = await hub.session("edge-9")
            assert back.state == ACTIVE
            assert back.epoch > first.epoch


async def test_a_clean_close_is_told_as_such(tmp_path: Path, authority: TestAuthority) -> None:
    async with running_hub(tmp_path, authority) as hub:
        async with hub.edge():
            assert [link.node_id for link in await hub.links()] == ["edge-1"]
        ended = await hub.until_session("edge-1", lambda session: session.state == CLOSED)
        assert ended.close_reason == CLOSE_REASON_EDGE_CLOSED
        assert await hub.links() == []
