"""C6 over QUIC: client certificates of every wrong kind, and right ones that are unusual."""

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription, Epoch
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.connector.app import ConnectorApp
from services.connector.quic.peer_certificate import check_certificates, trusted_authorities
from services.runtime.errors import StartupError
from services.runtime.tls_faults import TlsFault
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import Issued, PrivateKey, TestAuthority
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.quic_peer import QuicPeers

_HOUR = dt.timedelta(hours=1)
_CN = "system:node:edge-1"
_CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def _usage(**on: bool) -> x509.KeyUsage:
    off = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment"), False)
    off |= dict.fromkeys(("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"), False)
    return x509.KeyUsage(**off | on, encipher_only=False, decipher_only=False)


def _make_room_for_certificates(quic: QuicConnection) -> None:
    """aioquic's own is less than the hub lets in; it is made anew after the retry."""
    original = quic._initialize

    def initialize(peer_cid: bytes) -> None:
        original(peer_cid)
        quic._crypto_buffers[Epoch.HANDSHAKE] = Buffer(capacity=1 << 20)

    quic._initialize = initialize  # type: ignore[method-assign]


async def _turned_away(
    app: ConnectorApp, dispatcher: LinkDispatcher, peers: QuicPeers, issued: Issued | None
) -> tuple[str, int]:
    """The reason that was counted and the TLS alert that the peer got; nobody was asked about it."""
    assert app.quic
    async with peers.connection(issued) as peer:
        _make_room_for_certificates(peer.quic)
        peer.ask("edge-1")
        await poll(lambda: peer.ended)
        assert peer.ended
        assert peer.ended.error_code >= QuicErrorCode.CRYPTO_ERROR
        alert = peer.ended.error_code - QuicErrorCode.CRYPTO_ERROR
        assert app.quic.openings == 0
    await poll(lambda: app.quic.connections == 0)  # type: ignore[union-attr]
    assert len(app.links) == 0
    assert not dispatcher.announcements
    (family,) = app.metrics.handshake_failures.collect()
    (sample,) = [sample for sample in family.samples if sample.name.endswith("_total")]
    assert sample.labels["transport"] == "quic"
    return sample.labels["reason"], alert


async def test_a_peer_without_a_certificate_is_refused(
    app: ConnectorApp, dispatcher: LinkDispatcher, quic_peers: QuicPeers
) -> None:
    expected = ("certificate_missing", AlertDescription.certificate_required)
    assert await _turned_away(app, dispatcher, quic_peers, None) == expected


@pytest.mark.parametrize(
    ("starts", "ends", "reason", "alert"),
    [
        (-2 * _HOUR, -_HOUR, "certificate_expired", AlertDescription.certificate_expired),
        (_HOUR, 2 * _HOUR, "certificate_not_yet_valid", AlertDescription.bad_certificate),
    ],
)
async def test_a_certificate_out_of_its_time_is_refused(
    app: ConnectorApp,
    dispatcher: LinkDispatcher,
    quic_peers: QuicPeers,
    authority: TestAuthority,
    starts: dt.timedelta,
    ends: dt.timedelta,
    reason: str,
    alert: AlertDescription,
) -> None:
    issued = authority.issue(_CN, starts=starts, ends=ends, file="untimely")
    assert await _turned_away(app, dispatcher, quic_peers, issued) == (reason, alert)


async def test_a_certificate_of_another_ca_is_refused(
    app: ConnectorApp, dispatcher: LinkDispatcher, quic_peers: QuicPeers, tmp_path: Path
) -> None:
    """Also if that CA has the name of ours."""
    stranger = TestAuthority(tmp_path / "stranger").node("edge-1")
    reason, alert = await _turned_away(app, dispatcher, quic_peers, stranger)
    assert reason == "certificate_untrusted"
    assert alert in (AlertDescription.unknown_ca, AlertDescription.bad_certificate)


async def test_a_self_signed_certificate_is_refused(
    app: ConnectorApp, dispatcher: LinkDispatcher, quic_peers: QuicPeers, tmp_path: Path
) -> None:
    own = TestAuthority(tmp_path / "own", _CN)
    (tmp_path / "own" / "own.key").write_bytes(own.private_key())
    issued = Issued(own.certificate, tmp_path / "own" / "own.key")
    assert (await _turned_away(app, dispatcher, quic_peers, issued))[0] == "certificate_untrusted"


async def test_a_node_cannot_sign_for_another(
    app: ConnectorApp,
    dispatcher: LinkDispatcher,
    quic_peers: QuicPeers,
    authority: TestAuthority,
    tmp_path: Path,
) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    mallory = authority.issue("system:node:mallory", key=key, file="mallory-quic")
    forged = TestAuthority(tmp_path / "forged", "forged").signing_as(mallory, key)
    issued = forged.issue(_CN, chain=mallory.certificate.read_bytes(), file="forged")
    assert (await _turned_away(app, dispatcher, quic_peers, issued))[0] == "certificate_untrusted"


@pytest.mark.parametrize(
    "extension", [_SERVER, _usage(key_cert_sign=True), _usage(crl_sign=True)], ids=["server", "CA", "CRL"]
)
async def test_a_certificate_for_another_purpose_is_refused(
    app: ConnectorApp,
    dispatcher: LinkDispatcher,
    quic_peers: QuicPeers,
    authority: TestAuthority,
    extension: x509.ExtensionType,
) -> None:
    issued = authority.issue(_CN, extensions=[extension], file="purpose-quic")
    expected = ("certificate_purpose", AlertDescription.unsupported_certificate)
    assert await _turned_away(app, dispatcher, quic_peers, issued) == expected


async def test_a_short_key_is_refused(
    app: ConnectorApp, dispatcher: LinkDispatcher, quic_peers: QuicPeers, authority: TestAuthority
) -> None:
    issued = authority.issue(_CN, key=rsa.generate_private_key(65537, 1024), file="weak-quic")
    assert (await _turned_away(app, dispatcher, quic_peers, issued))[0] == "certificate_weak_key"


async def test_a_chain_of_hundreds_of_kilobytes_is_refused_before_it_is_read(
    app: ConnectorApp, dispatcher: LinkDispatcher, quic_peers: QuicPeers, authority: TestAuthority
) -> None:
    issued = authority.issue(_CN, chain=authority.certificate.read_bytes() * 400, file="huge-quic")
    assert (await _turned_away(app, dispatcher, quic_peers, issued))[0] == "certificate_too_large"


async def test_another_nodes_certificate_or_one_of_no_node_is_refused(
    app: ConnectorApp, quic_peers: QuicPeers, authority: TestAuthority
) -> None:
    wrong = {
        "certificate_node": authority.node("edge-2"),
        "certificate_organization": authority.issue(_CN, None, file="no-organization-quic"),
        "certificate_name": authority.issue("edge-1", file="no-prefix-quic"),
    }
    for reason, issued in wrong.items():
        async with quic_peers.connection(issued) as peer:
            peer.ask("edge-1")
            assert (await peer.answer()).router.operation == "nack"
        assert metric(app, "refusals_total", transport="quic", status="403", reason=reason) == 1
    assert len(app.links) == 0


@pytest.mark.parametrize(
    "make",
    [lambda: ed25519.Ed25519PrivateKey.generate(), lambda: rsa.generate_private_key(65537, 4096)],
    ids=["Ed25519", "RSA 4096"],
)
async def test_an_unusual_key_is_as_good(
    app: ConnectorApp, quic_peers: QuicPeers, authority: TestAuthority, make: Callable[[], PrivateKey]
) -> None:
    issued = authority.issue(_CN, key=make(), extensions=[_CLIENT], file="unusual-quic")
    async with quic_peers.connection(issued) as peer:
        peer.ask("edge-1")
        assert (await peer.answer()).router.operation == "ack"


async def test_an_intermediate_ca_may_sign(start_app: StartApp, tmp_path: Path) -> None:
    """Unless it has expired, or the CA says that nobody signs for it."""
    deep = TestAuthority(tmp_path / "deep", "deep", path_length=5)
    server = deep.issue("localhost", None, file="server")
    between = TestAuthority(tmp_path / "between", "between", parent=deep)
    old = TestAuthority(tmp_path / "old", "old", parent=deep, starts=-2 * _HOUR, ends=-_HOUR)
    async with start_app(
        client_ca=deep.certificate, certificate=server.certificate, private_key=server.key
    ) as app:
        peers = QuicPeers(deep, app.quic_port)
        issued = between.issue(_CN, chain=between.certificate.read_bytes())
        async with peers.connection(issued) as peer:
            peer.ask("edge-1")
            assert (await peer.answer()).router.operation == "ack"
        async with peers.connection(old.issue(_CN, chain=old.certificate.read_bytes())) as peer:
            await poll(lambda: peer.ended)
        assert metric(app, "handshake_failures_total", reason="certificate_expired") == 1


def test_an_intermediate_ca_that_may_not_be_is_refused(authority: TestAuthority, tmp_path: Path) -> None:
    between = TestAuthority(tmp_path / "between", "between", parent=authority)
    issued = between.issue(_CN, chain=between.certificate.read_bytes())
    shown = x509.load_pem_x509_certificates(issued.certificate.read_bytes())
    with pytest.raises(TlsFault) as refused:
        check_certificates(shown, trusted_authorities(authority.certificate))
    assert refused.value.reason == "certificate_untrusted"


def test_names_are_those_of_the_subject(authority: TestAuthority) -> None:
    """Of two common names neither is dropped: admission refuses both."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, _CN),
            x509.NameAttribute(NameOID.COMMON_NAME, "system:node:edge-2"),
        ]
    )
    issued = authority.issue("", subject=subject, file="twice-quic")
    shown = x509.load_pem_x509_certificates(issued.certificate.read_bytes())
    names = check_certificates(shown, trusted_authorities(authority.certificate))
    assert names.organizations == ("system:nodes",)
    assert names.common_names == (_CN, "system:node:edge-2")


def test_a_ca_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(StartupError, match="cannot use the client CA"):
        trusted_authorities(tmp_path / "ca.crt")
