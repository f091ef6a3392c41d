"""Certificates that are rotated under a hub at work: nothing restarts, no message is lost."""

import asyncio
import ssl
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherServiceStub
from services.runtime import tls_files
from services.runtime.clock import SystemClock
from services.runtime.roles import Role
from services.runtime.rpc import RpcServer, error_reason, open_channel
from services.runtime.security import SERVICE_NAME, MutualTls
from tests.support.certs import Issued, TestAuthority
from tests.support.hub import RunningHub, request
from tests.support.processes import eventually

LOOK_SECONDS = 0.05


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_files, "LOOK_SECONDS", LOOK_SECONDS)


async def shown(address: str, security_of: Issued, authority: TestAuthority, name: str) -> x509.Certificate:
    """The certificate that a server shows to a new connection."""
    host, port = address.split(":")
    context = authority.client_context(security_of)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["h2"])
    _, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
    writer.transport.abort()
    return x509.load_der_x509_certificate(der)


def files(authority: TestAuthority, stem: str) -> Issued:
    """The pair of files that a part of the hub was started with."""
    folder = authority.certificate.parent
    return Issued(folder / f"{stem}.crt", folder / f"{stem}.key")


def serial(issued: Issued) -> int:
    return x509.load_pem_x509_certificate(issued.certificate.read_bytes()).serial_number


class Traffic:
    """Publishes version after version to one node, whose edge acknowledges each."""

    def __init__(self, hub: RunningHub) -> None:
        self._hub = hub
        self.outcomes: list[int] = []
        self.versions: list[str] = []

    async def publish(self, stop: asyncio.Event) -> None:
        """By single calls, until told to stop."""
        while not stop.is_set():
            response = await self._hub.cloud.Publish(request("edge-1", version=len(self.outcomes) + 1))
            self.outcomes += [outcome.outcome for outcome in response.outcomes]

    async def receive(self, edge: Any) -> None:
        """What the edge gets; ends by cancellation."""
        while True:
            message = await edge.next(30)
            self.versions.append(message["header"]["resourceversion"])
            await edge.answer(message)


async def test_all_certificates_and_the_ca_change_in_the_middle_of_traffic(
    hub: RunningHub, authority: TestAuthority, tmp_path: Path
) -> None:
    """The usual order: first both CAs are trusted, then certificates of the next one come, then the former CA
    goes. Live links and streams stay; every call is answered."""
    traffic, stop = Traffic(hub), asyncio.Event()
    renewing = asyncio.create_task(hub.security.run())
    former_ca = authority.certificate.read_bytes()
    former_program = authority.program("former", Role.PUBLISHER)
    with capture_logs() as logs:

        async def step(what: str) -> None:
            """All four parties (three services and our channels) took the newer files."""
            count = len(traffic.outcomes)
            await eventually(
                lambda: sum(line["event"] == "certificates.renewed" for line in logs) >= 4, 10, what
            )
            assert not [line for line in logs if line["event"] == "certificates.kept"]
            logs.clear()
            await eventually(lambda: len(traffic.outcomes) > count + 3, 10, f"traffic after {what}")

        async with hub.edge("edge-1") as edge, asyncio.TaskGroup() as group:
            publishing = group.create_task(traffic.publish(stop))
            receiving = group.create_task(traffic.receive(edge))
            await eventually(lambda: len(traffic.outcomes) > 5, 10, "traffic")
            following = TestAuthority(tmp_path / "next", "next CA")
            authority.certificate.write_bytes(former_ca + following.certificate.read_bytes())
            await step("both CAs")
            # Into the files that everybody has: one after the other, as a tool that knows no better does.
            for new, old in (
                (following.service(), files(authority, "service")),
                (following.program("tests", Role.PUBLISHER, Role.OPERATOR), files(authority, "tests")),
            ):
                old.key.write_bytes(new.key.read_bytes())
                old.certificate.write_bytes(new.certificate.read_bytes())
            await eventually(lambda: sum("renewed" in line["event"] for line in logs) >= 4, 10, "pairs")
            logs.clear()
            authority.certificate.write_bytes(following.certificate.read_bytes())
            await step("the next CA alone")
            stop.set()
            await publishing
            await eventually(
                lambda: traffic.versions[-1:] == [str(len(traffic.outcomes))], 10, "the last one"
            )
            receiving.cancel()
    assert set(traffic.outcomes) == {pb.OUTCOME_ACCEPTED}
    assert [int(version) for version in traffic.versions] == sorted(map(int, traffic.versions))
    for server in ("connector", "dispatcher", "sessions"):
        found = await shown(hub.address(server), files(authority, "tests"), following, SERVICE_NAME)
        assert found.serial_number == serial(files(authority, "service"))
    # Who has a certificate of the former CA is not served over a new connection.
    former = MutualTls(
        tls_files.TlsFiles(former_program.certificate, former_program.key, following.certificate),
        SystemClock(),
    )
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        async with open_channel(hub.address("dispatcher"), former) as channel:
            stub: Any = DispatcherServiceStub(channel)
            await stub.Publish(request("edge-1", version=1))
    assert error_reason(refused.value) == "CERTIFICATE_UNTRUSTED"
    renewing.cancel()
    await asyncio.wait([renewing])


async def test_half_a_pair_leaves_the_server_with_the_former_one(
    hub: RunningHub, authority: TestAuthority
) -> None:
    before = serial(files(authority, "service"))
    other = authority.service("other")
    with capture_logs() as logs:
        files(authority, "service").certificate.write_bytes(other.certificate.read_bytes())
        await eventually(
            lambda: sum(line["event"] == "certificates.kept" for line in logs) == 3, 10, "told of it"
        )
    (text,) = {line["error"] for line in logs if line["event"] == "certificates.kept"}
    assert str(files(authority, "service").key) in text
    program = files(authority, "tests")
    found = await shown(hub.address("dispatcher"), program, authority, SERVICE_NAME)
    assert found.serial_number == before


async def test_a_running_stream_outlives_the_connection_that_new_calls_leave(
    hub: RunningHub, authority: TestAuthority
) -> None:
    security = authority.security(authority.program("shop", Role.PUBLISHER))
    async with open_channel(hub.address("dispatcher"), security) as channel:
        stub: Any = DispatcherServiceStub(channel)
        call = stub.PublishStream()
        await call.write(pb.PublishStreamRequest(requests=[request("edge-1", version=1)]))
        assert (await call.read()).responses
        with capture_logs() as logs:
            authority.program("shop", Role.PUBLISHER)
            assert security.look()
            await eventually(lambda: "channel.renewed" in [line["event"] for line in logs], 10, "renewed")
        await stub.Publish(request("edge-1", version=2))
        await call.write(pb.PublishStreamRequest(requests=[request("edge-1", version=3)]))
        answer = await call.read()
        assert answer.responses[0].outcomes[0].outcome == pb.OUTCOME_ACCEPTED
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF


async def test_a_certificate_that_the_server_does_not_take_is_not_used(
    hub: RunningHub, authority: TestAuthority, tmp_path: Path
) -> None:
    """The pair is right, but of a CA that the server knows nothing of: calls go on as before."""
    issued = authority.program("shop", Role.PUBLISHER)
    security = authority.security(issued)
    foreign = TestAuthority(tmp_path / "foreign", "foreign").program("shop", Role.PUBLISHER)
    async with open_channel(hub.address("dispatcher"), security) as channel:
        stub: Any = DispatcherServiceStub(channel)
        await stub.Publish(request("edge-1", version=1))
        issued.key.write_bytes(foreign.key.read_bytes())
        issued.certificate.write_bytes(foreign.certificate.read_bytes())
        assert security.look()
        for version in range(2, 6):
            response = await stub.Publish(request("edge-1", version=version))
            assert response.outcomes[0].outcome == pb.OUTCOME_ACCEPTED


class LaterClock:
    """The machine's clock, so many seconds later."""

    later_seconds = 0.0

    def monotonic(self) -> float:
        return SystemClock().monotonic()

    def wall_ms(self) -> int:
        return SystemClock().wall_ms() + int(self.later_seconds * 1000)


async def test_a_call_with_a_certificate_that_has_expired_meanwhile_is_refused(
    authority: TestAuthority,
) -> None:
    """C6: the connection stays with its streams; a new call over it is told, and on the record."""
    clock = LaterClock()
    server = RpcServer("127.0.0.1:0", [], authority.security(authority.service()), clock=clock)
    await server.start()
    security = authority.security(authority.program("shop", Role.PUBLISHER))
    try:
        async with open_channel(server.address, security) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watch = stub.Watch(health_pb2.HealthCheckRequest())
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
            clock.later_seconds = 2 * 3600.0
            with capture_logs() as logs, pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Check(health_pb2.HealthCheckRequest())
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert error_reason(refused.value) == "CERTIFICATE_EXPIRED"
            (line,) = logs
            assert (line["event"], line["caller"]) == ("call.refused", "CN=shop,O=cloudhub:publisher")
            server.learned(ready=True)
            assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
            watch.cancel()
    finally:
        await server.stop(0)


async def test_new_edge_links_take_newer_files_and_open_ones_stay(
    hub: RunningHub, authority: TestAuthority
) -> None:
    server = files(authority, "server")
    edges = f"127.0.0.1:{hub.connector.app.edge_port}"
    node = authority.node("edge-9")
    async with hub.edge("edge-1") as edge:
        before = (await shown(edges, node, authority, "localhost")).serial_number
        with capture_logs() as logs:
            authority.issue("localhost", None, file="server")
            await eventually(
                lambda: [line["what"] for line in logs if "renewed" in line["event"]] == ["edge links"],
                10,
                "renewed",
            )
        after = (await shown(edges, node, authority, "localhost")).serial_number
        assert before != after == serial(server)
        expires_at = x509.load_pem_x509_certificate(server.certificate.read_bytes()).not_valid_after_utc
        shown_at = hub.connector.app.metrics.registry.get_sample_value(
            "cloudhub_connector_certificate_expiry_timestamp_seconds", {"certificate": "edges"}
        )
        assert shown_at == expires_at.timestamp()
        await hub.cloud.Publish(request("edge-1", version=1))
        await edge.answer(await edge.next())
