"""gRPC without TLS: said so explicitly, and on loopback only."""

from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from services.connector.app import running_app as running_connector
from services.connector.settings import ConnectorSettings
from services.dispatcher.app import running_app as running_dispatcher
from services.dispatcher.settings import DispatcherSettings
from services.runtime.errors import StartupError
from services.runtime.rpc import RpcServer, open_channel, open_replicas_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, is_loopback
from services.runtime.serving import LIVE
from services.sessions.app import SessionsApp
from services.sessions.settings import SessionsSettings
from tests.support.certs import TestAuthority

REFUSED = "is not a loopback address: gRPC without TLS stays on this machine"


@pytest.mark.parametrize("address", ["127.0.0.1:1", "127.8.8.8:1", "[::1]:1", "localhost:1"])
def test_what_stays_on_this_machine(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize(
    "address", ["0.0.0.0:1", "[::]:1", "192.0.2.1:1", "hub.example:1", "localhost.x:1", "x"]
)
async def test_what_does_not_is_neither_bound_nor_dialled(address: str) -> None:
    """Nor is text that is no address, which a caller may say that another dispatcher has."""
    assert not is_loopback(address)
    with pytest.raises(StartupError, match=REFUSED):
        open_channel(address)
    with pytest.raises(StartupError, match=REFUSED):
        await RpcServer(address, [], PLAINTEXT_LOOPBACK).start()


def test_each_of_several_replicas_has_to_stay_here() -> None:
    with pytest.raises(StartupError, match=r"192\.0\.2\.1:2 is not a loopback"):
        open_replicas_channel("127.0.0.1:1,192.0.2.1:2", "cloudhub.v1.SessionsService")


LOCAL: dict[str, Any] = {"metrics_listen": "127.0.0.1:0", "grpc_insecure_loopback": True}


async def test_services_refuse_to_start_in_plaintext_towards_others(
    authority: TestAuthority, tmp_path: Path
) -> None:
    """By the address they listen on, and by the one they dial."""
    with pytest.raises(StartupError, match=REFUSED):
        await SessionsApp(SessionsSettings(**LOCAL, database=f"sqlite:///{tmp_path}/s.db")).start()
    changes: dict[str, Any]
    for changes in ({"listen": "0.0.0.0:0"}, {"listen": "127.0.0.1:0", "sessions": "192.0.2.1:50052"}):
        settings = DispatcherSettings.model_validate(
            {**LOCAL, "database": f"sqlite:///{tmp_path}/d.db", **changes}
        )
        with pytest.raises(StartupError, match=REFUSED):
            async with running_dispatcher(settings):
                pass
    edges = authority.issue("localhost", None, file="server")
    for changes in ({}, {"grpc_listen": "127.0.0.1:0", "dispatchers": "hub.example:50051"}):
        connector = ConnectorSettings.model_validate(
            {
                **LOCAL,
                "listen": "127.0.0.1:0",
                "certificate": edges.certificate,
                "private_key": edges.key,
                "client_ca": authority.certificate,
                **changes,
            }
        )
        with pytest.raises((StartupError, ExceptionGroup)) as refused:
            async with running_connector(connector):
                pass
        assert REFUSED in repr(refused.value) + repr(getattr(refused.value, "exceptions", ""))


async def test_without_the_setting_a_certificate_is_needed(tmp_path: Path) -> None:
    settings = SessionsSettings(
        listen="127.0.0.1:0", database=f"sqlite:///{tmp_path}/s.db", grpc_certificate=tmp_path / "none.crt"
    )
    with pytest.raises(StartupError, match=r"cannot read the certificate .*none\.crt"):
        SessionsApp(settings)


async def test_probes_have_health_without_tls_and_nothing_else(authority: TestAuthority) -> None:
    """Kubernetes' gRPC probes speak no TLS. A Watch would last as long as anybody likes."""
    security = authority.security(authority.service())
    server = RpcServer("127.0.0.1:0", ["cloudhub.v1.SessionsAdmin"], security, probes="127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{server.probe_port}") as opened:
            channel: Any = opened
            stub: Any = health_pb2_grpc.HealthStub(channel)
            live = await stub.Check(health_pb2.HealthCheckRequest(service=LIVE))
            assert live.status == health_pb2.HealthCheckResponse.SERVING
            ready = await stub.Check(health_pb2.HealthCheckRequest())
            assert ready.status == health_pb2.HealthCheckResponse.NOT_SERVING
            server.learned(ready=True)
            ready = await stub.Check(health_pb2.HealthCheckRequest())
            assert ready.status == health_pb2.HealthCheckResponse.SERVING
            for call in (
                stub.Watch(health_pb2.HealthCheckRequest()).read(),
                channel.unary_unary("/cloudhub.v1.SessionsAdmin/ListInstances")(b""),
                channel.unary_unary("/grpc.channelz.v1.Channelz/GetServers")(b""),
            ):
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await call
                assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        await server.stop(0)
