"""Links of real processes that outlive their dispatcher: killed, or only paused."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.link_pb2 import CLOSE_REASON_CONNECTOR_LOST
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from services.runtime.rpc import open_channel
from tests.e2e.load import object_request
from tests.support.edge_peer import EdgePeers
from tests.support.hub import StockEdge
from tests.support.processes import HubProcesses, eventually

pytestmark = pytest.mark.e2e

FLAGS = {"sessions": ["--lease-seconds", "1.5"], "dispatcher": ["--lease-seconds", "1.5"]}
ACTIVE = sessions_pb2.SESSION_STATE_ACTIVE
CLOSED = sessions_pb2.SESSION_STATE_CLOSED


@asynccontextmanager
async def linked(hub: HubProcesses) -> AsyncIterator[StockEdge]:
    """A scripted edge-1."""
    async with EdgePeers(hub.authority, hub.edge_port).link("edge-1") as connection:
        yield StockEdge("edge-1", connection)


async def until_session(
    hub: HubProcesses, condition: Callable[[sessions_pb2.Session], bool], seconds: float = 20.0
) -> sessions_pb2.Session:
    """The newest session of edge-1, once it meets the condition."""
    async with open_channel(hub.address("sessions")) as channel:
        admin: Any = SessionsAdminStub(channel)
        asked = sessions_pb2.GetSessionRequest(node_id="edge-1")
        async with asyncio.timeout(seconds):
            while True:
                answer = await admin.GetSession(asked, timeout=5, wait_for_ready=True)
                session: sessions_pb2.Session = answer.session
                if condition(session):
                    return session
                await asyncio.sleep(0.05)


def holder(session: sessions_pb2.Session) -> tuple[str, str]:
    """The process that has the session, and the other one."""
    names = ("dispatcher", "dispatcher-2")
    return names if session.dispatcher_id.startswith("dispatcher-1") else names[::-1]


async def publish(hub: HubProcesses, dispatcher: str, name: str) -> None:
    """A message for edge-1 that this dispatcher accepts."""
    async with open_channel(hub.address(dispatcher)) as channel:
        cloud: Any = DispatcherServiceStub(channel)
        request = object_request(["edge-1"], f"default/configmap/{name}", f"uid-{name}", 1)
        (outcome,) = (await cloud.Publish(request, timeout=10)).outcomes
        assert outcome.outcome == pb.OUTCOME_ACCEPTED, outcome


async def gets(edge: StockEdge, name: str) -> dict[str, Any]:
    """The next message, which is this one."""
    message = await edge.next(15)
    assert message["route"]["resource"] == f"default/configmap/{name}", json.dumps(message)
    return message


async def test_a_paused_dispatcher_that_wakes_can_do_nothing_to_the_links_it_had(tmp_path: Path) -> None:
    """C36: SIGSTOP past its lease. Its links move; when it wakes its word for them counts nothing. The link
    comes back to it as to any better dispatcher, under an epoch that sessions grants anew."""
    async with HubProcesses(tmp_path, FLAGS, dispatchers=2) as hub, linked(hub) as edge:
        before = await until_session(hub, lambda one: one.state == ACTIVE)
        paused, other = holder(before)
        await publish(hub, paused, "unanswered")
        unanswered = await gets(edge, "unanswered")
        hub.signal(paused, signal.SIGSTOP)
        moved = await until_session(hub, lambda one: one.state == ACTIVE and one.epoch > before.epoch)
        assert holder(moved) == (other, paused)
        await publish(hub, other, "meanwhile")
        await edge.answer(await gets(edge, "meanwhile"))
        hub.signal(paused, signal.SIGCONT)
        await eventually(lambda: "session.moved" in hub.log(paused), 20, "the paused one knows")
        back = await until_session(hub, lambda one: one.state == ACTIVE and one.epoch > moved.epoch)
        assert (holder(back), back.opened_at) == ((paused, other), before.opened_at)
        again = await gets(edge, "unanswered")
        assert again["header"]["msg_id"] == unanswered["header"]["msg_id"]
        await edge.answer(again)
        await publish(hub, paused, "after")
        await edge.answer(await gets(edge, "after"))
        assert "link.closed" not in hub.log("connector")
        assert "session.closed" not in hub.log(paused) + hub.log(other)


async def test_links_of_a_killed_dispatcher_move_at_once(tmp_path: Path) -> None:
    """C35, C37: no lease has to run out, since the connector sees the stream end."""
    async with HubProcesses(tmp_path, FLAGS, dispatchers=2) as hub, linked(hub) as edge:
        before = await until_session(hub, lambda one: one.state == ACTIVE)
        killed, other = holder(before)
        await hub.kill(killed)
        moved = await until_session(hub, lambda one: one.state == ACTIVE and one.epoch > before.epoch, 1.4)
        assert holder(moved) == (other, killed)
        await publish(hub, other, "after")
        await edge.answer(await gets(edge, "after"))
        await hub.start(killed)
        # The link may return to its first dispatcher, once that is back; it is never closed.
        await edge.keepalive()
        assert (await until_session(hub, lambda one: one.state == ACTIVE)).opened_at == before.opened_at
        assert "link.closed" not in hub.log("connector")


async def test_sessions_of_a_killed_connector_end_after_a_lease(tmp_path: Path) -> None:
    """C35: nobody comes back for them."""
    async with HubProcesses(tmp_path, FLAGS) as hub:
        connection = await EdgePeers(hub.authority, hub.edge_port).open("edge-1")
        before = await until_session(hub, lambda one: one.state == ACTIVE)
        await hub.kill("connector")
        ended = await until_session(hub, lambda one: one.state == CLOSED)
        assert (ended.epoch, ended.close_reason) == (before.epoch, CLOSE_REASON_CONNECTOR_LOST)
        connection.transport.abort()
