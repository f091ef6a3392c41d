"""Enrolment over real sockets: who gets a certificate, what is in it, and every refusal with its reason."""

import asyncio
import socket
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from websockets.exceptions import InvalidStatus

from cloudhub.v1 import enrolment_pb2 as pb
from cloudhub.v1 import sessions_pb2
from cloudhub.v1.link_pb2 import CLOSE_REASON_EVICTED, CLOSE_REASON_REVOKED
from services.runtime.roles import Role
from services.runtime.rpc import error_reason
from services.sessions.enrolment.record_sql import MOST_PER_NODE
from tests.support.certs import Issued, TestAuthority
from tests.support.enrolment import EnrolledHub, request_for, running_enrolment
from tests.support.figures import Figures
from tests.support.hub import running_hub
from tests.support.strangers import shown, strangers, times

pytestmark = pytest.mark.usefixtures("no_secret_in_logs")


def private(folder: Path, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Issued:
    """A certificate that was had over HTTPS, as files."""
    issued = Issued(folder / "had.crt", folder / "had.key")
    issued.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
    issued.key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return issued


async def test_a_certificate_says_who_the_node_is_and_copies_nothing_of_the_request(
    enrolled: EnrolledHub,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    body = request_for(
        key=key,
        more=(x509.NameAttribute(NameOID.LOCALITY_NAME, "somewhere"),),
        extensions=(
            x509.BasicConstraints(ca=True, path_length=None),
            x509.SubjectAlternativeName([x509.DNSName("hub.example")]),
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]),
        ),
    )
    found = (await enrolled.edge_crt(await enrolled.token(), body=body)).certificate
    assert found.subject.rfc4514_string() == "CN=system:node:edge-1,O=system:nodes"
    assert found.public_key() == key.public_key()
    extensions = found.extensions
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    signs = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (signs.digital_signature, signs.key_cert_sign, signs.crl_sign) == (True, False, False)
    with pytest.raises(x509.ExtensionNotFound):
        extensions.get_extension_for_class(x509.SubjectAlternativeName)
    # Never beyond the CA's own end.
    authority = x509.load_pem_x509_certificate(enrolled.authority.certificate.read_bytes())
    assert found.not_valid_after_utc <= authority.not_valid_after_utc
    found.verify_directly_issued_by(authority)


async def test_a_node_connects_with_it_and_renews_by_it(enrolled: EnrolledHub, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    first = (await enrolled.edge_crt(await enrolled.token(), body=request_for(key=key))).certificate
    had = private(tmp_path, first, key)
    async with enrolled.hub.edge("edge-1", context=enrolled.context(had)):
        second = (await enrolled.edge_crt(shown=had)).certificate
    assert second.serial_number != first.serial_number
    listed = await (await enrolled.admin()).ListCertificates(pb.ListCertificatesRequest(), timeout=10)
    told = {
        sample.labels["outcome"] for sample in next(iter(enrolled.app.metrics.requests.collect())).samples
    }
    assert told == {"token", "former_serial"}
    by_token = {one.serial: bool(one.token_id) for one in listed.certificates}
    assert by_token == {f"{first.serial_number:x}": True, f"{second.serial_number:x}": False}


async def refused_link(hub: EnrolledHub, shown: Issued) -> int:
    """The HTTP status that a link of edge-1 with this certificate is refused with."""
    with pytest.raises(InvalidStatus) as refused:
        await hub.hub.open_edge("edge-1", context=hub.context(shown))
    return int(refused.value.response.status_code)


async def test_one_use_of_a_token_is_one_certificate_however_often_it_is_asked_for(
    enrolled: EnrolledHub,
) -> None:
    """C46: an answer may be lost; it is given again, and nothing is put on record anew."""
    key, token = ec.generate_private_key(ec.SECP256R1()), await enrolled.token()
    had = [(await enrolled.edge_crt(token, body=request_for(key=key))).certificate for _ in range(20)]
    assert len({one.serial_number for one in had}) == 1
    assert len({(one.not_valid_before_utc, one.not_valid_after_utc) for one in had}) == 1
    listed = await (await enrolled.admin()).ListCertificates(pb.ListCertificatesRequest(), timeout=10)
    assert [one.serial for one in listed.certificates] == [f"{had[0].serial_number:x}"]


async def test_a_node_that_renews_without_end_is_told_to_stop_and_others_renew(
    enrolled: EnrolledHub, tmp_path: Path
) -> None:
    """C46."""
    (tmp_path / "other").mkdir()
    nodes = {}
    for node_id, folder in (("edge-1", tmp_path), ("edge-2", tmp_path / "other")):
        key = ec.generate_private_key(ec.SECP256R1())
        body = request_for(node_id, key=key)
        answer = await enrolled.edge_crt(await enrolled.token(), node_id=node_id, body=body)
        nodes[node_id] = private(folder, answer.certificate, key)
    statuses = [(await enrolled.edge_crt(shown=nodes["edge-1"])).status for _ in range(MOST_PER_NODE)]
    assert statuses == [200] * (MOST_PER_NODE - 1) + [429]
    refused = await enrolled.edge_crt(shown=nodes["edge-1"])
    assert "it should keep one and renew it in time" in refused.text
    assert refused.headers["Retry-After"] == "300"
    assert (await enrolled.edge_crt(shown=nodes["edge-2"], node_id="edge-2")).status == 200


async def test_the_rate_of_an_address_is_limited_and_told(
    enrolled: EnrolledHub, authority: TestAuthority
) -> None:
    limits = {"requests_burst": 2, "requests_per_second": 0.01}
    async with running_enrolment(enrolled.hub, authority, **limits) as app:
        hub = replace(enrolled, app=app)
        answers = [await hub.get("/ca.crt") for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    assert 90 <= int(answers[-1].headers["Retry-After"]) <= 101


async def status_from(hub: EnrolledHub, source: str) -> int:
    """What is answered to a client of this address."""
    reader, writer = await asyncio.open_connection(
        *("::1" if ":" in source else "127.0.0.1", hub.app.port),
        ssl=hub.context(),
        server_hostname="localhost",
        local_addr=(source, 0),
    )
    writer.write(b"GET /ca.crt HTTP/1.1\r\nHost: localhost\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return int(line.split()[1])


def has_ipv6() -> bool:
    """Whether this machine has a loopback of IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv4_addresses_have_their_own_rates_at_a_listener_of_both_families(
    enrolled: EnrolledHub, authority: TestAuthority
) -> None:
    """Such a listener sees all of them in one network of IPv6."""
    limits = {"requests_burst": 1, "requests_per_second": 0.01, "listen": "[::]:0"}
    async with running_enrolment(enrolled.hub, authority, **limits) as app:
        hub = replace(enrolled, app=app)
        asked = ("127.0.0.2", "127.0.0.2", "127.0.0.3", "::1", "::1")
        assert [await status_from(hub, address) for address in asked] == [200, 429, 200, 200, 429]


async def test_while_sessions_is_away_it_is_503_and_works_again_by_itself(enrolled: EnrolledHub) -> None:
    token = await enrolled.token()
    await enrolled.hub.sessions.stop()
    answer = await enrolled.edge_crt(token)
    assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
    await enrolled.hub.sessions.start()
    async with asyncio.timeout(15):
        # gRPC's channel finds the server again in its own time.
        while (again := await enrolled.edge_crt(token)).status == 503:
            pass
    assert again.status == 200


async def test_a_silent_client_is_cut(enrolled: EnrolledHub, authority: TestAuthority) -> None:
    async with running_enrolment(enrolled.hub, authority, request_seconds=0.5) as app:
        reader, writer = await asyncio.open_connection("localhost", app.port)
        async with asyncio.timeout(5):
            assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        assert app.metrics.requests.labels("silent")._value.get() == 1


@pytest.mark.parametrize("data", [b"", b"\x16"], ids=["silent", "begun"])
async def test_strangers_of_four_addresses_keep_nobody_out(
    enrolled: EnrolledHub, authority: TestAuthority, figures: Figures, data: bytes
) -> None:
    """C47: more connections than there may be, which come again when they are cut; others are answered."""
    async with running_enrolment(enrolled.hub, authority, connections_most=16) as app:
        hub = replace(enrolled, app=app)

        async def ask(_: int) -> None:
            assert (await hub.get("/ca.crt")).status == 200

        idle = await times(5, ask)
        async with AsyncExitStack() as stack:
            for number in range(4):
                attack = strangers(app.port, 40, f"127.0.0.{60 + number}", data, persistent=True)
                await stack.enter_async_context(attack)
            attacked = await times(5, ask)
        figures(shown(f"ask enrolment, 160 connections of four addresses ({data!r})", idle, attacked))
        assert attacked[-1] < 3.0
        assert app.metrics.requests.labels("crowded_out")._value.get() >= 1


async def test_a_token_that_was_made_before_a_revocation_is_refused(enrolled: EnrolledHub) -> None:
    token = await enrolled.token()
    admin = await enrolled.admin()
    revoke = pb.RevokeNodeRequest(node_id="edge-1")
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await admin.RevokeNode(revoke, timeout=10)
    assert error_reason(unknown.value) == "UNKNOWN_NODE", "a misspelt id as a rule"
    revoke.may_be_unknown = True
    await admin.RevokeNode(revoke, timeout=10)
    answer = await enrolled.edge_crt(token)
    assert (answer.status, "was revoked after" in answer.text) == (403, True)


async def test_revoking_a_node_cuts_its_link_and_refuses_it_until_it_enrols_anew(
    enrolled: EnrolledHub, tmp_path: Path
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (await enrolled.edge_crt(await enrolled.token(), body=request_for(key=key))).certificate
    old = private(tmp_path, certificate, key)
    admin = await enrolled.admin()
    edge = await enrolled.hub.open_edge("edge-1", context=enrolled.context(old))
    answer = await admin.RevokeNode(pb.RevokeNodeRequest(node_id="edge-1"), timeout=10)
    assert answer.was_connected
    assert (await edge.next())["route"]["operation"] == "disconnected"
    # Not "come back": it would be refused.
    assert await edge.closed(5) == (4004, "the node was revoked: sessions asked for it")
    assert enrolled.hub.metric("connector", "links_closed_total", reason="revoked") == 1
    ended = await enrolled.hub.until_session(
        "edge-1", lambda session: session.state == sessions_pb2.SESSION_STATE_CLOSED
    )
    assert ended.close_reason == CLOSE_REASON_REVOKED
    assert await refused_link(enrolled, old) == 403
    assert (await enrolled.edge_crt(shown=old)).status == 403

    new_key = ec.generate_private_key(ec.SECP256R1())
    token = await enrolled.token()
    had = (await enrolled.edge_crt(token, body=request_for(key=new_key))).certificate
    (tmp_path / "new").mkdir()
    new = private(tmp_path / "new", had, new_key)
    async with enrolled.hub.edge("edge-1", context=enrolled.context(new)) as edge:
        # It was revoked before this session: an eviction is no more than that.
        await enrolled.hub.sessions_admin.EvictSession(
            sessions_pb2.EvictSessionRequest(node_id="edge-1"), timeout=10
        )
        assert (await edge.closed(5))[0] == 4002
        ended = await enrolled.hub.until_session(
            "edge-1", lambda session: session.state == sessions_pb2.SESSION_STATE_CLOSED
        )
        assert ended.close_reason == CLOSE_REASON_EVICTED
    assert await refused_link(enrolled, old) == 403
    await admin.ReinstateNode(pb.ReinstateNodeRequest(node_id="edge-1"), timeout=10)
    async with enrolled.hub.edge("edge-1", context=enrolled.context(old)):
        pass


async def test_operators_are_told_what_is_wrong_with_their_requests(enrolled: EnrolledHub) -> None:
    admin = await enrolled.admin()
    wrong = [
        (admin.CreateToken, pb.CreateTokenRequest(node_pattern="Edge!"), "INVALID_FIELD"),
        (admin.CreateToken, pb.CreateTokenRequest(project_id="a b"), "INVALID_FIELD"),
        (admin.CreateToken, pb.CreateTokenRequest(uses=200_000), "INVALID_FIELD"),
        (admin.CreateToken, pb.CreateTokenRequest(valid_seconds=-1), "INVALID_FIELD"),
        (admin.CreateToken, pb.CreateTokenRequest(valid_seconds=float("nan")), "INVALID_FIELD"),
        (admin.RevokeToken, pb.RevokeTokenRequest(token_id="1"), "UNKNOWN_TOKEN"),
        (admin.RevokeToken, pb.RevokeTokenRequest(token_id="no id"), "INVALID_FIELD"),
        (admin.RevokeNode, pb.RevokeNodeRequest(node_id=""), "INVALID_FIELD"),
        (admin.ReinstateNode, pb.ReinstateNodeRequest(node_id="edge-1"), "UNKNOWN_NODE"),
        (admin.ListCertificates, pb.ListCertificatesRequest(page_size=2000), "INVALID_FIELD"),
        (admin.ListCertificates, pb.ListCertificatesRequest(page_token="x"), "INVALID_FIELD"),
    ]
    for call, request, reason in wrong:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call(request, timeout=10)
        assert error_reason(refused.value) == reason, request
    enrolled.authority.certificate.unlink()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await admin.CreateToken(pb.CreateTokenRequest(), timeout=10)
    assert error_reason(refused.value) == "NO_ENROLMENT_CA"


async def test_tokens_and_certificates_are_listed_without_secrets(enrolled: EnrolledHub) -> None:
    made = await enrolled.created(uses=3)
    for number in range(3):
        assert (await enrolled.edge_crt(made.join_token, f"edge-{number}")).status == 200
    admin = await enrolled.admin()
    tokens = await admin.ListTokens(pb.ListTokensRequest(), timeout=10)
    assert [(one.token_id, one.uses, one.uses_left) for one in tokens.tokens] == [(made.token.token_id, 3, 0)]
    assert "ey" not in str(tokens)
    first = await admin.ListCertificates(pb.ListCertificatesRequest(page_size=2), timeout=10)
    rest = await admin.ListCertificates(
        pb.ListCertificatesRequest(page_size=2, page_token=first.next_page_token), timeout=10
    )
    assert [one.node_id for one in (*first.certificates, *rest.certificates)] == [
        "edge-0",
        "edge-1",
        "edge-2",
    ]
    assert not rest.next_page_token


async def test_the_hub_asks_for_the_certificate_of_a_service(
    tmp_path: Path, authority: TestAuthority
) -> None:
    """With TLS between services, what only a publisher or an operator has lets nobody sign."""
    own = authority.service()
    operator = authority.program("operator", Role.OPERATOR, file="operator")
    changes = {"enrolment_ca": authority.certificate}
    async with running_hub(tmp_path, authority, sessions=changes, tls=True) as hub:
        for shown, status in ((own, 200), (operator, 500)):
            files = {
                "grpc_insecure_loopback": False,
                "grpc_certificate": shown.certificate,
                "grpc_private_key": shown.key,
                "grpc_ca": authority.certificate,
            }
            async with running_enrolment(hub, authority, **files) as app:
                enrolled = EnrolledHub(hub, app, authority, tmp_path)
                answer = await enrolled.edge_crt(await enrolled.token())
                assert answer.status == status
