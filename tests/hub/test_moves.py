"""Links that move between dispatchers of a whole hub: the edge notices nothing."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub
from cloudhub.v1.link_pb2 import (
    CLOSE_REASON_CONNECTOR_LOST,
    CLOSE_REASON_EDGE_CLOSED,
    CLOSE_REASON_EVICTED,
)
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.sessions_pb2_grpc import SessionsServiceStub
from services.connector.dispatcher_stream import DispatcherStream
from services.dispatcher.app import RunningApp
from tests.support.certs import TestAuthority
from tests.support.hub import Part, RunningHub, request, running_hub
from tests.support.processes import eventually

ACTIVE, CLOSED = sessions_pb2.SESSION_STATE_ACTIVE, sessions_pb2.SESSION_STATE_CLOSED
LEASE = {"lease_seconds": 1.0}


async def until_moved(hub: RunningHub, node_id: str, epoch: int) -> sessions_pb2.Session:
    """The session once it is ACTIVE under a later epoch and its dispatcher is ready."""
    session = await hub.until_session(node_id, lambda one: one.state == ACTIVE and one.epoch > epoch)
    await eventually(
        lambda: any(node_id in part.app.delivery.sessions for part in hub.dispatchers if part.runs)
    )
    return session


async def test_a_draining_dispatcher_hands_its_links_over(tmp_path: Path, authority: TestAuthority) -> None:
    """C37, rolling update: same WebSocket, same session, higher epoch, no connect or disconnect event; what
    was published before and what is published after arrives."""
    async with (
        running_hub(tmp_path, authority, dispatchers=2, shared_outbox=True) as hub,
        hub.edge() as edge,
    ):
        before = await hub.session("edge-1")
        holder = hub.holder("edge-1")
        (other,) = [part for part in hub.dispatchers if part is not holder]
        await hub.accept(request(name="before", version=1), through=holder.name)
        unanswered = await edge.next()
        await holder.stop()
        after = await until_moved(hub, "edge-1", before.epoch)
        assert after.dispatcher_id != before.dispatcher_id
        assert (after.opened_at, after.link) == (before.opened_at, before.link)
        again = await edge.next()
        assert again["header"]["msg_id"] == unanswered["header"]["msg_id"]
        await edge.answer(again)
        await hub.accept(request(name="after", version=1), through=other.name)
        later = await edge.next()
        assert later["route"]["resource"] == "default/configmap/after"
        await edge.answer(later)
        assert hub.metric("sessions", "closes_total", reason="dispatcher_lost") == 0
        assert hub.metric("sessions", "opens_total", outcome="opened") == 1
        assert hub.metric("connector", "transfers_total", outcome="moved") == 1
        assert hub.metric("connector", "links_closed_total", reason="dispatcher_lost") == 0


async def test_a_restart_of_the_only_dispatcher_keeps_its_links(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Nobody can take them meanwhile: the links stay up and are transferred when it is back."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        before = await hub.session("edge-1")
        await hub.dispatcher.stop()
        assert (await hub.session("edge-1")).state == sessions_pb2.SESSION_STATE_ORPHANED
        await edge.keepalive()
        await hub.dispatcher.start()
        await until_moved(hub, "edge-1", before.epoch)
        await hub.accept(request(version=1))
        await edge.answer(await edge.next())
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)


async def test_a_fleet_does_not_notice_that_its_dispatcher_went(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C34: published while ownership moves, through either dispatcher; every node ends with the newest."""
    nodes = [f"edge-{number}" for number in range(20)]
    async with (
        running_hub(tmp_path, authority, dispatchers=2, shared_outbox=True) as hub,
        hub.fleet(*nodes) as fleet,
    ):
        first, second = hub.dispatchers
        await hub.accept(request(*nodes, version=1), through=first.name)
        stopping = asyncio.create_task(first.stop())
        for version in range(2, 8):
            await hub.accept(request(*nodes, version=version), through=second.name)
        await stopping
        for node_id in nodes:
            await until_state(hub, second.name, node_id, "7")
        assert all(fleet[node_id].counters.links_opened == 1 for node_id in nodes)
        assert len(hub.connector.app.links) == len(nodes)
        assert hub.metric("sessions", "opens_total", outcome="opened") == len(nodes)


async def until_state(hub: RunningHub, dispatcher: str, node_id: str, version: str) -> None:
    """Returns when the node has acknowledged this version of cm1. A dispatcher reads what another one
    committed when it takes a node over, or when it is told."""
    admin: Any = DispatcherAdminStub(await hub.channel(dispatcher))
    asked = pb.ExplainDeliveryRequest(node_id=node_id, object_key="uid-cm1")
    explained: pb.ExplainDeliveryResponse | None = None
    try:
        async with asyncio.timeout(15):
            while explained is None or explained.object.acknowledged_version != version:
                explained = await admin.ExplainDelivery(asked, timeout=5)
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{node_id} has not acknowledged version {version}: {explained}") from None


def break_stream(hub: RunningHub, node_id: str) -> None:
    """The stream of the node's connector ends, though both sides live."""
    hub.holder(node_id).app.delivery.sessions[node_id].stream.finish()


async def test_a_link_whose_stream_broke_comes_back_to_the_same_dispatcher(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C37, C40: what was in flight is sent again, an answer that waits too; no events."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge, hub.subscriber("m") as cloud:
        before = await hub.session("edge-1")
        await hub.accept(request(version=1), answer_of("r1"))
        sent = {message["header"]["msg_id"] for message in await edge.take(2)}
        break_stream(hub, "edge-1")
        after = await until_moved(hub, "edge-1", before.epoch)
        assert after.dispatcher_id == before.dispatcher_id
        again = await edge.take(2)
        assert {message["header"]["msg_id"] for message in again} == sent
        for message in again:
            await edge.answer(message)
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        await edge.send("update", "x/y/z", "up", source="twin")
        assert hub.metric("dispatcher", "sessions_closed_total", reason="transferred") == 1
        assert hub.metric("dispatcher", "transfers_total", verdict="admitted") == 1
        assert hub.metric("sessions", "opens_total", outcome="opened") == 1
        assert cloud is not None


def answer_of(parent_id: str) -> pb.PublishRequest:
    """A cloud program's answer to a request of the edge, to be acknowledged."""
    return request(
        name="answer",
        operation="response",
        parent_id=parent_id,
        ack_mode=pb.ACK_MODE_ACK,
        version="",
    )


async def test_uploads_go_on_over_a_move(tmp_path: Path, authority: TestAuthority) -> None:
    """C31: an edge repeats what was not answered, as after a cut; on the same link all are answered."""
    async with (
        running_hub(tmp_path, authority, dispatchers=2) as hub,
        hub.edge() as edge,
    ):
        before = await hub.session("edge-1")
        stopping = asyncio.create_task(hub.holder("edge-1").stop())
        unanswered: dict[str, int] = {}
        number = 0
        while not stopping.done():
            unanswered[await edge.send("upload", "x", number, group="user", sync=True)] = number
            number += 1
            await asyncio.sleep(0.005)
        await stopping
        await until_moved(hub, "edge-1", before.epoch)
        for message_id, content in list(unanswered.items()):
            await edge.send("upload", "x", content, group="user", sync=True, message_id=message_id)
        async with asyncio.timeout(15):
            while unanswered:
                unanswered.pop((await edge.next(15))["header"].get("parent_msg_id"), None)


async def test_an_eviction_while_nobody_has_the_link_wins(tmp_path: Path, authority: TestAuthority) -> None:
    """C37: the link that asks to be transferred is closed as evicted, and may come back."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        await hub.dispatcher.stop()
        await hub.sessions_admin.EvictSession(sessions_pb2.EvictSessionRequest(node_id="edge-1"), timeout=5)
        await hub.dispatcher.start()
        assert (await edge.closed())[0] == 4002
        ended = await hub.session("edge-1")
        assert (ended.state, ended.close_reason) == (CLOSED, CLOSE_REASON_EVICTED)
        async with hub.edge() as again:
            await hub.accept(request(version=1))
            await again.next()


async def test_a_newer_link_of_the_node_wins_over_one_that_looks_for_a_dispatcher(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C1, C37: through another connector, before or after the transfer; the older link is closed."""
    async with running_hub(tmp_path, authority, connectors=2) as hub, hub.edge() as edge:
        await hub.dispatcher.stop()
        await hub.dispatcher.start()
        await hub.attached()
        async with hub.edge(at="connector-2") as newer:
            assert (await edge.closed())[0] == 4001
            await hub.accept(request(version=1))
            assert (await newer.next())["header"]["resourceversion"] == "1"
            assert len(hub.connectors[0].app.links) == 0


async def test_while_sessions_is_away_links_stay_where_they_are(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C36: a dispatcher drains meanwhile; its links wait without one, and move when sessions is back."""
    settings = {"sessions_seconds": 2.0}
    async with (
        running_hub(tmp_path, authority, dispatchers=2, shared_outbox=True, dispatcher=settings) as hub,
        hub.edge() as edge,
    ):
        before = await hub.session("edge-1")
        holder = hub.holder("edge-1")
        (other,) = [part for part in hub.dispatchers if part is not holder]
        await hub.sessions.stop()
        await holder.stop()
        await edge.keepalive()
        await eventually(lambda: hub.metric("connector", "transfers_total", outcome="unavailable") >= 1)
        assert len(hub.connector.app.links) == 1
        await hub.sessions.start()
        await eventually(lambda: "edge-1" in other.app.delivery.sessions)
        await hub.accept(request(version=1), through=other.name)
        await edge.answer(await edge.next())
        assert (await hub.session("edge-1")).epoch > before.epoch


async def test_a_dispatcher_that_lost_a_session_without_knowing_gives_the_link_up(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C36: the registry gave it to one that died before its word came; the link finds its way back."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        before = await hub.session("edge-1")
        sessions: Any = SessionsServiceStub(await hub.channel("sessions"))
        wanted = sessions_pb2.TransferSession(
            node_id="edge-1", epoch=before.epoch, connector_id=before.connector_id, link=before.link
        )
        answer = await sessions.TransferSessions(
            sessions_pb2.TransferSessionsRequest(dispatcher_id="ghost", sessions=[wanted]), timeout=5
        )
        (granted,) = answer.verdicts
        assert granted.epoch > before.epoch
        after = await until_moved(hub, "edge-1", granted.epoch)
        assert after.dispatcher_id == before.dispatcher_id
        await hub.accept(request(version=1))
        await edge.answer(await edge.next())
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)


async def test_a_session_without_its_connector_takes_nothing_and_ends_after_a_lease(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C26, C8: NO-ACK has no session; `disconnected` is told once, with its reason."""
    async with running_hub(tmp_path, authority, dispatcher=LEASE) as hub, hub.edge() as edge:
        async with hub.subscriber("edgecontroller") as cloud:
            connected = await cloud.until(lambda one: one.message.operation == "connected")
            # A connector that is gone for good: its process takes no part any more.
            stream = hub.holder("edge-1").app.delivery.sessions["edge-1"].stream
            with mock.patch.object(DispatcherStream, "fit", False):
                stream.finish()
                await eventually(lambda: not hub.dispatcher.app.delivery.sessions)
                (outcome,) = await hub.publish(request(ack_mode=pb.ACK_MODE_NO_ACK))
                assert outcome.outcome == pb.OUTCOME_NO_SESSION
                ended = await hub.until_session("edge-1", lambda one: one.state == CLOSED)
            assert ended.close_reason == CLOSE_REASON_CONNECTOR_LOST
            told = await cloud.until(lambda one: one.message.operation == "disconnected")
            assert told.epoch == connected.epoch
            assert hub.metric("dispatcher", "sessions_closed_total", reason="connector_lost") == 1
        # The connector was there after all: its link asks once it looks at its dispatchers again.
        (stream_again,) = hub.connector.app.dispatchers.streams
        hub.connector.app.fitness_changed(stream_again)
        assert (await edge.closed())[0] == 1012


async def test_what_a_former_dispatcher_still_records_is_refused(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C36: it cannot settle a message of a link that it no longer has; the present one does."""
    async with (
        running_hub(tmp_path, authority, dispatchers=2, shared_outbox=True) as hub,
        hub.edge() as edge,
    ):
        before = await hub.session("edge-1")
        former = hub.holder("edge-1")
        (other,) = [part for part in hub.dispatchers if part is not former]
        await hub.accept(request(version=1, message_id="m1"), through=former.name)
        await edge.next()
        late = former.app.delivery.sessions["edge-1"]
        with unfit(hub, former):
            break_stream(hub, "edge-1")
            await until_moved(hub, "edge-1", before.epoch)
            assert hub.holder("edge-1") is other
            former.app.delivery.acknowledged(late, Message(parent_id="m1"))
            await former.app.delivery.writer.flush()
            assert hub.metric("dispatcher", "fenced_total") == 1
            again = await edge.next()
            assert again["header"]["msg_id"] == "m1", "it is still pending"
            await edge.answer(again)
            await until_state(hub, other.name, "edge-1", "1")


@contextmanager
def unfit(hub: RunningHub, dispatcher: Part[RunningApp]) -> Iterator[None]:
    """The connector takes this dispatcher for one that cannot have links."""
    address = hub.address(dispatcher.name)

    def judged(stream: DispatcherStream) -> bool:
        return stream.attached and stream.address != address

    with mock.patch.object(DispatcherStream, "fit", property(judged)):
        yield


async def test_while_the_store_is_away_a_link_stays_without_harm_and_moves_when_it_is_back(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C37: the registry has granted, the rows cannot be claimed: asked again until they can."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        before = await hub.session("edge-1")
        await hub.accept(request(version=1))
        await edge.next()
        with hub.locked_database("dispatcher"):
            break_stream(hub, "edge-1")
            await eventually(lambda: hub.metric("dispatcher", "transfers_total", verdict="unavailable") >= 1)
            assert len(hub.connector.app.links) == 1
        await until_moved(hub, "edge-1", before.epoch)
        await eventually(lambda: hub.metric("connector", "transfers_total", outcome="moved") == 1)
        await edge.answer(await edge.next())
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        assert hub.metric("sessions", "opens_total", outcome="opened") == 1


async def test_an_edge_that_leaves_while_there_is_no_dispatcher_is_told_by_the_next_one(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C8, C37: the reason is the link's, the slot is free, `disconnected` comes long before any lease is
    over."""
    async with running_hub(tmp_path, authority) as hub:
        edge = await hub.open_edge()
        await hub.session("edge-1")
        await hub.dispatcher.stop()
        await edge.connection.close()
        await eventually(lambda: not hub.connector.app.links)
        await hub.dispatcher.start()
        async with hub.subscriber("edgecontroller") as subscriber:
            closed = await hub.until_session("edge-1", lambda one: one.state == CLOSED)
            assert closed.close_reason == CLOSE_REASON_EDGE_CLOSED
            operations = [(await subscriber.next()).message.operation for _ in range(2)]
            assert operations == ["connected", "disconnected"]
        assert hub.metric("dispatcher", "sessions") == 0
