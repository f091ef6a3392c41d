"""Client certificates of every wrong kind, and right ones that are unusual."""

import datetime as dt
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.name import _ASN1Type
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from websockets.exceptions import InvalidStatus

from services.connector.app import ConnectorApp
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import Issued, PrivateKey, TestAuthority
from tests.support.edge_peer import EdgePeers, request_bytes

_HOUR = dt.timedelta(hours=1)
_CN = "system:node:edge-1"
_CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
_SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])


def _usage(**on: bool) -> x509.KeyUsage:
    off = dict.fromkeys(("digital_signature", "content_commitment", "key_encipherment"), False)
    off |= dict.fromkeys(("data_encipherment", "key_agreement", "key_cert_sign", "crl_sign"), False)
    return x509.KeyUsage(**off | on, encipher_only=False, decipher_only=False)


@pytest.fixture
def deep(tmp_path: Path) -> TestAuthority:
    """A CA that lets others sign for it."""
    return TestAuthority(tmp_path / "deep", "deep", path_length=60)


@pytest.fixture
async def deep_app(start_app: StartApp, deep: TestAuthority) -> AsyncIterator[ConnectorApp]:
    """A connector whose edges' CA that is; its own certificate is of it too."""
    server = deep.issue("localhost", None, file="server")
    async with start_app(
        client_ca=deep.certificate, certificate=server.certificate, private_key=server.key
    ) as app:
        yield app


async def _turned_away(app: ConnectorApp, authority: TestAuthority, issued: Issued) -> str:
    """The reason that was counted when the TLS handshake failed."""
    before = {sample: metric(app, "handshake_failures_total", reason=sample) for sample in _reasons(app)}
    peers = EdgePeers(authority, app.edge_port)
    with pytest.raises((ssl.SSLError, ConnectionError, EOFError)):
        reader, writer = await peers.raw(context=peers.context_of(issued))
        writer.write(request_bytes())
        if not await reader.read(1):
            raise EOFError
    await poll(lambda: app.listener.connections == 0)
    assert len(app.links) == 0
    counted = [
        reason
        for reason in _reasons(app)
        if metric(app, "handshake_failures_total", reason=reason) > before.get(reason, 0)
    ]
    assert len(counted) == 1, counted
    return counted[0]


def _reasons(app: ConnectorApp) -> list[str]:
    (family,) = app.metrics.handshake_failures.collect()
    return [sample.labels["reason"] for sample in family.samples if sample.name.endswith("_total")]


async def _refused_with_403(app: ConnectorApp, authority: TestAuthority, issued: Issued) -> str:
    """What the body of the refusal says."""
    peers = EdgePeers(authority, app.edge_port)
    with pytest.raises(InvalidStatus) as refused:
        await peers.open("edge-1", context=peers.context_of(issued))
    assert refused.value.response.status_code == 403
    await poll(lambda: app.listener.connections == 0)
    assert len(app.links) == 0
    return (refused.value.response.body or b"").decode()


@pytest.mark.parametrize(
    "extension", [_SERVER, _usage(key_cert_sign=True), _usage(crl_sign=True)], ids=["server", "CA", "CRL"]
)
async def test_a_certificate_for_another_purpose_is_refused(
    app: ConnectorApp, authority: TestAuthority, extension: x509.ExtensionType
) -> None:
    """C6: an edge's certificate is not a server's, nor one that only signs."""
    issued = authority.issue(_CN, extensions=[extension], file="purpose")
    assert await _turned_away(app, authority, issued) == "certificate_purpose"


async def test_a_self_signed_certificate_is_refused(
    app: ConnectorApp, authority: TestAuthority, tmp_path: Path
) -> None:
    """C6: its subject may say whatever it likes."""
    own = TestAuthority(tmp_path / "own", _CN)
    (own.certificate.parent / "own.key").write_bytes(own.private_key())
    issued = Issued(own.certificate, own.certificate.parent / "own.key")
    assert await _turned_away(app, authority, issued) == "certificate_untrusted"


async def test_a_node_cannot_sign_for_another(
    app: ConnectorApp, authority: TestAuthority, tmp_path: Path
) -> None:
    """C6: a node's own certificate makes it no CA."""
    key = ec.generate_private_key(ec.SECP256R1())
    mallory = authority.issue("system:node:mallory", key=key, file="mallory")
    forged = TestAuthority(tmp_path / "forged", "forged").signing_as(mallory, key)
    issued = forged.issue(_CN, chain=mallory.certificate.read_bytes(), file="forged")
    assert await _turned_away(app, authority, issued) == "certificate_untrusted"


async def test_a_short_key_is_refused(app: ConnectorApp, authority: TestAuthority) -> None:
    """C6: 1024 bits of RSA can be broken."""
    weak = rsa.generate_private_key(65537, 1024)
    issued = authority.issue(_CN, key=weak, file="weak")
    context = authority.client_context(None)
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    context.load_cert_chain(issued.certificate, issued.key)
    reader, writer = await EdgePeers(authority, app.edge_port).raw(context=context)
    writer.write(request_bytes())
    with pytest.raises(ssl.SSLError):
        await reader.read(1)
    await poll(lambda: app.listener.connections == 0)
    assert metric(app, "handshake_failures_total", reason="certificate_weak_key") == 1


@pytest.mark.parametrize(
    "make",
    [
        lambda: ec.generate_private_key(ec.SECP521R1()),
        lambda: ed25519.Ed25519PrivateKey.generate(),
        lambda: rsa.generate_private_key(65537, 4096),
    ],
    ids=["P-521", "Ed25519", "RSA 4096"],
)
async def test_an_unusual_key_is_as_good(
    app: ConnectorApp, authority: TestAuthority, make: Callable[[], PrivateKey]
) -> None:
    issued = authority.issue(_CN, key=make(), extensions=[_CLIENT], file="unusual")
    peers = EdgePeers(authority, app.edge_port)
    async with peers.link("edge-1", context=peers.context_of(issued)):
        assert len(app.links) == 1


async def test_an_intermediate_ca_may_sign(
    deep_app: ConnectorApp, deep: TestAuthority, tmp_path: Path
) -> None:
    between = TestAuthority(tmp_path / "between", "between", parent=deep)
    issued = between.issue(_CN, chain=between.certificate.read_bytes())
    peers = EdgePeers(deep, deep_app.edge_port)
    async with peers.link("edge-1", context=peers.context_of(issued)):
        assert len(deep_app.links) == 1


async def test_an_intermediate_ca_that_has_expired_is_refused(
    deep_app: ConnectorApp, deep: TestAuthority, tmp_path: Path
) -> None:
    """C6."""
    between = TestAuthority(tmp_path / "old", "old", parent=deep, starts=-2 * _HOUR, ends=-_HOUR)
    issued = between.issue(_CN, chain=between.certificate.read_bytes())
    assert await _turned_away(deep_app, deep, issued) == "certificate_expired"


async def test_an_intermediate_ca_that_may_not_be_is_refused(
    app: ConnectorApp, authority: TestAuthority, tmp_path: Path
) -> None:
    """C6: the hub's CA says that nobody signs for it."""
    between = TestAuthority(tmp_path / "between", "between", parent=authority)
    issued = between.issue(_CN, chain=between.certificate.read_bytes())
    assert await _turned_away(app, authority, issued) == "certificate_untrusted"


async def test_a_chain_of_hundreds_of_kilobytes_is_refused_before_it_is_read(
    app: ConnectorApp, authority: TestAuthority
) -> None:
    issued = authority.issue(_CN, chain=authority.certificate.read_bytes() * 400, file="huge")
    assert await _turned_away(app, authority, issued) == "certificate_too_large"


@pytest.mark.parametrize(
    "name",
    [
        "system:node:*",
        "system:node:edge-1\0.evil",
        "system:node:edge-1 ",
        "system:node:EDGE-1",
        "System:Node:edge-1",
        "system:node:\u0435dge-1",
        "system:node:edge\u200b-1",
        "system:node:",
    ],
)
async def test_a_name_that_is_only_nearly_the_nodes_is_refused(
    app: ConnectorApp, authority: TestAuthority, name: str
) -> None:
    """C6: wildcards, NUL, look-alikes: names are compared character by character."""
    issued = authority.issue(name, file="nearly")
    assert (await _refused_with_403(app, authority, issued)).removesuffix("\n").isprintable()


@pytest.mark.parametrize("twice", [NameOID.COMMON_NAME, NameOID.ORGANIZATION_NAME])
async def test_two_names_are_no_name(
    app: ConnectorApp, authority: TestAuthority, twice: x509.ObjectIdentifier
) -> None:
    """C6: of two common names neither is the node's; an organization more harms nothing."""
    attributes = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
        x509.NameAttribute(NameOID.COMMON_NAME, _CN),
        x509.NameAttribute(twice, "system:node:edge-2"),
    ]
    issued = authority.issue("", subject=x509.Name(attributes), file="twice")
    peers = EdgePeers(authority, app.edge_port)
    if twice == NameOID.COMMON_NAME:
        assert "edge-2" in await _refused_with_403(app, authority, issued)
    else:
        async with peers.link("edge-1", context=peers.context_of(issued)):
            assert len(app.links) == 1


async def test_a_name_in_another_encoding_is_the_same_name(
    app: ConnectorApp, authority: TestAuthority
) -> None:
    attributes = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
        x509.NameAttribute(NameOID.COMMON_NAME, _CN, _ASN1Type.BMPString),
    ]
    issued = authority.issue("", subject=x509.Name(attributes), file="bmp")
    peers = EdgePeers(authority, app.edge_port)
    async with peers.link("edge-1", context=peers.context_of(issued)):
        assert len(app.links) == 1


async def test_a_name_of_many_kilobytes_is_not_repeated(app: ConnectorApp, authority: TestAuthority) -> None:
    with pytest.warns(UserWarning, match="length must be"):
        long = x509.NameAttribute(NameOID.COMMON_NAME, "system:node:" + "x" * 60_000, _validate=False)
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"), long])
    issued = authority.issue("", subject=subject, file="long")
    assert len(await _refused_with_403(app, authority, issued)) < 400
