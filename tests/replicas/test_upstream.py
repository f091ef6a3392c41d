"""Nodes at one dispatcher, subscribers at another."""

import asyncio
import json
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import asyncpg
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from cloudhub.v1.message_pb2 import Message
from edge.node import EdgeAgent
from services.dispatcher.peers import directory
from services.dispatcher.peers.peer import Peer
from services.dispatcher.upstream.upload_keeper import UploadKeeper
from services.dispatcher.upstream.uploads import RELEASED
from services.runtime.rpc import open_channel
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, StockEdge, Subscriber, request, running_hub
from tests.support.invariants import numbers_missing, numbers_out_of_order
from tests.support.postgres import Databases
from tests.support.processes import HOST, eventually
from tests.support.replicas import Replicas, running_replicas


async def served(hub: Replicas, *modules: str) -> None:
    """Every dispatcher knows that these modules are served somewhere."""
    await eventually(lambda: all(replica.serves(*modules) for replica in hub.all), 10, f"{modules} served")


async def reports(edge: StockEdge, *numbers: int) -> None:
    """Messages that are never merged, numbered."""
    for number in numbers:
        await edge.send("insert", f"default/event/e{number}", number)


def numbers(deliveries: list[pb.UpstreamDelivery]) -> list[int]:
    return [json.loads(one.message.content) for one in deliveries if one.message.operation == "insert"]


async def test_callers_that_name_many_modules_stop_no_relay(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C39: all modules of a dispatcher go to the others in one request, which may name 64; who would make it
    more is refused, and what nodes say at another dispatcher reaches its subscriber here as ever."""
    async with AsyncExitStack() as stack:
        hub = await stack.enter_async_context(running_replicas(tmp_path, databases, authority))
        refused = 0
        for caller in range(4):
            channel = await stack.enter_async_context(open_channel(f"{HOST}:{hub[0].app.port}"))
            for number in range(20):
                call = DispatcherServiceStub(channel).Subscribe()
                modules = [f"m-{caller}-{number}-{one}" for one in range(2)]
                await call.write(pb.SubscribeRequest(subscription=pb.Subscription(modules=modules)))
                await call.initial_metadata()
                if call.done():
                    assert "has no room" in await call.details()
                    refused += 1
        assert refused > 40
        cloud = await stack.enter_async_context(hub[0].subscriber("edgecontroller", "router"))
        await served(hub, "edgecontroller", "router")
        async with hub[1].edge() as edge:
            await reports(edge, 1)
            await edge.send("upload", "telemetry", 7, group="user")
            got: list[str] = []
            while len(got) < 2:
                got += [
                    one.message.operation for one in await cloud.take() if one.message.source != "cloudhub"
                ]
            assert sorted(got) == ["insert", "upload"]
        assert hub[0].metric("upstream_subscriptions_refused_total", reason="too_many_modules") == refused


async def test_everything_a_node_says_reaches_a_subscriber_at_another_dispatcher(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C39: connected first, a status, an upload, a synchronous request and its answer, disconnected last."""
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[0].subscriber("edgecontroller", "router") as cloud,
    ):
        await served(hub, "edgecontroller", "router")
        async with hub[1].edge() as edge:
            await edge.send("update", "default/podstatus/p1", {"phase": "Running"})
            await edge.send("upload", "telemetry", 7, group="user", sync=True)
            assert (await edge.next())["content"] == "OK"
            asked = await edge.send("query", "default/configmap/cm1", source="metamanager", sync=True)
            got: list[pb.UpstreamDelivery] = []
            while len(got) < 5:
                got += await cloud.take()
            (query,) = [one for one in got if one.message.operation == "query"]
            assert query.message.id == asked
            await hub[0].accept(
                request(operation="response", parent_id=asked, content={"metadata": {"uid": "u"}})
            )
            answer = await edge.next()
            assert answer["header"]["parent_msg_id"] == asked
            await edge.answer(answer)
        got += await cloud.take(2)
        told: dict[str, list[str]] = defaultdict(list)
        for one in got:
            told[one.module].append(one.message.operation)
        assert told == {
            "edgecontroller": ["connected", "update", "query", "disconnected"],
            "router": ["connected", "upload", "disconnected"],
        }
        assert {one.message.resource for one in got if one.message.operation == "update"} == {
            "node/edge-1/default/podstatus/p1"
        }
        assert not any(one.redelivered for one in got)
        # Settled here means settled there: nothing is left of it at the node's dispatcher.
        await eventually(lambda: hub[1].metric("upstream_uploads_settled_total") == 1)
        await eventually(lambda: hub[1].metric("upstream_events_done_total") == 2)
        assert hub[1].metric("upstream_waiting") == hub[0].metric("upstream_waiting") == 0


async def test_a_request_is_answered_error_only_if_no_dispatcher_has_a_subscriber(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C32: and again once the only subscriber is gone."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        await edge.send("query", "default/secret/s", source="metamanager", sync=True)
        assert (await edge.next())["route"]["operation"] == "error"
        async with hub[0].subscriber("edgecontroller") as cloud:
            await served(hub, "edgecontroller")
            asked = await edge.send("query", "default/secret/s", source="metamanager", sync=True)
            query = await cloud.until(lambda one: one.message.operation == "query")
            assert query.message.id == asked
        await eventually(lambda: not hub[1].serves("edgecontroller"))
        await edge.send("query", "default/secret/s", source="metamanager", sync=True)
        assert (await edge.next())["route"]["operation"] == "error"


async def test_a_request_just_after_a_start_waits_for_the_relays_of_the_others(
    tmp_path: Path, databases: Databases, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C32, C39: a dispatcher that has just started does not say that nobody serves what others serve."""
    opened, keep_relay = asyncio.Event(), Peer._keep_relay

    async def keep_late_relay(self: Peer) -> None:
        await opened.wait()
        await keep_relay(self)

    monkeypatch.setattr(directory, "ARRIVAL_SECONDS", 30.0)
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[0].subscriber("edgecontroller") as cloud,
    ):
        await hub.stop_replica(hub[1])
        monkeypatch.setattr(Peer, "_keep_relay", keep_late_relay)
        await hub.start_replica(hub[1])
        async with hub[1].edge() as edge:
            asked = await edge.send("query", "default/configmap/cm1", source="metamanager", sync=True)
            await eventually(lambda: hub[1].metric("upstream_received_total", route="module") == 1)
            opened.set()
            await hub.acquainted()
            while (got := await cloud.take())[-1].message.operation != "query":
                pass
            assert got[-1].message.id == asked
            assert hub[1].metric("upstream_answered_total", answer="no_subscriber") == 0


async def test_order_per_node_holds_with_subscribers_at_two_dispatchers(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C39: three nodes at two dispatchers, a subscriber at each, every message once and in its order."""
    got: list[pb.UpstreamDelivery] = []
    takers: set[tuple[str, int]] = set()
    async with running_replicas(tmp_path, databases, authority) as hub:
        async with (
            hub[0].subscriber("edgecontroller", max_unacknowledged=4) as first,
            hub[1].subscriber("edgecontroller", max_unacknowledged=4) as second,
            hub[0].edge("edge-a") as a,
            hub[1].edge("edge-b") as b,
            hub[1].edge("edge-c") as c,
        ):
            await served(hub, "edgecontroller")

            async def collect(cloud: Subscriber, place: int) -> None:
                while True:
                    delivery = await cloud.next(30)
                    got.append(delivery)
                    takers.add((delivery.node_id, place))
                    await asyncio.sleep(0)
                    await cloud.acknowledge(delivery)

            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(collect(cloud, place)) for place, cloud in enumerate((first, second))
                ]
                for edge in (a, b, c):
                    group.create_task(reports(edge, *range(200)))
                await eventually(lambda: len(got) >= 603, 20, "all taken")
                for task in tasks:
                    task.cancel()
        by_node: dict[str, list[int]] = defaultdict(list)
        for one in got:
            if one.message.operation == "insert":
                by_node[one.node_id].append(json.loads(one.message.content))
        assert by_node == {node: list(range(200)) for node in ("edge-a", "edge-b", "edge-c")}


async def test_a_dispatcher_that_dies_with_messages_loses_none(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C35, C39: what its subscriber had not settled goes to another, marked, in order."""
    async with running_replicas(tmp_path, databases, authority, 3) as hub, hub[2].edge() as edge:
        async with hub[0].subscriber("edgecontroller", max_unacknowledged=3) as dying:
            await served(hub, "edgecontroller")
            await dying.until(lambda one: one.message.operation == "connected")
            await reports(edge, *range(10))
            seen = [await dying.next() for _ in range(3)]
            await dying.acknowledge(seen[0])
            await eventually(lambda: hub[2].metric("upstream_relayed_away_total") >= 4)
            await hub[0].app.server.grpc_server.stop(0)
        async with hub[1].subscriber("edgecontroller") as other:
            got = await other.take(9)
            assert numbers(got)[-9:] == list(range(1, 10))
            assert got[0].redelivered


async def test_what_a_subscriber_left_behind_goes_to_one_at_the_nodes_own_dispatcher(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C32, C39: also what only waited at the other dispatcher."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        async with hub[0].subscriber("edgecontroller", max_unacknowledged=8) as leaving:
            await served(hub, "edgecontroller")
            await leaving.until(lambda one: one.message.operation == "connected")
            await reports(edge, *range(20))
            assert numbers([await leaving.next(), await leaving.next()]) == [0, 1]
        async with hub[1].subscriber("edgecontroller") as staying:
            assert numbers(await staying.take(20)) == list(range(20))
        assert hub[0].metric("upstream_waiting") == 0


async def test_one_that_is_stuck_at_another_dispatcher_keeps_nothing_from_good_ones(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C39, C49: alone with the module at its dispatcher, it is ended for the sake of a subscriber elsewhere;
    what it held comes back to the node's dispatcher and goes to that one, in order."""
    async with (
        running_replicas(tmp_path, databases, authority, subscriber_ack_seconds=1.0) as hub,
        hub[0].subscriber("edgecontroller") as stuck,
    ):
        await served(hub, "edgecontroller")
        async with hub[1].edge("edge-a") as a, hub[1].edge("edge-b") as b:
            for edge in (a, b):
                await reports(edge, *range(5))
            await eventually(lambda: hub[1].metric("upstream_relayed_away_total") == 12)
            await stuck.next()
            async with hub[1].subscriber("edgecontroller") as good:
                got = await good.take(12)
                assert all(one.redelivered for one in got)
                for node in ("edge-a", "edge-b"):
                    assert numbers([one for one in got if one.node_id == node]) == list(range(5))
        assert hub[0].metric("upstream_subscribers_ended_total", reason="no_acknowledgement") == 1
        assert hub[0].metric("upstream_subscribers") == 0


async def test_a_subscription_that_grows_disturbs_no_other(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C39: a second module is served here from now on; what is held of the first stays held."""
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[1].edge() as edge,
        hub[0].subscriber("edgecontroller") as first,
    ):
        await served(hub, "edgecontroller")
        await first.until(lambda one: one.message.operation == "connected")
        await reports(edge, 0)
        held = await first.next()
        async with hub[0].subscriber("devicecontroller") as second:
            await served(hub, "devicecontroller")
            await edge.send("update", "default/device/d1", {}, source="twin")
            assert (await second.next()).module == "devicecontroller"
        await reports(edge, 1)
        later = await first.next()
        await first.acknowledge(held, later)
        assert numbers([held, later]) == [0, 1]
        assert not later.redelivered


async def test_relayed_messages_are_never_relayed_on(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """Subscribers of one module everywhere: each message is taken once, over at most one relay."""
    async with (
        running_replicas(tmp_path, databases, authority, 3) as hub,
        hub[0].subscriber("edgecontroller", max_unacknowledged=1) as a,
        hub[1].subscriber("edgecontroller", max_unacknowledged=1) as b,
        hub[2].subscriber("edgecontroller", max_unacknowledged=1) as c,
    ):
        await served(hub, "edgecontroller")
        got: list[pb.UpstreamDelivery] = []

        async def collect(cloud: Subscriber) -> None:
            while True:
                got.extend(await cloud.take(1, 30))

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(collect(cloud)) for cloud in (a, b, c)]
            async with hub[0].edge("edge-a") as one, hub[1].edge("edge-b") as two:
                await asyncio.gather(reports(one, *range(50)), reports(two, *range(50)))
                await eventually(lambda: len(got) >= 102, 20, "all taken")
            for task in tasks:
                task.cancel()
        relayed = sum(replica.metric("upstream_relayed_here_total") for replica in hub.all)
        assert relayed == sum(replica.metric("upstream_relayed_away_total") for replica in hub.all)
        assert relayed <= len(got) + 4
        assert sorted(numbers(got)) == sorted([*range(50), *range(50)])


async def uploads(edge: StockEdge, *numbers: int) -> None:
    """Numbered uploads, each confirmed."""
    for number in numbers:
        sent = await edge.send("upload", "telemetry", number, group="user", sync=True)
        assert (await edge.next())["header"]["parent_msg_id"] == sent


async def uploaded(cloud: Subscriber, until: int) -> list[int]:
    """The numbers of uploads up to one, in the order of their first coming."""
    got: dict[int, None] = {}
    while until not in got:
        for one in await cloud.take():
            if one.message.operation == "upload":
                got[json.loads(one.message.content)] = None
    return list(got)


async def test_uploads_of_a_node_that_moved_go_on_in_order(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C31: stored at three sessions with two dispatchers; one subscriber comes when all is stored."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        number = 0
        for owner in (1, 0, 1):
            async with hub[owner].edge() as edge:
                await uploads(edge, *range(number, number + 5))
                number += 5
        async with hub[0].subscriber("router") as cloud:
            assert await uploaded(cloud, 14) == list(range(15))


async def test_uploads_of_a_dispatcher_that_stopped_are_handed_on_by_another(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C31: the node never comes back; its rows are released, then taken over whole."""
    async with running_replicas(tmp_path, databases, authority, lease_seconds=0.6) as hub:
        async with hub[1].edge() as edge:
            await uploads(edge, *range(5))
        await hub.stop_replica(hub[1])
        async with hub[0].subscriber("router") as cloud:
            assert await uploaded(cloud, 4) == list(range(5))
            await eventually(lambda: hub[0].metric("upstream_uploads_settled_total") == 5)
            assert hub[0].metric("upstream_uploads_inherited_total") == 5


async def test_what_was_settled_before_a_dispatcher_stopped_does_not_come_again(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C31: a clean stop writes what it knows before it lets go of its rows."""
    async with running_replicas(tmp_path, databases, authority, lease_seconds=0.6) as hub:
        async with hub[1].edge() as edge, hub[1].subscriber("router") as cloud:
            await uploads(edge, *range(5))
            assert await uploaded(cloud, 4) == list(range(5))
            await eventually(lambda: hub[1].metric("upstream_uploads_settled_total") == 5)
        await hub.stop_replica(hub[1])
        assert await hub[0].app.upstream.uploads.other_holders() == []
        assert await hub[0].app.upstream.uploads.inherit(RELEASED) == 0


async def test_uploads_of_a_dispatcher_that_is_gone_are_taken_over_by_one_other(
    tmp_path: Path, databases: Databases, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C31, C35: it released nothing; after a lease without it in the list one of two has its rows."""

    async def died(*_: object) -> None:
        return

    monkeypatch.setattr(UploadKeeper, "release", died)
    async with running_replicas(tmp_path, databases, authority, 3, lease_seconds=0.6) as hub:
        async with hub[2].edge("edge-1") as one, hub[2].edge("edge-2") as two:
            await uploads(one, *range(5))
            await uploads(two, *range(5))
        await hub.stop_replica(hub[2])

        async def listed() -> None:
            while True:  # as lease renewals do
                await asyncio.sleep(0.1)
                await hub.acquainted(hub.all[:2])

        async with asyncio.TaskGroup() as group:
            renewals = group.create_task(listed())
            async with hub[0].subscriber("router") as cloud:
                got: dict[str, list[int]] = defaultdict(list)
                while sum(map(len, got.values())) < 10:
                    for delivery in await cloud.take(1, 20):
                        if delivery.message.operation == "upload":
                            got[delivery.node_id].append(json.loads(delivery.message.content))
                assert got == {"edge-1": list(range(5)), "edge-2": list(range(5))}
            renewals.cancel()
        inherited = [replica.metric("upstream_uploads_inherited_total") for replica in hub.all[:2]]
        assert sum(inherited) == 10


async def test_an_upload_repeated_at_another_dispatcher_is_confirmed_and_handed_on_once(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C31: the edge did not hear the first confirmation and has moved."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        for owner in (1, 0):
            async with hub[owner].edge() as edge:
                await edge.send("upload", "telemetry", 1, group="user", sync=True, message_id="same")
                assert (await edge.next())["content"] == "OK"
                await uploads(edge, 10 + owner)
        assert hub[0].metric("upstream_uploads_repeated_total") == 1
        async with hub[0].subscriber("router") as cloud:
            assert await uploaded(cloud, 10) == [1, 11, 10]


async def test_an_upload_that_the_former_dispatcher_commits_late_keeps_its_place(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C31, C36: a dispatcher was paused within the transaction that stores it; its link has moved, and the
    connector has given the new dispatcher the upload too."""
    message = Message(id="slow", operation="upload", group="user", resource="telemetry", content=b"1")
    row = ("edge-1", 1, 1, "slow", "dispatcher-paused", 100, message.SerializeToString())
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[0].subscriber("router") as cloud,
        hub[0].edge() as edge,
    ):
        paused = await asyncpg.connect(hub.database)
        transaction = paused.transaction()
        await transaction.start()
        await paused.execute(
            "INSERT INTO upload (node_id, epoch, n, message_id, holder, size_bytes, message)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7)",
            *row,
        )
        await edge.send("upload", "telemetry", 1, group="user", sync=True, message_id="slow")
        await edge.send("upload", "telemetry", 2, group="user", sync=True)
        await edge.gets_nothing(0.5)
        await transaction.commit()
        await paused.close()
        assert [(await edge.next())["content"] for _ in range(2)] == ["OK", "OK"]
        assert await uploaded(cloud, 2) == [1, 2]


async def test_uploads_keep_their_order_while_links_move(tmp_path: Path, authority: TestAuthority) -> None:
    """C31: a dispatcher stops and comes back under load; every confirmed number is handed on, in order."""
    nodes, count = [f"edge-{number}" for number in range(14)], 40  # so many that each dispatcher has some
    handed: dict[str, list[int]] = defaultdict(list)
    confirmed: dict[str, list[int]] = defaultdict(list)

    async def collect(cloud: Subscriber) -> None:
        while any(len(set(handed[node_id])) < count for node_id in nodes):
            for delivery in await cloud.take(1, 30):
                if delivery.message.operation == "upload":
                    handed[delivery.node_id].append(json.loads(delivery.message.content)["number"])

    async def send(agent: EdgeAgent) -> None:
        for _ in range(count):
            confirmed[agent.node_id].append(await agent.upload(b'"x"'))
            await asyncio.sleep(0.02)

    async def restart(hub: RunningHub) -> None:
        await asyncio.sleep(0.2)
        await hub.dispatchers[1].stop()
        await hub.dispatchers[1].start()

    async with (
        running_hub(
            tmp_path, authority, dispatchers=2, shared_outbox=True, dispatcher={"lease_seconds": 1.0}
        ) as hub,
        hub.subscriber("router") as cloud,
        hub.fleet(*nodes, repeat_seconds=0.5) as fleet,
    ):
        async with asyncio.timeout(50), asyncio.TaskGroup() as group:
            group.create_task(collect(cloud))
            group.create_task(restart(hub))
            for agent in fleet:
                group.create_task(send(agent))
        assert hub.metric("connector", "transfers_total", outcome="moved") > 0
        assert numbers_missing(confirmed, handed) == []
        assert numbers_out_of_order(handed) == []
