"""Publishes that the node's dispatcher writes, whoever took them in."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import peer_pb2
from cloudhub.v1.message_pb2 import Message
from cloudhub.v1.peer_pb2_grpc import PeerServiceStub
from services.dispatcher.peers import forward_intake, peer
from services.dispatcher.peers.forward_intake import ForwardIntake
from services.runtime.rpc import open_channel
from tests.support.certs import TestAuthority
from tests.support.hub import StockEdge, request
from tests.support.postgres import Databases
from tests.support.processes import HOST, eventually
from tests.support.replicas import Replica, Replicas, running_replicas

ANSWERED, RETURNED = {"outcome": "answered"}, {"outcome": "returned"}


async def known_owner(hub: Replicas, edge: StockEdge, node_id: str = "edge-1") -> None:
    """Returns when the first dispatcher knows that the second one has the node."""
    peers = hub[0].app.peers
    owner = hub[1].app.peers.own.dispatcher_id
    await hub[0].accept(request(node_id, name="first"))
    await edge.answer(await edge.next(10))
    await eventually(lambda: peers.locations.find(node_id, asyncio.get_running_loop().time()) == owner)
    await eventually(lambda: any(one.forwards is not None for one in peers))
    # By a hint or already by its owner: nothing of it is still under way.
    ways = (("peers_hints_total", {"outcome": "told"}), ("peers_publishes_total", ANSWERED))
    await eventually(lambda: sum(hub[0].metric(name, **labels) for name, labels in ways) >= 1)


async def apply_all(edge: StockEdge, seen: list[str]) -> None:
    """The edge acknowledges whatever comes; its operations, in order."""
    while True:
        message = await edge.next(30)
        seen.append(message["route"]["operation"])
        await edge.answer(message)


async def all_settled(hub: Replicas) -> None:
    """Returns when nothing is pending for the node."""
    asked = pb.InspectNodeRequest(node_id="edge-1")
    async with asyncio.timeout(10):
        while (await hub[0].admin.InspectNode(asked)).node.pending:  # noqa: ASYNC110 - the hub tells nobody
            await asyncio.sleep(0.02)


async def published(replica: Replica, *requests: pb.PublishRequest) -> list[pb.NodeOutcome]:
    """The outcomes of requests that go one after the other over one stream, none waited for."""
    call = replica.cloud.PublishStream(timeout=20)
    for one in requests:
        await call.write(pb.PublishStreamRequest(requests=[one]))
    await call.done_writing()
    outcomes = []
    while (answer := await call.read()) is not grpc.aio.EOF:
        outcomes += [outcome for response in answer.responses for outcome in response.outcomes]
    return outcomes


async def test_the_owner_writes_what_others_take_in(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C34: in order, without a hint."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        await known_owner(hub, edge)
        told = hub[0].metric("peers_hints_total", outcome="told")
        wanted = [request(name=f"cm{number}", version=number) for number in range(1, 21)]
        outcomes = await published(hub[0], *wanted)
        assert [outcome.outcome for outcome in outcomes] == [pb.OUTCOME_ACCEPTED] * 20
        assert {outcome.node_id for outcome in outcomes} == {"edge-1"}
        for number in range(1, 21):
            message = await edge.next(10)
            assert message["header"]["resourceversion"] == str(number)
            await edge.answer(message)
        assert hub[0].metric("peers_publishes_total", **ANSWERED) == 20
        assert hub[0].metric("peers_hints_total", outcome="told") == told
        assert hub[1].metric("rereads_total") == 0
        (stale,) = await hub[0].publish(request(name="cm9", version=3))
        assert (stale.outcome, stale.reason) == (pb.OUTCOME_STALE, "BELOW_FLOOR")


async def test_what_is_stored_is_sent_though_the_rest_of_its_frame_waits_for_another_owner(
    tmp_path: Path, databases: Databases, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a later publish overtook it, and what the session has would have to be read again."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as far:
        await known_owner(hub, far)
        async with hub[0].edge("edge-2") as near:
            monkeypatch.setattr(ForwardIntake, "_take", lambda *_: None)
            call = hub[0].cloud.PublishStream(timeout=20)
            frame = [request(name="cm1"), request("edge-2", name="cm1")]
            await call.write(pb.PublishStreamRequest(requests=frame))
            await near.answer(await near.next(10))
            await call.write(pb.PublishStreamRequest(requests=[request("edge-2", name="cm2")]))
            await near.answer(await near.next(10))
            assert hub[0].metric("peers_publishes_total", **RETURNED) == 0, "the owner still has it"
            assert hub[0].metric("rereads_total") == 0
            call.cancel()


async def test_an_objects_delete_by_path_keeps_its_place_between_what_the_owner_writes(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C15: it may not be written twice, so it is written here, behind what goes before it."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        await known_owner(hub, edge)
        seen: list[str] = []
        edge_works = asyncio.create_task(apply_all(edge, seen))
        for turn in range(5):
            old = request(uid=f"old{turn}", version=10 * turn + 1)
            delete = request(uid="", version="", operation="delete")
            new = request(uid=f"new{turn}", version=10 * turn + 2)
            gone = request(uid="", version="", operation="delete")
            outcomes = await published(hub[0], old, delete, new, gone)
            assert [outcome.outcome for outcome in outcomes] == [pb.OUTCOME_ACCEPTED] * 4
            await all_settled(hub)
            assert seen[-1] == "delete", "nothing came behind it"
        edge_works.cancel()
        assert hub[0].metric("peers_publishes_total", **ANSWERED) >= 5


@pytest.mark.parametrize("is_stored", [False, True])
async def test_an_owner_that_falls_silent_holds_up_nobody(
    tmp_path: Path,
    databases: Databases,
    authority: TestAuthority,
    monkeypatch: pytest.MonkeyPatch,
    is_stored: bool,
) -> None:
    """C35: whether it has stored the message or not, it is stored from here, in order, and sent once."""
    monkeypatch.setattr(peer, "SILENT_SECONDS", 1.5)
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        await known_owner(hub, edge)
        with monkeypatch.context() as patch:
            patch.setattr(forward_intake, "HEARTBEAT_SECONDS", 60.0)
            if is_stored:
                patch.setattr(ForwardIntake, "_came", lambda *_: None)
            else:
                patch.setattr(ForwardIntake, "_take", lambda *_: None)
            outcomes = await published(
                hub[0], *(request(name=f"cm{number}", version=number) for number in range(1, 4))
            )
        assert {outcome.outcome for outcome in outcomes} == {pb.OUTCOME_ACCEPTED}
        assert all(outcome.duplicate_of for outcome in outcomes) == is_stored
        got = []
        for _ in range(3):
            message = await edge.next(10)
            got.append(message["header"]["resourceversion"])
            await edge.answer(message)
        assert got == ["1", "2", "3"]
        assert hub[0].metric("peers_publishes_total", **RETURNED) == 3
        await all_settled(hub)


async def test_what_waits_for_an_owner_that_stops_is_stored_all_the_same(
    tmp_path: Path, databases: Databases, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C12, C35."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        async with hub[1].edge() as edge:
            await known_owner(hub, edge)
            monkeypatch.setattr(ForwardIntake, "_take", lambda *_: None)
            waiting = asyncio.create_task(hub[0].publish(request(name="late", version=7)))
            await eventually(lambda: any(one.forwards and len(one.forwards) for one in hub[0].app.peers))
            await hub.stop_replica(hub[1])
            (outcome,) = await waiting
            assert outcome.outcome == pb.OUTCOME_ACCEPTED
        monkeypatch.undo()
        async with hub[0].edge() as edge:
            message = await edge.next(10)
            assert message["header"]["resourceversion"] == "7"


def forwarded(**changes: Any) -> peer_pb2.ForwardedMessage:
    message = Message(id="m1", resource="p/x/1", resource_version="1", operation="update", content=b"1")
    for field in ("id", "resource", "resource_version", "operation"):
        if field in changes:
            setattr(message, field, changes.pop(field))
    return peer_pb2.ForwardedMessage(
        **{"node_id": "edge-1", "message": message.SerializeToString(), "uid": "u1"} | changes
    )


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"node_id": "Not A Node"}, "messages[0].node_id"),
        ({"message": b"\xff"}, "messages[0].message"),
        ({"id": ""}, "messages[0].message.id"),
        ({"resource_version": "x"}, "messages[0].message.resource_version"),
        ({"resource_version": ""}, "messages[0].message.resource_version"),
        ({"uid": "", "operation": "delete"}, "messages[0].uid"),
        ({"uid": "", "resource": ""}, "messages[0].uid"),
    ],
)
async def test_what_no_dispatcher_forwards_is_refused_with_the_field(
    tmp_path: Path, databases: Databases, authority: TestAuthority, changes: dict[str, Any], field: str
) -> None:
    """Invariant 10."""
    async with (
        running_replicas(tmp_path, databases, authority, 1) as hub,
        open_channel(f"{HOST}:{hub[0].app.port}") as channel,
    ):
        stub: Any = PeerServiceStub(channel)
        call = stub.Forward()
        good = stub.Forward()
        await call.write(peer_pb2.ForwardRequest(messages=[forwarded(**changes)]))
        await good.write(peer_pb2.ForwardRequest(messages=[forwarded(node_id="edge-2")]))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            while await call.read() is not grpc.aio.EOF:
                pass
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in str(refused.value.details())
        outcomes: list[pb.NodeOutcome] = []
        while not outcomes:
            response = await good.read()
            outcomes += response.outcomes
            not_here = list(response.not_here)
        assert [outcome.outcome for outcome in outcomes] == [pb.OUTCOME_ACCEPTED]
        assert not_here == ["edge-2"]
        good.cancel()
