"""A registry that says something else than its dispatcher: found out and settled, over a whole hub."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from cloudhub.v1 import link_pb2, sessions_pb2
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, running_hub

LEASE = 1.5


@pytest.fixture
async def hub(tmp_path: Path, authority: TestAuthority) -> AsyncIterator[RunningHub]:
    short = {"lease_seconds": LEASE}
    async with running_hub(tmp_path, authority, sessions=short, dispatcher=short) as running:
        yield running


def tamper(hub: RunningHub, *statements: str) -> None:
    """Changes the registry behind everybody's back."""
    connection = sqlite3.connect(hub.folder / "sessions.db", timeout=5)
    with connection:
        for statement in statements:
            connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE node_session SET state = 5, reason = 9 WHERE node_id = 'edge-1'",
        "UPDATE node_session SET dispatcher_id = 'another' WHERE node_id = 'edge-1'",
        "UPDATE node_session SET epoch = epoch + 1 WHERE node_id = 'edge-1'",
        "DELETE FROM node_session WHERE node_id = 'edge-1'",
    ],
    ids=["closed", "elsewhere", "other epoch", "unknown"],
)
async def test_a_session_that_the_registry_does_not_have_is_ended_within_a_lease(
    hub: RunningHub, statement: str
) -> None:
    """The registry decides; the edge is advised to come back. Others stay connected."""
    async with hub.edge("edge-1") as edge, hub.edge("edge-2"):
        tamper(hub, statement)
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(2 * LEASE):
                await edge.connection.recv()
        assert closed.value.rcvd
        assert closed.value.rcvd.code == 1012
        assert hub.metric("dispatcher", "session_disagreements_total", what="unknown_to_registry") == 1
        assert (await hub.session("edge-2")).state == sessions_pb2.SESSION_STATE_ACTIVE
        assert set(hub.dispatcher.app.delivery.sessions) == {"edge-2"}


async def test_a_session_that_its_dispatcher_does_not_have_is_closed(hub: RunningHub) -> None:
    """It would hold a slot for ever; `disconnected` is told for it."""
    async with hub.subscriber("edgecontroller") as subscriber, hub.edge("edge-2"):
        async with hub.edge("edge-1"):
            pass
        await hub.until_session("edge-1", lambda session: session.state == sessions_pb2.SESSION_STATE_CLOSED)
        tamper(
            hub,
            "UPDATE node_session SET state = 2, reason = NULL, closed_at_ms = NULL, epoch = epoch + 1 "
            "WHERE node_id = 'edge-1'",
            "UPDATE slot_count SET nodes = nodes + 1",
        )
        ghost = await hub.session("edge-1")
        assert ghost.state == sessions_pb2.SESSION_STATE_ACTIVE
        ended = await hub.until_session(
            "edge-1", lambda session: session.state == sessions_pb2.SESSION_STATE_CLOSED
        )
        assert (ended.epoch, ended.close_reason) == (ghost.epoch, link_pb2.CLOSE_REASON_DISPATCHER_LOST)
        assert hub.metric("dispatcher", "session_disagreements_total", what="not_here") == 1
        limits = await hub.sessions_admin.GetLimits(sessions_pb2.GetLimitsRequest(), timeout=5)
        assert limits.nodes == 1
        told = [
            (delivery.node_id, delivery.message.operation)
            for delivery in await subscriber.take(4)
            if delivery.node_id == "edge-1"
        ]
        assert told == [("edge-1", "connected"), ("edge-1", "disconnected"), ("edge-1", "disconnected")]


async def test_sessions_that_come_and_go_are_no_disagreement(hub: RunningHub) -> None:
    """C1, C36: reconnects, and an absence of sessions that lasts longer than a lease."""
    async with hub.fleet("edge-1", "edge-2"):
        for _ in range(10):
            async with hub.edge("edge-3"):
                await asyncio.sleep(LEASE / 5)
        await hub.sessions.stop()
        await asyncio.sleep(1.5 * LEASE)
        await hub.sessions.start()
        await asyncio.sleep(1.5 * LEASE)
        for what in ("unknown_to_registry", "not_here"):
            assert hub.metric("dispatcher", "session_disagreements_total", what=what) == 0
        for node_id in ("edge-1", "edge-2"):
            assert (await hub.session(node_id)).state == sessions_pb2.SESSION_STATE_ACTIVE
