"""From edges to cloud programs through a whole hub."""

import asyncio
import json
import random
from collections import defaultdict
from pathlib import Path

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from edge.node import EdgeAgent, RequestFailed
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, Subscriber, request, running_hub
from tests.support.invariants import numbers_missing, numbers_out_of_order
from tests.support.processes import eventually


def answer_to(delivery: pb.UpstreamDelivery, version: int = 1, text: str = "secret") -> pb.PublishRequest:
    """The answer of a cloud program to an edge's request: an object, to be acknowledged."""
    return request(
        delivery.node_id,
        operation="response",
        parent_id=delivery.message.id,
        version=version,
        content={"metadata": {"uid": "uid-cm1"}, "data": text},
    )


async def test_connected_comes_first_and_disconnected_last_exactly_once(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C8: three sessions of a node, each with reports and an upload."""
    async with running_hub(tmp_path, authority) as hub, hub.subscriber("edgecontroller", "router") as cloud:
        for number in range(3):
            async with hub.edge() as edge:
                await edge.send("update", f"default/podstatus/p{number}", {"phase": "Running"})
                await edge.send("upload", "telemetry", number, group="user", sync=True)
                assert (await edge.next())["route"]["operation"] == "response"
        got = await cloud.take(18)
        by_module: dict[str, list[str]] = defaultdict(list)
        for delivery in got:
            by_module[delivery.module].append(delivery.message.operation)
        assert by_module["edgecontroller"] == ["connected", "update", "disconnected"] * 3
        assert by_module["router"] == ["connected", "upload", "disconnected"] * 3
        epochs = [one.epoch for one in got if one.module == "edgecontroller"]
        assert epochs == sorted(epochs)
        assert len(set(epochs)) == 3


async def test_an_answer_to_connected_reaches_the_node(tmp_path: Path, authority: TestAuthority) -> None:
    """C8: the session is ready before anybody is told, so a NO-ACK message finds it, every time."""
    async with running_hub(tmp_path, authority) as hub, hub.subscriber("edgecontroller") as cloud:
        for number in range(20):
            opening = asyncio.create_task(hub.open_edge(f"edge-{number}"))
            told = await cloud.until(lambda one: one.message.operation == "connected")
            assert json.loads(told.message.content)["client_id"] == f"edge-{number}"
            await hub.accept(request(told.node_id, name="hello", ack_mode=pb.ACK_MODE_NO_ACK))
            edge = await opening
            assert (await edge.next())["route"]["resource"] == "default/configmap/hello"
            await edge.connection.close()


async def test_uploads_survive_cut_links_in_order(tmp_path: Path, authority: TestAuthority) -> None:
    """C31: cut at random instants; every confirmed number is handed on, in order per node."""
    chance, uploads = random.Random(31), 60
    handed: dict[str, list[int]] = defaultdict(list)
    confirmed: dict[str, list[int]] = defaultdict(list)

    async def collect(cloud: Subscriber) -> None:
        while any(len(set(numbers)) < uploads for numbers in handed.values()) or len(handed) < 3:
            (delivery,) = await cloud.take()
            if delivery.message.operation == "upload":
                handed[delivery.node_id].append(json.loads(delivery.message.content)["number"])

    async def send(agent: EdgeAgent) -> None:
        for _ in range(uploads):
            confirmed[agent.node_id].append(await agent.upload(b'"x"'))
            if chance.random() < 0.12:
                agent.cut()
            await asyncio.sleep(chance.random() * 0.02)

    async with (
        running_hub(tmp_path, authority) as hub,
        hub.subscriber("router") as cloud,
        hub.fleet("edge-1", "edge-2", "edge-3", repeat_seconds=0.3) as fleet,
    ):
        async with asyncio.timeout(40), asyncio.TaskGroup() as group:
            group.create_task(collect(cloud))
            for agent in fleet:
                group.create_task(send(agent))
        await eventually(lambda: not any(agent.uploads_waiting for agent in fleet), 15, "all confirmed")
        assert fleet.total("links_opened") > 6
        assert numbers_missing(confirmed, handed) == []
        assert numbers_out_of_order(handed) == []


async def test_uploads_without_a_subscriber_wait_through_a_restart(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C31: *received* means stored: handed on after the dispatcher came back."""
    async with running_hub(tmp_path, authority) as hub:
        async with hub.edge() as edge:
            for number in range(5):
                sent = await edge.send("upload", "telemetry", number, group="user", sync=True)
                told = await edge.next()
                assert (told["header"]["parent_msg_id"], told["content"]) == (sent, "OK")
        await hub.dispatcher.stop()
        await hub.dispatcher.start()
        async with hub.subscriber("router") as cloud:
            got: list[bytes] = []
            while len(got) < 5:
                (delivery,) = await cloud.take()
                if delivery.message.operation == "upload":
                    got.append(delivery.message.content)
            assert got == [b"0", b"1", b"2", b"3", b"4"]


async def test_a_request_that_nobody_serves_is_answered_at_once(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """C32: with an error; no wait for a timeout."""
    async with running_hub(tmp_path, authority) as hub, hub.fleet("edge-1") as fleet:
        with pytest.raises(RequestFailed, match="edgecontroller"):
            await fleet["edge-1"].request("default/secret/s", timeout_seconds=5)


async def test_a_subscriber_that_dies_loses_nothing(tmp_path: Path, authority: TestAuthority) -> None:
    """C32: what it had not acknowledged goes to another, marked as redelivered, in order."""
    async with running_hub(tmp_path, authority) as hub, hub.edge() as edge:
        async with hub.subscriber("edgecontroller") as dying:
            for number in range(4):
                await edge.send("insert", f"default/event/e{number}", number)
            first = await dying.until(lambda one: one.message.content == b"0")
            assert not first.redelivered
            assert (await dying.next()).message.content == b"1"
            # The connected event and the first insert: what is on its way when a stream breaks may be lost.
            await eventually(lambda: hub.metric("dispatcher", "upstream_settled_total") == 2)
        async with hub.subscriber("edgecontroller") as other:
            got = await other.take(3)
            assert [one.message.content for one in got] == [b"1", b"2", b"3"]
            assert got[0].redelivered


async def answering(hub: RunningHub, cloud: Subscriber, count: int) -> None:
    """A cloud program that answers requests with the object they ask for, always in the same version."""
    for number in range(count):
        delivery = await cloud.until(lambda one: one.message.operation == "query")
        assert delivery.message.sync
        assert delivery.message.resource == "node/edge-1/default/configmap/cm1"
        await hub.accept(answer_to(delivery, text=f"answer {number}"))


async def test_every_request_gets_its_answer(tmp_path: Path, authority: TestAuthority) -> None:
    """C40: although the object's version is acknowledged already; two requests get two answers."""
    async with (
        running_hub(tmp_path, authority) as hub,
        hub.subscriber("edgecontroller") as cloud,
        hub.fleet("edge-1") as fleet,
    ):
        await hub.accept(request(version=1))
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        async with asyncio.TaskGroup() as group:
            group.create_task(answering(hub, cloud, 3))
            asked = [group.create_task(fleet["edge-1"].request("default/configmap/cm1")) for _ in range(3)]
        answers = {json.loads(bytes(task.result().content))["data"] for task in asked}
        assert answers == {"answer 0", "answer 1", "answer 2"}
        explained = await hub.explain("edge-1", key="uid-cm1")
        assert explained.state == pb.DELIVERY_STATE_ACKNOWLEDGED
        # Answers leave no row behind.
        inspected = await hub.dispatcher_admin.InspectNode(pb.InspectNodeRequest(node_id="edge-1"), timeout=5)
        await eventually(lambda: fleet["edge-1"].counters.acknowledged == 4)
        assert not inspected.node.parked


async def test_an_answer_to_a_cloud_programs_request_reaches_its_module(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Volumes: the request wants no acknowledgement, what the edge says to it is no acknowledgement. What it
    says to messages that are over stays here (C24)."""
    async with (
        running_hub(tmp_path, authority) as hub,
        hub.subscriber("edgecontroller") as cloud,
        hub.edge() as edge,
    ):
        await hub.accept(request(message_id="cm"))
        await edge.answer(await edge.next())
        for number in (1, 2):
            await hub.accept(
                request(
                    name=f"volume-{number}",
                    resource=f"default/volume/v{number}",
                    operation="createvolume",
                    message_id=f"v{number}",
                )
            )
        created, refused = await edge.take(2)
        await edge.send("response", "default/configmap/cm1", "OK", parent_id="cm")
        await edge.send("error", "default/configmap/cm1", "too late", parent_id="cm")
        await edge.answer(created, content="eyJ2b2x1bWUiOiAxfQ==")
        await edge.answer(refused, "error", "no room")
        got = [await cloud.until(lambda one: bool(one.message.parent_id)) for _ in range(2)]
        assert [(one.message.operation, one.message.parent_id, one.message.content) for one in got] == [
            ("response", "v1", b'"eyJ2b2x1bWUiOiAxfQ=="'),
            ("error", "v2", b'"no room"'),
        ]
        assert got[0].message.resource == "node/edge-1/default/volume/v1"
        assert hub.metric("dispatcher", "ignored_total", reason="unknown_message") == 2
        assert hub.metric("dispatcher", "refused_total") == 1


async def test_a_late_answer_expires(tmp_path: Path, authority: TestAuthority) -> None:
    """C40: an answer nobody acknowledges ends by its time, and one for an absent node is refused."""
    settings = {"answer_seconds": 0.3, "ack_seconds": 20}
    async with (
        running_hub(tmp_path, authority, dispatcher=settings) as hub,
        hub.subscriber("edgecontroller") as cloud,
    ):
        async with hub.edge() as edge:
            await edge.send("query", "default/configmap/cm1", source="metamanager", sync=True)
            delivery = await cloud.until(lambda one: one.message.operation == "query")
            published = (await hub.cloud.Publish(answer_to(delivery), timeout=5)).message_id
            got = await edge.next()
            assert got["header"]["parent_msg_id"] == delivery.message.id
            await eventually(lambda: hub.metric("dispatcher", "ended_total", reason="expired") == 1)
            explained = await hub.explain("edge-1", message_id=published)
            assert explained.state == pb.DELIVERY_STATE_ENDED
            assert "expired" in explained.explanation
            # The edge's acknowledgement comes too late to matter.
            await edge.answer(got)
            await eventually(lambda: hub.metric("dispatcher", "ignored_total", reason="unknown_message") == 1)
        await cloud.until(lambda one: one.message.operation == "disconnected")
        (outcome,) = await hub.publish(answer_to(delivery))
        assert outcome.outcome == pb.OUTCOME_NO_SESSION


async def test_the_hub_itself_answers_with_the_cluster_ca(tmp_path: Path, authority: TestAuthority) -> None:
    async with running_hub(tmp_path, authority) as hub, hub.fleet("edge-1") as fleet:
        answer = await fleet["edge-1"].request("k8s/ca.crt")
        assert "BEGIN CERTIFICATE" in json.loads(bytes(answer.content))
