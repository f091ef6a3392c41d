"""C10 through a whole hub: deleting a node."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.message_pb2 import Message
from services.runtime.rpc import error_reason, open_channel
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, request, running_hub
from tests.support.processes import eventually

TABLES = {
    "sessions": ("node_session", "lifecycle_event", "end_directive"),
    "dispatcher": ("node", "delivery", "delivery_event", "upload"),
}


@pytest.fixture
async def hub(tmp_path: Path, authority: TestAuthority) -> AsyncIterator[RunningHub]:
    async with running_hub(tmp_path, authority) as running:
        yield running


def deletion(node_id: str = "edge-1") -> pb.PublishRequest:
    """As a cloud program says it."""
    message = Message(
        source="edgecontroller", group="resource", operation="delete", resource=f"node/{node_id}"
    )
    return pb.PublishRequest(message=message)


def rows_of(hub: RunningHub, node_id: str = "edge-1") -> dict[str, int]:
    """How many rows each table has of the node; tables without any are left out."""
    found: dict[str, int] = {}
    for service, tables in TABLES.items():
        connection = sqlite3.connect(hub.folder / f"{service}.db", timeout=5)
        for table in tables:
            query = f"SELECT count(*) FROM {table} WHERE node_id = ?"
            found[table] = connection.execute(query, (node_id,)).fetchone()[0]
        connection.close()
    return {table: count for table, count in found.items() if count}


async def no_rows_left(hub: RunningHub, node_id: str = "edge-1") -> None:
    await eventually(lambda: not rows_of(hub, node_id), 10, f"no row of {node_id} is left")


async def test_a_deleted_node_is_disconnected_and_leaves_no_row(hub: RunningHub) -> None:
    """C10: the edge is told, the cloud is told, nothing is left, and nobody else notices."""
    async with hub.subscriber("edgecontroller") as subscriber, hub.edge("edge-2"):
        edge = await hub.open_edge("edge-1")
        await hub.accept(request("edge-1"), request("edge-1", name="cm2"), request("edge-2"))
        for message in await edge.take(2):
            await edge.answer(message)
        (outcome,) = await hub.publish(deletion())
        assert (outcome.node_id, outcome.outcome) == ("edge-1", pb.OUTCOME_ACCEPTED)
        told = await edge.next()
        assert (told["route"]["operation"], told["route"]["resource"]) == ("disconnected", "node/edge-1")
        assert (await edge.closed())[0] == 4003
        events = [
            (delivery.message.operation, delivery.node_id)
            for delivery in await subscriber.take(3)
            if delivery.node_id == "edge-1"
        ]
        assert events == [("connected", "edge-1"), ("disconnected", "edge-1")]
        await no_rows_left(hub)
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await hub.session("edge-1")
        assert error_reason(unknown.value) == "UNKNOWN_NODE"
        limits = await hub.sessions_admin.GetLimits(sessions_pb2.GetLimitsRequest(), timeout=5)
        assert limits.nodes == 1
        assert rows_of(hub, "edge-2")


async def test_a_deleted_nodes_id_comes_again_clean(hub: RunningHub) -> None:
    """C10: a version that was acknowledged in the former life is news; epochs go on growing."""
    async with hub.subscriber("edgecontroller") as subscriber, hub.edge("edge-1") as edge:
        former = await hub.session("edge-1")
        await hub.accept(request("edge-1", version=9))
        await edge.next()
        await hub.accept(deletion())
        assert (await edge.closed())[0] == 4003
        await subscriber.take(2)
        await no_rows_left(hub)
    await hub.accept(request("edge-1", version=1))
    async with hub.edge("edge-1") as again:
        assert (await again.next())["header"]["resourceversion"] == "1"
        assert (await hub.session("edge-1")).epoch > former.epoch


async def test_a_node_that_comes_back_at_once_is_a_new_one(hub: RunningHub) -> None:
    """C10: before anything of the former life was swept up, over and over."""
    async with hub.subscriber("edgecontroller") as subscriber:
        for version in range(5, 0, -1):
            edge = await hub.open_edge("edge-1")
            await hub.accept(request("edge-1", version=version))
            assert (await edge.next())["header"]["resourceversion"] == str(version)
            await hub.accept(deletion())
            assert (await edge.closed())[0] == 4003
        await subscriber.take(10)
        await no_rows_left(hub)


async def test_deleting_a_node_that_is_away_or_unknown_is_accepted(hub: RunningHub) -> None:
    """C10: and may be repeated."""
    async with hub.edge("edge-1"):
        pass
    await hub.accept(request("edge-1"), request("edge-9"))
    for node_id in ("edge-1", "edge-9", "edge-never"):
        for _ in range(2):
            await hub.accept(deletion(node_id))
    await hub.accept(deletion("edge-1"))
    for node_id in ("edge-9", "edge-never"):
        assert rows_of(hub, node_id) == {}


async def test_nodes_that_come_and_are_deleted_leave_nothing(hub: RunningHub) -> None:
    """Invariant 6: no row, no session and no counter too many after any number of lives."""
    for number in range(20):
        async with hub.edge(f"edge-{number}"):
            await hub.accept(request(f"edge-{number}"), deletion(f"edge-{number}"))
    async with hub.subscriber("edgecontroller") as subscriber:
        await subscriber.take(40)
    for number in range(20):
        await no_rows_left(hub, f"edge-{number}")
    usage = await hub.sessions_admin.GetLimits(sessions_pb2.GetLimitsRequest(), timeout=5)
    assert (usage.nodes, dict(usage.nodes_by_connector), dict(usage.nodes_by_project)) == (0, {}, {})
    assert hub.dispatcher.app.delivery.sessions == {}


async def test_what_a_stream_publishes_behind_a_deletion_belongs_to_the_next_life(hub: RunningHub) -> None:
    """C10: frames are stored while later ones are read, a deletion and what follows it in order."""
    call = hub.cloud.PublishStream()
    frames = [request("edge-1", version=9), deletion(), request("edge-1", version=1, name="cm2")]
    for frame in frames:
        await call.write(pb.PublishStreamRequest(requests=[frame]))
    await call.done_writing()
    outcomes = [one.outcome for _ in frames for one in (await call.read()).responses[0].outcomes]
    assert outcomes == [pb.OUTCOME_ACCEPTED] * 3
    async with hub.edge("edge-1") as edge:
        (message,) = await edge.take(1)
        assert message["route"]["resource"] == "default/configmap/cm2"


async def test_a_connectors_links_are_listed_with_the_hubs_processes(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """As operators see it: one of each, with the load that the dispatcher reported last, at an address where
    it serves."""
    short = {"lease_seconds": 1.5}
    async with running_hub(tmp_path, authority, sessions=short, dispatcher=short) as hub:

        async def loads() -> dict[str, int]:
            listed = await hub.sessions_admin.ListInstances(sessions_pb2.ListInstancesRequest(), timeout=5)
            return {instance.service: instance.nodes for instance in listed.instances}

        async with hub.edge("edge-1"), hub.edge("edge-2"):
            async with asyncio.timeout(10):
                while await loads() != {"sessions": 0, "dispatcher": 2, "connector": 2}:  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            listed = await hub.sessions_admin.ListInstances(sessions_pb2.ListInstancesRequest(), timeout=5)
            for instance in listed.instances:
                async with open_channel(instance.address) as channel:
                    stub: Any = health_pb2_grpc.HealthStub(channel)
                    answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING, instance
