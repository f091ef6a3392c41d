"""Who is there, and what a bad caller gets."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from structlog.testing import capture_logs

from cloudhub.v1 import peer_pb2
from cloudhub.v1.peer_pb2_grpc import PeerServiceStub
from cloudhub.v1.sessions_pb2 import DispatcherPeer
from services.runtime.rpc import open_channel
from tests.support.certs import TestAuthority
from tests.support.hub import request
from tests.support.postgres import Databases
from tests.support.processes import HOST, eventually
from tests.support.replicas import running_replicas


async def test_peers_come_and_go_with_the_list(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """Nothing is left of one that went; an empty list says nothing."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        assert hub[0].metric("peers_known") == hub[0].metric("peers_attached") == 1
        hub[0].app.peers.seen([])
        assert len(hub[0].app.peers) == 1
        hub[0].app.peers.seen([hub[0].app.peers.own])
        await eventually(lambda: hub[0].metric("peers_attached") == 0)
        assert hub[0].metric("peers_known") == 0
        await hub.acquainted()
        assert hub[0].metric("peers_lost_total") == 0


async def test_a_new_dispatcher_is_known_to_those_it_calls(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """Before their next renewal shows it: so they relay from it at once."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        for replica in hub.all:
            replica.app.peers.seen([replica.app.peers.own])
        await eventually(lambda: len(hub[0].app.peers) == len(hub[1].app.peers) == 0)
        hub[0].app.peers.seen([replica.app.peers.own for replica in hub.all])
        await eventually(lambda: any(peer.is_attached for peer in hub[1].app.peers))


async def test_a_peer_that_comes_back_is_attached_again(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """Its relay breaks and is tried until it works; the log and a counter tell."""
    async with running_replicas(tmp_path, databases, authority) as hub:
        await hub.stop_replica(hub[1], told=False)
        await eventually(lambda: hub[0].metric("peers_lost_total") == 1)
        await hub.start_replica(hub[1])
        await hub.acquainted()


async def test_a_peer_that_cannot_be_reached_harms_nothing(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    async with running_replicas(tmp_path, databases, authority, 1) as hub, hub[0].edge() as edge:
        nowhere = DispatcherPeer(dispatcher_id="gone", address=f"{HOST}:1")
        hub[0].app.peers.seen([hub[0].app.peers.own, nowhere])
        await edge.send("query", "default/secret/s", source="metamanager", sync=True)
        assert (await edge.next())["route"]["operation"] == "error"
        assert hub[0].metric("peers_attached") == 0


@pytest.mark.parametrize("address", ["192.0.2.1:50051", "junk"])
async def test_a_peer_elsewhere_is_not_called_without_tls(
    tmp_path: Path, databases: Databases, authority: TestAuthority, address: str
) -> None:
    """Told once, although the list comes again and again."""
    elsewhere = DispatcherPeer(dispatcher_id="elsewhere", address=address)
    async with running_replicas(tmp_path, databases, authority, 1) as hub, hub[0].edge() as edge:
        with capture_logs() as logs:
            for _ in range(3):
                hub[0].app.peers.seen([hub[0].app.peers.own, elsewhere])
        (line,) = (one for one in logs if one["event"] == "peer.refused")
        assert f"{address} is not a loopback address" in line["error"]
        await hub[0].accept(request())
        await edge.answer(await edge.next())


@pytest.mark.parametrize(
    ("wanted", "field"),
    [
        ({}, "subscription.dispatcher_id"),
        ({"dispatcher_id": "d", "modules": ["Not A Module"]}, "subscription.modules"),
        ({"dispatcher_id": "d", "address": "\0"}, "subscription.address"),
        ({"dispatcher_id": "d", "name": "x" * 254}, "subscription.name"),
        ({"dispatcher_id": "d", "modules": ["router"]}, "subscription.max_unacknowledged"),
    ],
)
async def test_a_malformed_relay_is_refused_with_the_field(
    tmp_path: Path, databases: Databases, authority: TestAuthority, wanted: dict[str, Any], field: str
) -> None:
    async with (
        running_replicas(tmp_path, databases, authority, 1) as hub,
        open_channel(f"{HOST}:{hub[0].app.port}") as channel,
    ):
        stub: Any = PeerServiceStub(channel)
        call = stub.Relay()
        await call.write(peer_pb2.RelayRequest(subscription=peer_pb2.RelaySubscription(**wanted)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in str(refused.value.details())
        assert hub[0].app.upstream.served() == []


async def test_hints_and_messages_for_absent_nodes_are_told_so(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    async with (
        running_replicas(tmp_path, databases, authority, 1) as hub,
        hub[0].edge("edge-1"),
        open_channel(f"{HOST}:{hub[0].app.port}") as channel,
    ):
        stub: Any = PeerServiceStub(channel)
        hints = [peer_pb2.NodeHint(node_id=node_id, last_seq=1) for node_id in ("edge-1", "absent", "")]
        answer = await stub.Hint(peer_pb2.HintRequest(hints=hints), timeout=5)
        assert list(answer.not_here) == ["absent", ""]
        assert (await stub.SendDirect(peer_pb2.SendDirectRequest(), timeout=5)).outcomes == []
