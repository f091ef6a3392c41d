"""C35: kill -9 of any process, and of all of them at once, under load; real processes on loopback."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub
from edge.store import read_history, read_objects
from services.runtime.rpc import open_channel
from tests.e2e.load import Publisher, object_request
from tests.support.invariants import (
    Acceptances,
    Held,
    Place,
    Step,
    hidden_successors,
    not_arrived,
    steps_back,
)
from tests.support.processes import SERVICES, HubProcesses, eventually

pytestmark = pytest.mark.e2e

NODES = [f"edge-{number}" for number in range(1, 21)]
FLAGS = {
    "connector": ["--retry-after-seconds", "1", "--drain-links-per-second", "1000"],
    "sessions": ["--lease-seconds", "3"],
    "dispatcher": ["--lease-seconds", "3"],
}
DISPATCHER_SERVICE = "cloudhub.v1.DispatcherService"


def held(database: Path) -> dict[Place, Held]:
    """What the edges have on disk."""
    return {
        Place(row.node_id, row.resource): Held(row.uid, int(row.version)) for row in read_objects(database)
    }


def is_made(database: Path) -> bool:
    """Whether the edges have made their tables."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(database, timeout=5)) as connection:
        return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'object'").fetchone())


def applied(database: Path) -> list[Step]:
    """What the edges applied, in order."""
    return [
        Step(
            Place(row.node_id, row.resource),
            row.uid,
            int(row.version) if row.version else None,
            row.operation,
        )
        for row in read_history(database)
    ]


async def nothing_pending(hub: HubProcesses) -> None:
    """Returns when the dispatcher waits for no acknowledgement, and has given nothing up."""
    async with open_channel(hub.address("dispatcher")) as channel:
        admin: Any = DispatcherAdminStub(channel)
        async with asyncio.timeout(20):
            while True:
                nodes = (await admin.ListNodes(pb.ListNodesRequest(page_size=1000), timeout=10)).nodes
                assert [node.node_id for node in nodes] == sorted(NODES)
                assert not any(node.parked for node in nodes), nodes
                if not any(node.pending for node in nodes):
                    return
                await asyncio.sleep(0.1)


async def one_session_each(hub: HubProcesses) -> None:
    """Invariants 4 and 6: the registry holds one live session per node, and no slot too many."""
    async with open_channel(hub.address("sessions")) as channel:
        admin: Any = SessionsAdminStub(channel)
        async with asyncio.timeout(20):
            while True:
                page = await admin.ListSessions(sessions_pb2.ListSessionsRequest(page_size=1000), timeout=10)
                limits = await admin.GetLimits(sessions_pb2.GetLimitsRequest(), timeout=10)
                states = {session.state for session in page.sessions}
                if len(page.sessions) == len(NODES) and states == {sessions_pb2.SESSION_STATE_ACTIVE}:
                    assert limits.nodes == len(NODES)
                    return
                await asyncio.sleep(0.1)


async def test_nothing_accepted_is_lost_whatever_is_killed(tmp_path: Path) -> None:
    """C35, C12, invariants 1 to 4 and 6: each process in turn, then all at once; no operator helps."""
    acceptances = Acceptances()
    async with HubProcesses(tmp_path, FLAGS) as hub:
        await hub.start_edges(NODES)
        await one_session_each(hub)  # less may be pending of a node that never connected
        publishers = [
            Publisher(name, hub.address("dispatcher"), nodes, 10, acceptances)
            for name, nodes in (("left", NODES[:10]), ("right", NODES[10:]))
        ]

        async def more(messages: int) -> None:
            wanted = acceptances.count + messages
            await eventually(lambda: acceptances.count >= wanted, 25, f"{messages} more accepted messages")

        async with asyncio.TaskGroup() as group:
            for publisher in publishers:
                group.create_task(publisher.run(0.01))
            await eventually(lambda: is_made(hub.edge_database), 20, "the edges' database")
            await eventually(lambda: held(hub.edge_database), 20, "the first message on an edge's disk")
            for name in ("sessions", "connector", "edges"):
                await more(400)
                await hub.kill(name)
                # Publishing goes on without any of these.
                await more(400)
                if name == "edges":
                    await hub.start_edges(NODES)
                else:
                    await hub.start(name)
            for _ in range(2):
                await more(400)
                await hub.kill("dispatcher")
                await hub.start("dispatcher", DISPATCHER_SERVICE)
            await more(400)
            await hub.kill(*SERVICES, "edges")
            for name in SERVICES:
                await hub.launch(name)
            await hub.start_edges(NODES)
            await more(400)
            for publisher in publishers:
                publisher.stop()
        await eventually(
            lambda: not not_arrived(acceptances, held(hub.edge_database)),
            25,
            "everything that was accepted is on the edges' disks",
        )
        await nothing_pending(hub)
        await one_session_each(hub)
        history = applied(hub.edge_database)
        assert len(history) > 1000
        assert steps_back(history) == []
        assert hidden_successors(history) == []
        assert [publisher.broken_calls >= 3 for publisher in publishers] == [True, True]
        for name in SERVICES:
            assert "Traceback" not in hub.log(name)


async def test_what_was_accepted_right_before_the_kill_is_there_after_it(tmp_path: Path) -> None:
    """C12: also when its node has never been seen."""
    async with HubProcesses(tmp_path, services=()) as hub:
        for round_number in range(3):
            # Without sessions: publishing needs the store alone.
            await hub.start("dispatcher", DISPATCHER_SERVICE)
            async with open_channel(hub.address("dispatcher")) as channel:
                stub: Any = DispatcherServiceStub(channel)
                request = object_request(
                    ["edge-1"], f"default/configmap/c{round_number}", f"u{round_number}", 1
                )
                answer = await stub.Publish(request, timeout=10, wait_for_ready=True)
                assert [outcome.outcome for outcome in answer.outcomes] == [pb.OUTCOME_ACCEPTED]
            await hub.kill("dispatcher")
        await hub.start("dispatcher", DISPATCHER_SERVICE)
        async with open_channel(hub.address("dispatcher")) as channel:
            admin: Any = DispatcherAdminStub(channel)
            node = await admin.InspectNode(pb.InspectNodeRequest(node_id="edge-1"), timeout=10)
            assert [one.object_key for one in node.objects] == ["u0", "u1", "u2"]
            assert [one.state for one in node.objects] == [pb.DELIVERY_STATE_PENDING] * 3
            assert node.node.last_seq == 3
