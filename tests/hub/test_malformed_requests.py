"""Requests that are none, and what must not come of them."""

from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1 import link_pb2, sessions_pb2
from cloudhub.v1.link_pb2_grpc import LinkServiceStub
from tests.support.certs import TestAuthority
from tests.support.hub import request, running_hub

# The beginning of a number that does not end.
_NO_REQUEST = b"\xff"


def _named_field(error: grpc.aio.AioRpcError) -> str:
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT, error
    status = rpc_status.from_call(cast("grpc.Call", error))
    info = error_details_pb2.ErrorInfo()
    assert status is not None
    assert status.details[0].Unpack(info)
    return str(info.metadata["field"])


@pytest.mark.parametrize(
    ("server", "path", "streams"),
    [
        ("dispatcher", "DispatcherService/Publish", False),
        ("dispatcher", "DispatcherService/PublishStream", True),
        ("dispatcher", "DispatcherService/Subscribe", True),
        ("dispatcher", "LinkService/Attach", True),
        ("sessions", "SessionsAdmin/GetSession", False),
        ("connector", "ConnectorAdmin/Drain", False),
    ],
)
async def test_bytes_that_are_no_request_are_the_callers_fault(
    tmp_path: Path, authority: TestAuthority, server: str, path: str, streams: bool
) -> None:
    """Invariant 10: gRPC by itself answers UNKNOWN, as if the hub had failed."""
    async with running_hub(tmp_path, authority) as hub:
        channel: Any = await hub.channel(server)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            if streams:
                call = channel.stream_stream(f"/cloudhub.v1.{path}")()
                await call.write(_NO_REQUEST)
                await call.read()
            else:
                await channel.unary_unary(f"/cloudhub.v1.{path}")(_NO_REQUEST, timeout=5)
        assert _named_field(refused.value) == "request"


async def test_what_came_before_a_malformed_frame_is_answered(
    tmp_path: Path, authority: TestAuthority
) -> None:
    async with running_hub(tmp_path, authority) as hub:
        channel = await hub.channel("dispatcher")
        call: Any = channel.stream_stream(
            "/cloudhub.v1.DispatcherService/PublishStream", None, pb.PublishStreamResponse.FromString
        )()
        await call.write(pb.PublishStreamRequest(requests=[request("edge-1")]).SerializeToString())
        await call.write(_NO_REQUEST)
        answer = await call.read()
        assert answer.responses[0].outcomes[0].outcome == pb.OUTCOME_ACCEPTED
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert _named_field(refused.value) == "request"


@pytest.mark.parametrize(
    ("hello", "field"),
    [
        ({}, "hello.connector_id"),
        ({"connector_id": "a b"}, "hello.connector_id"),
        ({"connector_id": "c", "name": "x" * 254}, "hello.name"),
        ({"connector_id": "c", "address": "\n"}, "hello.address"),
    ],
)
async def test_a_connector_that_cannot_be_named_is_refused(
    tmp_path: Path, authority: TestAuthority, hello: dict[str, str], field: str
) -> None:
    """Its name goes into the dispatcher's renewals: sessions would refuse those, and the lease be lost."""
    async with running_hub(tmp_path, authority) as hub:
        stub: Any = LinkServiceStub(await hub.channel("dispatcher"))
        call = stub.Attach()
        await call.write(link_pb2.ConnectorBatch(hello=link_pb2.ConnectorHello(**hello)))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert _named_field(refused.value) == field


@pytest.mark.parametrize(
    "bad", [{"transport": "tcp"}, {"peer_address": "x" * 254}, {"peer_address": "\0"}, {"link": 2**63}]
)
async def test_a_malformed_announcement_spoils_no_other(
    tmp_path: Path, authority: TestAuthority, bad: dict[str, Any]
) -> None:
    """Invariant 10: sessions opens a batch or refuses all of it."""
    async with running_hub(tmp_path, authority) as hub:
        stub: Any = LinkServiceStub(await hub.channel("dispatcher"))
        call = stub.Attach()
        good = link_pb2.LinkAnnouncement(
            link=1, node_id="edge-1", project_id="p1", transport="websocket", peer_address="192.0.2.1:1"
        )
        other = link_pb2.LinkAnnouncement(link=2, node_id="edge-2", project_id="p1", transport="websocket")
        other.MergeFrom(link_pb2.LinkAnnouncement(**bad))
        await call.write(
            link_pb2.ConnectorBatch(
                hello=link_pb2.ConnectorHello(connector_id="c1"), announcements=[other, good]
            )
        )
        verdicts: dict[int, link_pb2.LinkVerdict] = {}
        while len(verdicts) < 2:
            verdicts |= {verdict.link: verdict for verdict in (await call.read()).verdicts}
        assert verdicts[good.link].epoch > 0
        assert verdicts[other.link].refusal.reason == link_pb2.REFUSAL_REASON_FORBIDDEN
        call.cancel()


async def test_a_name_with_spaces_keeps_its_lease(tmp_path: Path, authority: TestAuthority) -> None:
    """A dispatcher's id is made of its name, and sessions takes no spaces in ids."""
    async with running_hub(tmp_path, authority, dispatcher={"name": "Büro 2 " + "x" * 200}) as hub:
        async with hub.edge() as edge:
            await hub.accept(request())
            assert (await edge.next())["route"]["resource"] == "default/configmap/cm1"
        found = await hub.sessions_admin.ListInstances(sessions_pb2.ListInstancesRequest(), timeout=5)
        assert any(one.name.startswith("Büro 2") for one in found.instances)
