"""Two of each service, all of them joined by mutual TLS."""

from pathlib import Path
from typing import Any

import grpc
import pytest

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.peer_pb2 import LookAtNodesRequest
from cloudhub.v1.peer_pb2_grpc import PeerServiceStub
from services.dispatcher.outbox import schema as outbox_schema
from services.runtime.roles import Role
from services.runtime.rpc import error_info, open_channel
from services.sessions import schema as sessions_schema
from tests.support.certs import TestAuthority
from tests.support.hub import request, running_hub
from tests.support.postgres import Databases


async def test_messages_pass_whichever_dispatcher_has_the_node(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """C34 and C39 over TLS: publishes, messages without acknowledgement and what edges send, through both."""
    urls = {
        "sessions": await databases.fresh(sessions_schema.SCHEMA),
        "dispatcher": await databases.fresh(outbox_schema.SCHEMA),
    }
    nodes = [f"edge-{number}" for number in range(1, 7)]
    async with running_hub(
        *(tmp_path, authority), dispatchers=2, connectors=2, registries=2, databases=urls, tls=True
    ) as hub:
        edges = [
            await hub.open_edge(node, at="connector" if number % 2 else "connector-2")
            for number, node in enumerate(nodes)
        ]
        for number, name in enumerate(("dispatcher", "dispatcher-2"), 1):
            cloud: Any = DispatcherServiceStub(await hub.channel(name))
            answer = await cloud.Publish(request(*nodes, version=number))
            assert {one.outcome for one in answer.outcomes} == {pb.OUTCOME_ACCEPTED}
            at_once = request(*nodes, name=f"now-{number}", ack_mode=pb.ACK_MODE_NO_ACK)
            answer = await cloud.Publish(at_once)
            assert {one.outcome for one in answer.outcomes} == {pb.OUTCOME_ACCEPTED}
            for edge in edges:
                got = {message["route"]["resource"]: message for message in await edge.take(2)}
                assert set(got) == {"default/configmap/cm1", f"default/configmap/now-{number}"}
                await edge.answer(got["default/configmap/cm1"])
        async with hub.subscriber("router") as program:
            for edge in edges:
                await edge.send("upload", "data", "reading", group="user", source="eventbus")
            delivered = await program.take(len(nodes))
        assert sorted(one.node_id for one in delivered) == nodes
        for edge in edges:
            await edge.connection.close()


async def test_a_role_is_checked_where_it_asks_and_no_other_may_ask_dispatchers_as_they_do(
    tmp_path: Path, databases: Databases, authority: TestAuthority
) -> None:
    """What one dispatcher asks another for an operator, it asks as a service: a publisher gets nothing by
    that way, an operator nothing directly."""
    urls = {
        "sessions": await databases.fresh(sessions_schema.SCHEMA),
        "dispatcher": await databases.fresh(outbox_schema.SCHEMA),
    }
    wanted = pb.ListNodesRequest(everywhere=True)
    async with running_hub(
        *(tmp_path, authority), dispatchers=2, connectors=2, databases=urls, tls=True
    ) as hub:
        for node in ("edge-1", "edge-2", "edge-3"):
            await hub.open_edge(node)
        address = hub.address("dispatcher")
        operator, publisher = (
            authority.security(authority.program(role.name.lower(), role))
            for role in (Role.OPERATOR, Role.PUBLISHER)
        )
        async with open_channel(address, operator) as theirs, open_channel(address, publisher) as others:
            admin: Any = DispatcherAdminStub(theirs)
            answer = await admin.ListNodes(wanted, timeout=5)
            assert ([one.connected for one in answer.nodes], list(answer.silent)) == ([True] * 3, [])
            stub: Any = DispatcherAdminStub(others)
            peer: Any = PeerServiceStub(theirs)
            for call in (stub.ListNodes(wanted), peer.LookAtNodes(LookAtNodesRequest(node_ids=["edge-1"]))):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
                assert error_info(refused.value)[0] == "ROLE_FORBIDDEN"
