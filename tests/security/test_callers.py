"""Certificates that gRPC callers show, at each server, over real sockets."""

import asyncio
import datetime as dt
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509 import ExtendedKeyUsage
from cryptography.x509.oid import ExtendedKeyUsageOID
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

from cloudhub.v1 import connector_pb2, sessions_pb2
from cloudhub.v1 import dispatcher_pb2 as pb
from cloudhub.v1.connector_pb2_grpc import ConnectorAdminStub
from cloudhub.v1.dispatcher_pb2_grpc import DispatcherAdminStub, DispatcherServiceStub
from cloudhub.v1.link_pb2_grpc import LinkServiceStub
from cloudhub.v1.peer_pb2_grpc import PeerServiceStub
from cloudhub.v1.sessions_pb2_grpc import SessionsAdminStub, SessionsServiceStub
from services.runtime.refusals import AUDIT_LOG
from services.runtime.roles import Role
from services.runtime.rpc import error_info, open_channel
from services.runtime.security import PLAINTEXT_LOOPBACK, MutualTls
from tests.support.certs import Issued, TestAuthority
from tests.support.enrolment import running_enrolment
from tests.support.hub import RunningHub, request

_HOUR = dt.timedelta(hours=1)
SERVERS = ("connector", "dispatcher", "sessions")
Ask = Callable[[Any], Any]

ADMIN: dict[str, Ask] = {
    "connector": lambda channel: ConnectorAdminStub(channel).ListLinks(connector_pb2.ListLinksRequest()),
    "dispatcher": lambda channel: DispatcherAdminStub(channel).Purge(
        pb.PurgeRequest(node_id="edge-7", object_key="uid-cm1")
    ),
    "sessions": lambda channel: SessionsAdminStub(channel).ListInstances(sessions_pb2.ListInstancesRequest()),
}


def stub_of(kind: Any, channel: Any) -> Any:
    """The published types of stubs are those of blocking channels, or none."""
    return kind(channel)


def refusals(hub: RunningHub, server: str, reason: str) -> float | None:
    """How many calls a server says that it refused for a reason."""
    registry = {
        "connector": lambda: hub.connector.app.metrics.registry,
        "dispatcher": lambda: hub.dispatcher.app.registry,
        "sessions": lambda: hub.sessions.app.metrics.registry,
    }[server]()
    return registry.get_sample_value(f"cloudhub_{server}_grpc_refused_total", {"reason": reason})


async def asked(address: str, security: Any, ask: Ask) -> tuple[str, str, str]:
    """Status, ErrorInfo reason and text that a caller gets; OK if it is served."""
    async with open_channel(address, security) as channel:
        try:
            await asyncio.wait_for(ask(channel), 10)
        except grpc.aio.AioRpcError as error:
            return error.code().name, error_info(error)[0], error.details() or ""
    return "OK", "", ""


def audited(logs: list[Any]) -> list[Any]:
    return [line for line in logs if line.get("logger") == AUDIT_LOG]


Show = Callable[[TestAuthority, Path], Issued | None]
# What proves nothing: the reason of the refusal, and words of its sentence.
WORTHLESS: dict[str, tuple[Show, str, str]] = {
    "none": (lambda *_: None, "CERTIFICATE_MISSING", "showed no certificate; it needs one that CN="),
    "of another CA": (
        lambda _, folder: TestAuthority(folder / "other", "other").program("shop", Role.OPERATOR),
        "CERTIFICATE_UNTRUSTED",
        "(CN=shop,O=cloudhub:operator) was issued by CN=other, which is not trusted here",
    ),
    "of another CA of the same name": (
        lambda authority, folder: TestAuthority(folder / "other").program("shop", Role.OPERATOR),
        "CERTIFICATE_UNTRUSTED",
        "was issued by CN=cloudhub-test-ca, which is not trusted here",
    ),
    "expired": (
        lambda authority, _: authority.program("expired", Role.OPERATOR, starts=-2 * _HOUR, ends=-_HOUR),
        "CERTIFICATE_EXPIRED",
        "it was valid until 20",
    ),
    "not yet valid": (
        lambda authority, _: authority.program("new", Role.OPERATOR, starts=_HOUR, ends=2 * _HOUR),
        "CERTIFICATE_NOT_YET_VALID",
        "is not valid yet",
    ),
    "of a server only": (
        lambda authority, _: authority.program(
            "server", Role.OPERATOR, extensions=[ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])]
        ),
        "CERTIFICATE_NOT_FOR_CLIENTS",
        "should have clientAuth",
    ),
    "with a weak key": (
        lambda authority, _: authority.program(
            "weak", Role.OPERATOR, key=rsa.generate_private_key(65537, 1024)
        ),
        "CERTIFICATE_WEAK_KEY",
        "RSA keys should have 2048 bits",
    ),
    "signed by a client": (
        lambda authority, folder: _signed_by_a_client(authority, folder),
        "CERTIFICATE_UNTRUSTED",
        "was issued by CN=ann,O=cloudhub:operator, which is not trusted here",
    ),
}


def _signed_by_a_client(authority: TestAuthority, folder: Path) -> Issued:
    """An operator who makes operators."""
    key = ec.generate_private_key(ec.SECP256R1())
    ann = authority.program("ann", Role.OPERATOR, key=key)
    posing = TestAuthority(folder / "posing").signing_as(ann, key)
    return posing.program("eve", Role.OPERATOR, chain=ann.certificate.read_bytes())


class Shown(MutualTls):
    """Shows a certificate that our own programs would not start with."""

    def __init__(self, issued: Issued | None, authority: TestAuthority) -> None:
        self._issued = issued
        self._authority = authority
        self._followers = []

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Of files that nobody checked."""
        pair: tuple[bytes | None, bytes | None] = (None, None)
        if self._issued:
            pair = (self._issued.key.read_bytes(), self._issued.certificate.read_bytes())
        return grpc.ssl_channel_credentials(self._authority.certificate.read_bytes(), *pair)


@pytest.mark.parametrize("kind", WORTHLESS)
async def test_a_certificate_that_proves_nothing_is_refused_with_its_reason(
    hub: RunningHub, authority: TestAuthority, tmp_path: Path, kind: str
) -> None:
    """C5 and C6 for gRPC: a status that says what is wrong, and a line on the record."""
    show, reason, words = WORTHLESS[kind]
    issued = show(authority, tmp_path)
    for server in SERVERS:
        assert refusals(hub, server, reason) == 0, "a first one would be no change"
        with capture_logs() as logs:
            status, found, text = await asked(hub.address(server), Shown(issued, authority), ADMIN[server])
        assert (status, found) == ("UNAUTHENTICATED", reason), server
        assert words in text
        assert refusals(hub, server, reason) == 1
        (line,) = audited(logs)
        assert (line["event"], line["log_level"]) == ("call.refused", "warning")
        assert (line["status"], line["reason"], line["detail"]) == ("UNAUTHENTICATED", reason, text)
        assert line["caller"] == "unauthenticated"
        assert ("CN=" in line["shown"], "CN=" in line["issuer"]) == (issued is not None, issued is not None)
        assert line["method"].startswith("/cloudhub.v1.")
        assert line["address"].startswith("ipv4:127.0.0.1:")
    # The others are served as before.
    assert (await asked(hub.address("sessions"), hub.security, ADMIN["sessions"]))[0] == "OK"
    assert await hub.security.explain(hub.address("sessions")) == ""


async def test_enrolment_refuses_callers_as_the_others_do(
    hub: RunningHub, authority: TestAuthority, tmp_path: Path
) -> None:
    """C5 and C6: its gRPC has health, reflection and channelz only, and tells strangers as little."""
    own = authority.service()
    tls = {"grpc_certificate": own.certificate, "grpc_private_key": own.key, "grpc_ca": authority.certificate}
    async with running_enrolment(hub, authority, grpc_insecure_loopback=False, **tls) as enrolment:
        address = f"127.0.0.1:{enrolment.grpc_port}"
        health = EDGES_NOTHING["health"][1]
        assert (await asked(address, hub.security, health))[0] == "OK"
        for show, reason, words in WORTHLESS.values():
            issued = show(authority, tmp_path)
            answer = await asked(address, Shown(issued, authority), health)
            assert answer[:2] == ("UNAUTHENTICATED", reason)
            assert words in answer[2]


@pytest.mark.parametrize("path", ["/cloudhub.v1.SessionsAdmin/Nothing", "/x", "/grpc.health.v1.Health/Watch"])
async def test_a_stranger_learns_nothing_of_what_there_is(
    hub: RunningHub, authority: TestAuthority, path: str
) -> None:
    """Health, reflection and methods that are not there are refused alike, by each kind of call."""
    channel: Any
    async with open_channel(hub.address("sessions"), Shown(None, authority)) as channel:
        answers: list[Any] = [
            channel.unary_unary(path, None, None)(b""),
            channel.unary_stream(path, None, None)(b"").read(),
            channel.stream_unary(path, None, None)(aiter_none()),
            channel.stream_stream(path, None, None)(aiter_none()).read(),
        ]
        for answer in answers:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await asyncio.wait_for(answer, 5)
            assert error_info(refused.value)[0] == "CERTIFICATE_MISSING"


@pytest.mark.parametrize("server", SERVERS)
async def test_plaintext_is_refused(hub: RunningHub, server: str) -> None:
    answer = await asked(hub.address(server), PLAINTEXT_LOOPBACK, ADMIN[server])
    assert answer[0] == "UNAVAILABLE"


WRONG_ROLES: dict[str, tuple[Callable[[TestAuthority], Issued], str]] = {
    "an edge": (lambda authority: authority.node("edge-1"), "ROLE_FORBIDDEN"),
    "an edge that says it is an operator": (
        lambda authority: authority.program("edge-1", Role.EDGE, Role.OPERATOR),
        "ROLE_FORBIDDEN",
    ),
    "a publisher": (lambda authority: authority.program("shop", Role.PUBLISHER), "ROLE_FORBIDDEN"),
    "a service": (lambda authority: authority.service("other"), "ROLE_FORBIDDEN"),
    "nobody": (lambda authority: authority.issue("somebody", None), "CERTIFICATE_WITHOUT_ROLE"),
    "another organisation": (
        lambda authority: authority.issue("somebody", "somewhere"),
        "CERTIFICATE_WITHOUT_ROLE",
    ),
}


@pytest.mark.parametrize("who", WRONG_ROLES)
async def test_who_is_no_operator_has_no_admin_call(
    hub: RunningHub, authority: TestAuthority, who: str
) -> None:
    """C5 and C6 for gRPC: refused with a reason, and on the record."""
    make, reason = WRONG_ROLES[who]
    issued = make(authority)
    for server in SERVERS:
        assert refusals(hub, server, reason) == 0, "a first one would be no change"
        with capture_logs() as logs:
            answer = await asked(hub.address(server), authority.security(issued), ADMIN[server])
        assert answer[:2] == ("PERMISSION_DENIED", reason), server
        assert refusals(hub, server, reason) == 1
        (line,) = audited(logs)
        assert line["event"] == "call.refused"
        assert (line["status"], line["reason"]) == ("PERMISSION_DENIED", reason)
        assert line["method"].startswith("/cloudhub.v1.")
        assert "CN=" in line["caller"]
        assert line["address"].startswith("ipv4:127.0.0.1:")


EDGES_NOTHING: dict[str, tuple[str, Ask]] = {
    "publish": (
        "dispatcher",
        lambda channel: stub_of(DispatcherServiceStub, channel).Publish(request("edge-1")),
    ),
    "publish by stream": (
        "dispatcher",
        lambda channel: stub_of(DispatcherServiceStub, channel).PublishStream(aiter_none()).read(),
    ),
    "subscribe": (
        "dispatcher",
        lambda channel: stub_of(DispatcherServiceStub, channel).Subscribe(aiter_none()).read(),
    ),
    "attach": ("dispatcher", lambda channel: stub_of(LinkServiceStub, channel).Attach(aiter_none()).read()),
    "relay": ("dispatcher", lambda channel: stub_of(PeerServiceStub, channel).Relay(aiter_none()).read()),
    "directives": (
        "sessions",
        lambda channel: (
            stub_of(SessionsServiceStub, channel)
            .WatchDirectives(sessions_pb2.WatchDirectivesRequest(dispatcher_id="x"))
            .read()
        ),
    ),
    "delete nodes": (
        "sessions",
        lambda channel: stub_of(SessionsServiceStub, channel).DeleteNodes(
            sessions_pb2.DeleteNodesRequest(node_ids=["edge-2"])
        ),
    ),
    "health": (
        "connector",
        lambda channel: stub_of(health_pb2_grpc.HealthStub, channel).Check(health_pb2.HealthCheckRequest()),
    ),
}


async def aiter_none() -> Any:
    return
    yield


@pytest.mark.parametrize("what", EDGES_NOTHING)
async def test_an_edge_can_call_nothing(hub: RunningHub, authority: TestAuthority, what: str) -> None:
    """Each kind of call: one and many requests, one and many answers."""
    server, ask = EDGES_NOTHING[what]
    with capture_logs() as logs:
        answer = await asked(hub.address(server), authority.security(authority.node("edge-1")), ask)
    assert answer[:2] == ("PERMISSION_DENIED", "ROLE_FORBIDDEN")
    assert [line["event"] for line in audited(logs)] == ["call.refused"]


@pytest.mark.parametrize("role", [Role.PUBLISHER, Role.OPERATOR])
async def test_programs_cannot_pass_for_a_service(
    hub: RunningHub, authority: TestAuthority, role: Role
) -> None:
    security = authority.security(authority.program("x", role))
    for what in ("attach", "relay", "directives", "delete nodes"):
        server, ask = EDGES_NOTHING[what]
        assert (await asked(hub.address(server), security, ask))[:2] == (
            "PERMISSION_DENIED",
            "ROLE_FORBIDDEN",
        ), what


async def test_a_publisher_publishes_and_an_operator_does_not(
    hub: RunningHub, authority: TestAuthority
) -> None:
    publish = EDGES_NOTHING["publish"][1]
    for role, status in ((Role.PUBLISHER, "OK"), (Role.OPERATOR, "PERMISSION_DENIED")):
        security = authority.security(authority.program("x", role))
        answer = await asked(hub.address("dispatcher"), security, publish)
        assert answer[0] == status
        if role is Role.OPERATOR:
            assert "publisher may" in answer[2]


async def test_what_a_refused_caller_sends_is_not_looked_at(
    hub: RunningHub, authority: TestAuthority
) -> None:
    """C5: bytes that are no request are answered by the refusal, not by what is wrong with them."""

    def junk(channel: Any) -> Any:
        return channel.unary_unary("/cloudhub.v1.DispatcherAdmin/Purge", None, None)(b"\xff\xff")

    security = authority.security(authority.node("edge-1"))
    assert (await asked(hub.address("dispatcher"), security, junk))[1] == "ROLE_FORBIDDEN"
    answer = await asked(hub.address("dispatcher"), hub.security, junk)
    assert answer[:2] == ("INVALID_ARGUMENT", "REQUEST_MALFORMED")


async def test_an_admin_call_is_on_the_record_with_its_nodes_and_its_result(
    hub: RunningHub, authority: TestAuthority
) -> None:
    security = authority.security(authority.program("ann", Role.OPERATOR))
    secret = "topsecret"
    await hub.accept(request("edge-1", resource=f"default/configmap/{secret}"))

    async def calls(channel: grpc.aio.Channel) -> None:
        admin: Any = DispatcherAdminStub(channel)
        await admin.Redeliver(pb.RedeliverRequest(node_id="edge-1", object_key=f"default/configmap/{secret}"))
        with pytest.raises(grpc.aio.AioRpcError):
            await admin.InspectNode(pb.InspectNodeRequest(node_id="edge-99"))

    with capture_logs() as logs:
        await asked(hub.address("dispatcher"), security, calls)
    good, bad = audited(logs)
    assert (good["event"], good["nodes"], good["status"]) == ("admin.call", ["edge-1"], "OK")
    assert good["caller"] == "CN=ann,O=cloudhub:operator"
    assert good["method"] == "/cloudhub.v1.DispatcherAdmin/Redeliver"
    assert good["seconds"] >= 0
    assert (bad["status"], bad["reason"], bad["nodes"]) == ("NOT_FOUND", "NODE_UNKNOWN", ["edge-99"])
    assert secret not in str(logs)


async def test_a_watch_is_on_the_record_when_it_ends(hub: RunningHub, authority: TestAuthority) -> None:
    security = authority.security(authority.program("ann", Role.OPERATOR))
    with capture_logs() as logs:
        async with open_channel(hub.address("sessions"), security) as channel:
            stub: Any = SessionsAdminStub(channel)
            call = stub.WatchSessions(sessions_pb2.WatchSessionsRequest(node_id_prefix="edge-"))
            async with hub.edge("edge-1"):
                await call.read()
            call.cancel()
        async with asyncio.timeout(5):
            while not audited(logs):  # noqa: ASYNC110 - the server's side ends later than ours
                await asyncio.sleep(0.01)
    (line,) = audited(logs)
    assert (line["status"], line["nodes"]) == ("CANCELLED", ["edge-"])
