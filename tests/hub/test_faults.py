"""What the hub says of itself, and how it goes on while one of its services is away."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_channelz.v1 import channelz_pb2, channelz_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status
from websockets.exceptions import InvalidStatus

from cloudhub.v1 import connector_pb2, sessions_pb2
from cloudhub.v1 import dispatcher_pb2 as pb
from tests.support.certs import TestAuthority
from tests.support.hub import RunningHub, request, running_hub
from tests.support.processes import eventually

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = {
    "sessions": ("cloudhub.v1.SessionsService", "cloudhub.v1.SessionsAdmin"),
    "dispatcher": (
        "cloudhub.v1.DispatcherService",
        "cloudhub.v1.DispatcherAdmin",
        "cloudhub.v1.LinkService",
    ),
    "connector": ("cloudhub.v1.ConnectorAdmin",),
}


async def health(hub: RunningHub, server: str, service: str = "") -> int:
    """What the server's health says of one of its services now."""
    stub: Any = health_pb2_grpc.HealthStub(await hub.channel(server))
    answer: health_pb2.HealthCheckResponse = await stub.Check(
        health_pb2.HealthCheckRequest(service=service), timeout=5
    )
    return answer.status


async def until_health(hub: RunningHub, server: str, wanted: dict[str, int], seconds: float = 15.0) -> None:
    """Returns when the server's health says all of this at once."""
    said: dict[str, int] = {}
    try:
        async with asyncio.timeout(seconds):
            while said != wanted:
                said = {service: await health(hub, server, service) for service in wanted}
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"the health of {server} is {said}, not {wanted}") from None


async def test_every_server_describes_itself(tmp_path: Path, authority: TestAuthority) -> None:
    """Health, reflection and channelz of each gRPC server."""
    async with running_hub(tmp_path, authority) as hub:
        for server, services in SERVICES.items():
            channel = await hub.channel(server)
            await until_health(hub, server, dict.fromkeys(("", *services), SERVING))
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]
            question = reflection_pb2.ServerReflectionRequest(list_services="")
            listed = {
                service.name
                async for answer in reflection.ServerReflectionInfo(iter([question]), timeout=5)
                for service in answer.list_services_response.service
            }
            assert listed >= {*services, "grpc.health.v1.Health", "grpc.channelz.v1.Channelz"}
            channelz: Any = channelz_pb2_grpc.ChannelzStub(channel)  # type: ignore[arg-type]
            servers = await channelz.GetServers(channelz_pb2.GetServersRequest(), timeout=5)
            assert sum(one.data.calls_started for one in servers.server) > 0


@pytest.mark.parametrize(
    ("server", "call", "status", "reason", "metadata"),
    [
        (
            "dispatcher",
            lambda hub: hub.dispatcher_admin.InspectNode(pb.InspectNodeRequest(node_id="Ü")),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            {"field": "node_id"},
        ),
        (
            "dispatcher",
            lambda hub: hub.dispatcher_admin.InspectNode(pb.InspectNodeRequest(node_id="nobody")),
            grpc.StatusCode.NOT_FOUND,
            "NODE_UNKNOWN",
            {"node_id": "nobody"},
        ),
        (
            "sessions",
            lambda hub: hub.sessions_admin.EvictSession(sessions_pb2.EvictSessionRequest(node_id="nobody")),
            grpc.StatusCode.NOT_FOUND,
            "UNKNOWN_NODE",
            {"node_id": "nobody"},
        ),
        (
            "connector",
            lambda hub: hub.connector_admin.ListLinks(connector_pb2.ListLinksRequest(page_size=5000)),
            grpc.StatusCode.INVALID_ARGUMENT,
            "INVALID_FIELD",
            {"field": "page_size"},
        ),
    ],
)
async def test_errors_say_what_is_wrong_to_programs_too(
    tmp_path: Path,
    authority: TestAuthority,
    server: str,
    call: Any,
    status: grpc.StatusCode,
    reason: str,
    metadata: dict[str, str],
) -> None:
    """google.rpc.ErrorInfo beside the status and the sentence."""
    async with running_hub(tmp_path, authority) as hub:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await call(hub)
        assert failed.value.code() is status
        assert failed.value.details()
        told: Any = rpc_status.from_call(failed.value)  # type: ignore[arg-type]
        info = error_details_pb2.ErrorInfo()
        assert told.details[0].Unpack(info)
        assert (info.reason, info.domain, dict(info.metadata)) == (reason, "cloudhub.dev", metadata)


async def test_without_sessions_publishing_and_delivery_go_on(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Live sessions go on, new links get 503 with Retry-After, health says so; all comes back by itself."""
    links, publishing = "cloudhub.v1.LinkService", "cloudhub.v1.DispatcherService"
    settings = {"lease_seconds": 1.0, "sessions_seconds": 1.0}
    async with (
        running_hub(tmp_path, authority, dispatcher=settings, sessions={"lease_seconds": 1.0}) as hub,
        hub.edge() as edge,
    ):
        epoch = (await hub.session("edge-1")).epoch
        await hub.sessions.stop()
        await until_health(hub, "dispatcher", {links: NOT_SERVING, "": NOT_SERVING, publishing: SERVING})
        await hub.accept(request(version=1), request("edge-2", name="later"))
        await edge.answer(await edge.next())
        await hub.until_state("edge-1", "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
        (outcome,) = await hub.publish(request("edge-2", name="now", ack_mode=pb.ACK_MODE_NO_ACK))
        assert outcome.outcome == pb.OUTCOME_UNAVAILABLE
        with pytest.raises(InvalidStatus) as refused:
            await hub.open_edge("edge-2")
        assert refused.value.response.status_code == 503
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        await hub.sessions.start()
        await until_health(hub, "dispatcher", {links: SERVING, "": SERVING, publishing: SERVING})
        async with hub.edge("edge-2") as other:
            assert (await other.next())["route"]["resource"] == "default/configmap/later"
        assert (await hub.session("edge-1")).epoch == epoch, "nobody's session ended"
        await hub.accept(request(version=2))
        assert (await edge.next())["header"]["resourceversion"] == "2"


async def test_a_dispatcher_that_comes_back_gets_its_connector_and_links_back(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """While it is away the connector says that it serves nobody; links stay up and no edge dials again."""
    async with running_hub(tmp_path, authority) as hub, hub.fleet("edge-1", "edge-2") as fleet:
        await hub.accept(request("edge-1", "edge-2", version=1))
        await hub.dispatcher.stop()
        await until_health(hub, "connector", {"": NOT_SERVING})
        await hub.dispatcher.start()
        await until_health(hub, "connector", {"": SERVING})
        async with asyncio.timeout(15):
            await fleet.connected()
        await hub.accept(request("edge-1", "edge-2", version=2))
        for node_id in ("edge-1", "edge-2"):
            explained = await hub.until_state(node_id, "uid-cm1", pb.DELIVERY_STATE_ACKNOWLEDGED)
            assert explained.object.acknowledged_version == "2"
            assert fleet[node_id].counters.links_opened == 1


async def test_a_connector_that_comes_back_finds_the_registry_clean(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """Invariant 6: its drain ended every session; the node is back under a new epoch."""
    async with running_hub(tmp_path, authority) as hub, hub.fleet("edge-1", "edge-2") as fleet:
        before = await hub.session("edge-1")
        await hub.connector.stop()
        await eventually(lambda: hub.metric("dispatcher", "connectors") == 0)
        assert hub.metric("dispatcher", "sessions") == 0
        closed = await hub.until_session("edge-1", lambda one: one.state == sessions_pb2.SESSION_STATE_CLOSED)
        assert closed.epoch == before.epoch
        await hub.connector.start()
        async with asyncio.timeout(15):
            await fleet.connected()
        assert (await hub.session("edge-1")).epoch > before.epoch
        limits = await hub.sessions_admin.GetLimits(sessions_pb2.GetLimitsRequest(), timeout=5)
        assert limits.nodes == 2


@pytest.mark.parametrize("service", ["", "cloudhub.v1.DispatcherService"])
async def test_a_draining_dispatcher_never_serves_again(
    tmp_path: Path, authority: TestAuthority, service: str
) -> None:
    """Its lease is renewed and its database takes writes while it hands its links over: neither makes it
    ready again, so nobody is sent to a process that goes."""
    lease = {"lease_seconds": 0.6}
    async with running_hub(tmp_path, authority, dispatcher=lease, sessions=lease) as hub, hub.edge():
        await until_health(hub, "dispatcher", {service: SERVING})
        stub: Any = health_pb2_grpc.HealthStub(await hub.channel("dispatcher"))
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=service))
        assert (await watch.read()).status == SERVING
        # Nobody else can take the link, so that the drain lasts for a second.
        stopping = asyncio.create_task(hub.dispatcher.stop())
        said = []
        with pytest.raises(grpc.aio.AioRpcError, match="UNAVAILABLE"):
            while True:
                said.append((await watch.read()).status)
        await stopping
        assert said == [NOT_SERVING]
