"""Certificates: who signs what, and that nothing is ever overwritten."""

import datetime
import os
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edge.certificates import (
    CertificateFault,
    create_authority,
    create_node_certificates,
    create_program_certificate,
    create_server_certificate,
    create_service_certificate,
)
from edge.certificates.__main__ import main


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_layout_is_the_documented_one(tmp_path: Path) -> None:
    create_server_certificate(tmp_path)
    create_node_certificates(tmp_path, ["edge-1", "edge.two"])
    assert sorted(contents(tmp_path)) == [
        "ca.crt",
        "ca.key",
        "nodes/edge-1.crt",
        "nodes/edge-1.key",
        "nodes/edge.two.crt",
        "nodes/edge.two.key",
        "server.crt",
        "server.key",
    ]


def test_private_keys_are_readable_by_their_owner_alone(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        create_server_certificate(tmp_path)
        create_node_certificates(tmp_path, ["edge-1"])
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o600, "edge-1.key": 0o600}


def test_openssl_verifies_the_chains_strictly(tmp_path: Path) -> None:
    server = create_server_certificate(tmp_path, ["hub.example", "192.0.2.7"])
    node = create_node_certificates(tmp_path, ["edge-1"])[0]
    for purpose, pair in (("sslserver", server), ("sslclient", node)):
        command = ["openssl", "verify", "-x509_strict", "-purpose", purpose, "-CAfile", f"{tmp_path}/ca.crt"]
        done = subprocess.run(
            [*command, str(pair.certificate_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_a_node_certificate_says_who_the_node_is(tmp_path: Path) -> None:
    """C6: the node is who the certificate says."""
    certificate = create_node_certificates(tmp_path, ["edge-1"])[0].certificate
    subject = certificate.subject
    assert subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "system:node:edge-1"
    assert subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)[0].value == "system:nodes"
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    assert key.curve.name == "secp256r1"


def test_the_server_certificate_names_loopback_and_what_was_asked(tmp_path: Path) -> None:
    pair = create_server_certificate(tmp_path, ["hub.example", "192.0.2.7"])
    names = pair.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost", "hub.example"]
    addresses = [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    assert addresses == ["127.0.0.1", "::1", "192.0.2.7"]


def test_the_certificate_of_the_services_is_for_both_sides_and_names_them(tmp_path: Path) -> None:
    made = create_service_certificate(tmp_path, ["hub.example"]).certificate
    assert made.subject.rfc4514_string() == "CN=cloudhub service,O=cloudhub:service"
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    names = made.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert {"service.cloudhub.internal", "localhost", "hub.example"} <= set(
        names.get_values_for_type(x509.DNSName)
    )


def test_the_certificate_of_a_program_carries_its_roles(tmp_path: Path) -> None:
    made = create_program_certificate(tmp_path, "ann", ["operator", "publisher", "operator"])
    assert made.certificate_path == tmp_path / "programs" / "ann.crt"
    subject = made.certificate.subject
    assert [one.value for one in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == [
        "cloudhub:operator",
        "cloudhub:publisher",
    ]
    assert [one.value for one in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["ann"]
    usage = made.certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]


@pytest.mark.parametrize(
    ("name", "roles", "words"),
    [
        ("ann", ["root"], "role 'root': should be one of service, publisher, operator"),
        ("ann", [], "give at least one role"),
        ("../ann", ["operator"], "program name '../ann'"),
    ],
)
def test_a_program_that_cannot_be_certified_is_told(
    tmp_path: Path, name: str, roles: list[str], words: str
) -> None:
    with pytest.raises(CertificateFault, match=words):
        create_program_certificate(tmp_path, name, roles)
    assert not (tmp_path / "programs").exists()


def test_every_node_has_a_key_of_its_own(tmp_path: Path) -> None:
    pairs = create_node_certificates(tmp_path, [f"edge-{number}" for number in range(50)])
    assert len({pair.key_path.read_bytes() for pair in pairs}) == 50


def test_what_is_good_is_kept_byte_for_byte(tmp_path: Path) -> None:
    create_server_certificate(tmp_path)
    create_node_certificates(tmp_path, ["edge-1"])
    before = contents(tmp_path)
    again = [create_server_certificate(tmp_path), *create_node_certificates(tmp_path, ["edge-1", "edge-2"])]
    assert [pair.created for pair in again] == [False, False, True]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def replace_with_expired(folder: Path, stem: str, subject: x509.Name) -> None:
    authority = create_authority(folder)
    key = serialization.load_pem_private_key((folder / f"{stem}.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    expired = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=2))
        .not_valid_after(now - datetime.timedelta(days=1))
        .sign(authority.key, hashes.SHA256())
    )
    (folder / f"{stem}.crt").write_bytes(expired.public_bytes(serialization.Encoding.PEM))


def test_an_expired_certificate_is_an_error_and_stays(tmp_path: Path) -> None:
    pair = create_node_certificates(tmp_path, ["edge-1"])[0]
    replace_with_expired(tmp_path, "nodes/edge-1", pair.certificate.subject)
    before = contents(tmp_path)
    with pytest.raises(CertificateFault, match=r"edge-1\.crt expired on .*move it"):
        create_node_certificates(tmp_path, ["edge-1"])
    assert contents(tmp_path) == before


def test_a_certificate_of_another_authority_is_an_error_and_stays(tmp_path: Path) -> None:
    create_node_certificates(tmp_path, ["edge-1"])
    for name in ("ca.crt", "ca.key"):
        (tmp_path / name).unlink()
    create_authority(tmp_path)
    before = contents(tmp_path)
    with pytest.raises(CertificateFault, match="not signed by the CA in"):
        create_node_certificates(tmp_path, ["edge-1"])
    assert contents(tmp_path) == before


def test_another_nodes_certificate_under_this_name_is_an_error(tmp_path: Path) -> None:
    create_node_certificates(tmp_path, ["edge-1"])
    for suffix in (".crt", ".key"):
        (tmp_path / "nodes" / f"edge-1{suffix}").rename(tmp_path / "nodes" / f"edge-2{suffix}")
    with pytest.raises(CertificateFault, match=r"is for .*system:node:edge-1.*not for .*system:node:edge-2"):
        create_node_certificates(tmp_path, ["edge-2"])


def test_a_leaf_in_the_place_of_the_authority_is_an_error(tmp_path: Path) -> None:
    create_server_certificate(tmp_path)
    for suffix in (".crt", ".key"):
        (tmp_path / f"ca{suffix}").write_bytes((tmp_path / f"server{suffix}").read_bytes())
    with pytest.raises(CertificateFault, match="no root CA"):
        create_authority(tmp_path)


def test_a_server_certificate_that_lacks_a_name_is_an_error(tmp_path: Path) -> None:
    create_server_certificate(tmp_path)
    with pytest.raises(CertificateFault, match=r"does not name hub\.example, 192\.0\.2\.7"):
        create_server_certificate(tmp_path, ["hub.example", "192.0.2.7"])


def test_a_server_certificate_without_names_is_an_error(tmp_path: Path) -> None:
    pair = create_server_certificate(tmp_path)
    now = datetime.datetime.now(datetime.UTC)
    authority = create_authority(tmp_path)
    nameless = (
        x509.CertificateBuilder()
        .subject_name(pair.certificate.subject)
        .issuer_name(authority.certificate.subject)
        .public_key(pair.key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(authority.key, hashes.SHA256())
    )
    pair.certificate_path.write_bytes(nameless.public_bytes(serialization.Encoding.PEM))
    with pytest.raises(CertificateFault, match="does not name localhost"):
        create_server_certificate(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"rubbish", b"-----BEGIN CERTIFICATE-----\nAA\n-----END CERTIFICATE-----"]
)
def test_a_file_that_is_no_certificate_is_an_error_and_stays(tmp_path: Path, content: bytes) -> None:
    create_authority(tmp_path)
    (tmp_path / "ca.crt").write_bytes(content)
    with pytest.raises(CertificateFault, match=r"ca\.crt is no PEM certificate"):
        create_authority(tmp_path)
    assert (tmp_path / "ca.crt").read_bytes() == content


def test_a_certificate_without_its_key_is_an_error(tmp_path: Path) -> None:
    create_authority(tmp_path)
    (tmp_path / "ca.key").unlink()
    with pytest.raises(CertificateFault, match=r"its key .*ca\.key does not"):
        create_authority(tmp_path)


def test_a_key_of_another_certificate_is_an_error(tmp_path: Path) -> None:
    one, two = create_node_certificates(tmp_path, ["edge-1", "edge-2"])
    one.key_path.write_bytes(two.key_path.read_bytes())
    with pytest.raises(CertificateFault, match="does not belong to the key"):
        create_node_certificates(tmp_path, ["edge-1"])


def test_a_key_that_a_run_cut_short_left_is_used_and_kept(tmp_path: Path) -> None:
    pair = create_authority(tmp_path)
    key = pair.key_path.read_bytes()
    pair.certificate_path.unlink()
    again = create_authority(tmp_path)
    assert again.created
    assert pair.key_path.read_bytes() == key
    assert again.certificate.public_key() == pair.certificate.public_key()


def test_keys_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    (tmp_path / "ca.key").write_bytes(b"rubbish")
    with pytest.raises(CertificateFault, match=r"ca\.key is no unencrypted PEM private key"):
        create_authority(tmp_path)
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "ca.key").write_bytes(pem)
    with pytest.raises(CertificateFault, match="no elliptic-curve key"):
        create_authority(tmp_path)


def test_a_file_made_by_another_run_meanwhile_is_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Path] = []
    present = Path.exists

    def not_yet(path: Path, **_: bool) -> bool:
        if path.name == "ca.key" and not seen:
            seen.append(path)
            path.write_bytes(b"theirs")
            return False
        return False if path.name == "ca.key" else present(path)

    monkeypatch.setattr(Path, "exists", not_yet)
    with pytest.raises(CertificateFault, match="made by somebody else meanwhile"):
        create_authority(tmp_path)
    assert contents(tmp_path) == {"ca.key": b"theirs"}


@pytest.mark.parametrize("node_id", ["", "../escape", "a/b", "-a", "a" * 53, "ä", "a b", ".", "a\n"])
def test_a_node_id_that_is_no_name_is_refused_before_anything_is_written(
    tmp_path: Path, node_id: str
) -> None:
    with pytest.raises(CertificateFault, match="node id"):
        create_node_certificates(tmp_path, ["edge-1", node_id])
    assert contents(tmp_path) == {}


def test_the_longest_node_id_fits(tmp_path: Path) -> None:
    assert create_node_certificates(tmp_path, ["a" * 52])[0].created


def test_a_server_name_that_is_no_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CertificateFault, match="should be a host name or an IP address"):
        create_server_certificate(tmp_path, ["no name"])


def test_a_node_context_loads_what_was_made(tmp_path: Path) -> None:
    pair = create_node_certificates(tmp_path, ["edge-1"])[0]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tmp_path / "ca.crt")
    context.load_cert_chain(pair.certificate_path, pair.key_path)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["edge.certificates", *arguments])
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    return code if isinstance(code, int) else 0


def test_the_command_says_what_it_made_and_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "init", str(tmp_path), "--server-name", "hub.example") == 0
    assert run(monkeypatch, "node", str(tmp_path), "edge-1", "--count", "2", "--prefix", "n") == 0
    assert run(monkeypatch, "node", str(tmp_path), "edge-1") == 0
    lines = [line.split(" (")[0] for line in capsys.readouterr().out.splitlines()]
    names = ["ca", "server", "service", "nodes/edge-1", "nodes/n1", "nodes/n2"]
    assert lines == [*(f"made {tmp_path}/{name}.crt" for name in names), f"kept {tmp_path}/nodes/edge-1.crt"]


def test_the_command_fails_with_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "node", str(tmp_path)) == 1
    assert capsys.readouterr().err == "edge.certificates: no node named: give node ids or --count\n"
    (tmp_path / "file").write_text("")
    assert run(monkeypatch, "init", str(tmp_path / "file" / "under")) == 1
    assert "Not a directory" in capsys.readouterr().err
