"""Publishing through a dispatcher that does not hold the node's session."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from services.dispatcher.peers import sweep
from services.dispatcher.peers.peer import Peer
from services.dispatcher.sessions_client import SessionsClient
from tests.support.certs import TestAuthority
from tests.support.hub import StockEdge, request
from tests.support.postgres import Databases
from tests.support.processes import eventually
from tests.support.replicas import running_replicas


def version(message: dict[str, Any]) -> str:
    return str(message["header"]["resourceversion"])


async def take_over(edge: StockEdge, count: int) -> list[str]:
    """The versions of the next messages, each acknowledged."""
    got = []
    for _ in range(count):
        message = await edge.next(10)
        got.append(version(message))
        await edge.answer(message)
    return got


@pytest.fixture
def no_hints(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every hint is lost on its way."""
    monkeypatch.setattr(Peer, "hint", lambda *_: None)


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but hints tells an owner."""
    monkeypatch.setattr(sweep.Sweep.__init__, "__defaults__", (3600.0,))


@pytest.mark.usefixtures("no_sweep")
async def test_a_publish_through_another_dispatcher_reaches_the_node_by_a_hint(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C34: in order, at once."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        for number in range(1, 6):
            await hub[0].accept(request(version=number, name=f"cm{number}"))
        assert await take_over(edge, 5) == ["1", "2", "3", "4", "5"]
        await eventually(lambda: hub[0].metric("peers_hints_total", outcome="told") >= 1)
        assert hub[1].metric("peers_hinted_total", session="here") >= 1
        assert hub[1].metric("rereads_total") == 0, "the messages themselves came with the hints"


@pytest.mark.usefixtures("no_sweep")
async def test_publishes_through_both_dispatchers_at_once_all_arrive(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C34, C38: what is handed over out of turn is read from the outbox; objects end as last accepted."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        for number in range(1, 11):
            left = [request(version=number, name=f"left{name}") for name in range(5)]
            right = [request(version=number, name=f"right{name}") for name in range(5)]
            await asyncio.gather(*map(hub[0].accept, left), *map(hub[1].accept, right))
        last: dict[str, int] = {}
        async with asyncio.timeout(20):
            while set(last.values()) != {10} or len(last) < 10:
                message = await edge.next(10)
                resource = message["route"]["resource"]
                assert int(version(message)) > last.get(resource, 0), "never an older one after a newer"
                last[resource] = int(version(message))
                await edge.answer(message)


@pytest.mark.usefixtures("no_hints")
async def test_a_publish_reaches_the_node_by_the_sweep_when_every_hint_is_lost(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C34: nothing depends on a hint that arrived."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        # Both at once: nobody knows the node's dispatcher yet, which would be given the second one to write.
        both = [request(version=1), request(version=1, name="other")]
        await asyncio.gather(*map(hub[0].accept, both))
        assert await take_over(edge, 2) == ["1", "1"]
        assert hub[1].metric("peers_swept_total") >= 1


async def test_a_node_that_moved_gets_what_is_published_through_its_former_dispatcher(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C34: also while ownership moves; a hint to the former owner is answered and found by the sweep."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        number = 0
        for owner in (1, 0, 1):
            async with hub[owner].edge() as edge:
                for through in (0, 1, 0):
                    number += 1
                    await hub[through].accept(request(version=number))
                seen = await take_over(edge, 1)
                while seen[-1] != str(number):
                    seen += await take_over(edge, 1)
                assert [int(one) for one in seen] == sorted(int(one) for one in seen)


async def test_a_delayed_commit_never_brings_the_older_version_after_the_newer(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C38: the older is published through one dispatcher whose commit is late, the newer through another."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        first = hub[0].app.delivery.writer
        release = asyncio.Event()
        commit = first._one_batch

        async def late() -> bool:
            await release.wait()
            return await commit()

        first._one_batch = late  # type: ignore[method-assign]
        older = asyncio.create_task(hub[0].publish(request(version=1)))
        await eventually(lambda: first.waiting == 1)
        await hub[1].accept(request(version=2))
        assert await take_over(edge, 1) == ["2"]
        release.set()
        (outcome,) = await older
        assert outcome.outcome == pb.OUTCOME_STALE
        await hub[0].accept(request(version=3))
        assert await take_over(edge, 1) == ["3"]


@pytest.mark.usefixtures("no_hints")
async def test_a_commit_between_a_pools_load_and_its_start_is_delivered(
    tmp_path: Path, databases: Databases, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C38: the pool has read the outbox but does not send yet; another dispatcher commits then."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        activate = SessionsClient.activate
        committed = asyncio.Event()

        async def late(client: SessionsClient, refs: Any) -> Any:
            await hub[0].accept(request(version=7))
            committed.set()
            return await activate(client, refs)

        monkeypatch.setattr(SessionsClient, "activate", late)
        async with hub[1].edge() as edge:
            assert committed.is_set()
            assert await take_over(edge, 1) == ["7"]


async def test_what_an_operator_does_through_another_dispatcher_reaches_the_owner(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C34: Redeliver un-parks; Purge takes away what the owner would have sent."""
    async with (
        running_replicas(tmp_path, databases, authority, window_messages=1) as hub,
        hub[1].edge() as edge,
    ):
        await hub[1].accept(request(name="refused"))
        await edge.answer(await edge.next(), "error", "no room")
        await eventually(lambda: hub[1].metric("parked_total", reason="refused") == 1)
        await hub[0].admin.Redeliver(pb.RedeliverRequest(node_id="edge-1"), timeout=5)
        again = await edge.next()
        assert again["route"]["resource"] == "default/configmap/refused"
        # The window is full: the next one waits, is purged elsewhere, and never goes.
        await hub[1].accept(request(name="purged"))
        await hub[1].accept(request(name="last"))
        await hub[0].admin.Purge(pb.PurgeRequest(node_id="edge-1", object_key="uid-purged"), timeout=5)
        await eventually(lambda: hub[1].app.delivery.sessions["edge-1"].policy.state_of("uid-purged") is None)
        await edge.answer(again)
        assert (await edge.next())["route"]["resource"] == "default/configmap/last"


async def test_a_message_without_acknowledgement_takes_the_way_over_the_owner(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C26, C34: sent once; its outcome is the owner's."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        direct = request("edge-1", "edge-absent", name="hello", ack_mode=pb.ACK_MODE_NO_ACK)
        here, absent = await hub[0].publish(direct)
        assert here.outcome == pb.OUTCOME_ACCEPTED
        assert (absent.outcome, absent.node_id) == (pb.OUTCOME_NO_SESSION, "edge-absent")
        assert (await edge.next())["route"]["resource"] == "default/configmap/hello"
        await hub.stop_replica(hub[0], told=False)
        await edge.gets_nothing(0.2)


async def test_a_message_without_acknowledgement_tells_that_the_owner_is_away(
    tmp_path: Path, databases: Databases, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C26: what became of it is unknown, and nothing else of the call is harmed."""
    monkeypatch.setattr("services.dispatcher.peers.peer.CALL_SECONDS", 0.3)
    async with (
        running_replicas(tmp_path, databases, authority) as hub,
        hub[1].edge(),
        hub[0].edge("edge-0") as here,
    ):
        await hub[1].app.server.grpc_server.stop(0)
        outcomes = await hub[0].publish(request("edge-1", "edge-0", ack_mode=pb.ACK_MODE_NO_ACK))
        assert [one.outcome for one in outcomes] == [pb.OUTCOME_UNAVAILABLE, pb.OUTCOME_ACCEPTED]
        assert outcomes[0].reason == "PEER_UNAVAILABLE"
        await here.next()
        await hub[0].accept(request("edge-1", "edge-0"))
        await here.next()


async def test_an_answer_to_a_request_reaches_a_node_of_another_dispatcher(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C40: through the outbox; a node that is connected nowhere gets none."""
    async with running_replicas(tmp_path, databases, authority) as hub, hub[1].edge() as edge:
        answer = request(operation="response", parent_id="req-1", content={"data": "x"})
        await hub[0].accept(answer)
        got = await edge.next()
        assert got["header"]["parent_msg_id"] == "req-1"
        await edge.answer(got)
        (outcome,) = await hub[0].publish(request("edge-absent", operation="response", parent_id="req-1"))
        assert outcome.outcome == pb.OUTCOME_NO_SESSION
