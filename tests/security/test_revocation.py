"""Certificates on the list of revoked ones: at new connections, on open ones, while the process runs."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from services.runtime import tls_files
from services.runtime.clock import SystemClock
from services.runtime.errors import StartupError
from services.runtime.roles import Role
from services.runtime.rpc import RpcServer, error_reason, open_channel
from services.runtime.security import MutualTls
from services.runtime.tls_files import TlsFiles
from tests.security.test_callers import ADMIN, SERVERS, asked, audited, refusals
from tests.support.certs import Issued, TestAuthority
from tests.support.hub import RunningHub, running_hub
from tests.support.processes import eventually

OK = health_pb2.HealthCheckRequest()


def serial_of(issued: Issued) -> str:
    found = x509.load_pem_x509_certificate(issued.certificate.read_bytes())
    return f"serial: {found.serial_number:X}\n"


@pytest.fixture
def revoked(tmp_path: Path) -> Path:
    """An empty list."""
    path = tmp_path / "revoked"
    path.write_text("# none yet\n")
    return path


def serving(authority: TestAuthority, revoked: Path) -> MutualTls:
    issued = authority.service()
    files = TlsFiles(issued.certificate, issued.key, authority.certificate)
    return MutualTls(files, SystemClock(), revoked=revoked)


@pytest.fixture
def security(authority: TestAuthority, revoked: Path) -> MutualTls:
    """Of the server."""
    return serving(authority, revoked)


@pytest.fixture
async def server(security: MutualTls) -> AsyncIterator[RpcServer]:
    running = RpcServer("127.0.0.1:0", [], security)
    await running.start()
    yield running
    await running.stop(0)


async def check(server: RpcServer, security: MutualTls) -> str:
    """What a health check over a new connection comes to: OK, or the reason of the refusal."""
    async with open_channel(server.address, security) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        try:
            await stub.Check(OK, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error_reason(error)
    return "OK"


async def test_by_serial_or_by_name_and_off_the_list_again(
    server: RpcServer, security: MutualTls, authority: TestAuthority, revoked: Path
) -> None:
    issued = authority.program("shop", Role.PUBLISHER)
    shop, ann = authority.security(issued), authority.security(authority.program("ann", Role.OPERATOR))
    for text in (serial_of(issued), "name: CN=shop,O=cloudhub:publisher\n"):
        revoked.write_text(text)
        assert security.look()
        assert await check(server, shop) == "CERTIFICATE_REVOKED"
        assert await check(server, ann) == "OK"
        revoked.write_text("")
        assert security.look()
        assert await check(server, shop) == "OK"


async def test_open_connections_end_with_their_streams_and_others_stay(
    server: RpcServer, security: MutualTls, authority: TestAuthority, revoked: Path
) -> None:
    issued = authority.program("shop", Role.PUBLISHER)
    async with (
        open_channel(server.address, authority.security(issued)) as theirs,
        open_channel(server.address, authority.security(authority.program("ann", Role.OPERATOR))) as ours,
    ):
        watches = []
        for channel in (theirs, ours):
            stub: Any = health_pb2_grpc.HealthStub(channel)
            watches.append(stub.Watch(OK))
            await watches[-1].read()
        with capture_logs() as logs:
            revoked.write_text(serial_of(issued))
            assert security.look()
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                await watches[0].read()
        assert ended.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert error_reason(ended.value) == "CERTIFICATE_REVOKED"
        (line,) = audited(logs)
        assert (line["caller"], line["reason"]) == ("CN=shop,O=cloudhub:publisher", "CERTIFICATE_REVOKED")
        # Their next connection is refused; ours has seen nothing.
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            stub = health_pb2_grpc.HealthStub(theirs)
            await stub.Check(OK, timeout=10)
        assert error_reason(refused.value) == "CERTIFICATE_REVOKED"
        server.learned(ready=True)
        assert (await watches[1].read()).status == health_pb2.HealthCheckResponse.SERVING
        assert server.secure_port is not None
        # Nothing of theirs is left.
        assert [*server.secure_port.front.shares._parties] == ["CN=ann,O=cloudhub:operator"]


async def test_a_malformed_list_is_told_by_its_line_and_changes_nothing(
    server: RpcServer, security: MutualTls, authority: TestAuthority, revoked: Path
) -> None:
    issued = authority.program("shop", Role.PUBLISHER)
    revoked.write_text(serial_of(issued))
    assert security.look()
    for text, words in (("serial: 1\nshop\n", "line 2 should be"), (None, "cannot read the list")):
        if text is None:
            revoked.unlink()
        else:
            revoked.write_text(text)
        with capture_logs() as logs:
            assert not security.look()
            assert not security.look()
        (line,) = [line for line in logs if line["event"] == "certificates.kept"]
        assert words in line["error"]
        assert str(revoked) in line["error"]
        assert await check(server, authority.security(issued)) == "CERTIFICATE_REVOKED"


@pytest.mark.parametrize(
    ("text", "words"), [("nonsense\n", "line 1 should be"), (None, "cannot read the list of revoked")]
)
def test_a_list_that_cannot_be_used_is_told_at_the_start(
    authority: TestAuthority, revoked: Path, text: str | None, words: str
) -> None:
    if text is None:
        revoked.unlink()
    else:
        revoked.write_text(text)
    with pytest.raises(StartupError, match=words):
        serving(authority, revoked)


async def test_every_service_has_it(
    tmp_path: Path, authority: TestAuthority, revoked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its setting, within seconds."""
    monkeypatch.setattr(tls_files, "LOOK_SECONDS", 0.05)
    changes = {"grpc_revoked": revoked}
    hub: RunningHub
    async with running_hub(
        tmp_path, authority, tls=True, sessions=changes, dispatcher=changes, connector=changes
    ) as hub:
        issued = authority.program("ann", Role.OPERATOR)
        ann = authority.security(issued)
        for server in SERVERS:
            assert (await asked(hub.address(server), ann, ADMIN[server]))[0] in ("OK", "NOT_FOUND")
        with capture_logs() as logs:
            revoked.write_text(serial_of(issued))
            await eventually(
                lambda: [line["event"] for line in logs].count("revoked.read") == len(SERVERS), 10, "read"
            )
        for server in SERVERS:
            answer = await asked(hub.address(server), ann, ADMIN[server])
            assert answer[:2] == ("UNAUTHENTICATED", "CERTIFICATE_REVOKED")
            assert (refusals(hub, server, "CERTIFICATE_REVOKED") or 0) >= 1


async def test_a_services_connections_end_too(
    tmp_path: Path, authority: TestAuthority, revoked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of a service's calls is counted, and they are ended all the same: here by a dispatcher that
    does not take its connectors' certificate any more, and takes it again."""
    monkeypatch.setattr(tls_files, "LOOK_SECONDS", 0.05)
    hub: RunningHub
    async with running_hub(tmp_path, authority, tls=True, dispatcher={"grpc_revoked": revoked}) as hub:
        folder = authority.certificate.parent
        service = Issued(folder / "service.crt", folder / "service.key")

        def attached() -> float:
            return hub.metric("connector", "dispatchers_attached")

        await eventually(lambda: attached() == 1, 10, "attached")
        revoked.write_text(serial_of(service))
        await eventually(lambda: attached() == 0, 10, "lost")
        revoked.write_text("# none\n")
        await eventually(lambda: attached() == 1, 30, "attached again")
