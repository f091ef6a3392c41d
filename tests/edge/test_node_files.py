"""Key and certificate of a node survive a cut at any moment: `edge.node_files`."""

import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import NameOID

from edge.node_files import NodeFiles, StoredFault, add_authority, read_authorities
from tests.support.certs import TestAuthority, of_another_version

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "edge-1")])
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )


def fits(files: NodeFiles) -> bool:
    found = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    key = load_pem_private_key(files.key.read_bytes(), None)
    return found.public_key() == key.public_key()


def test_key_and_certificate_are_installed_together_and_only_the_owner_reads_the_key(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, "edge-1.west")
    assert files.settle() is None
    first = files.next_key()
    assert files.next_key().private_numbers() == first.private_numbers()
    files.install(certificate(first))
    assert fits(files)
    assert stat.S_IMODE(files.key.stat().st_mode) == 0o600
    assert stat.S_IMODE(files.key.parent.stat().st_mode) == 0o700
    second = files.next_key()
    assert second.private_numbers() != first.private_numbers()
    assert fits(files), "a key that waits for its certificate changes nothing"
    files.install(certificate(second))
    assert fits(files)
    assert sorted(path.name for path in files.key.parent.iterdir()) == ["edge-1.west.crt", "edge-1.west.key"]


def test_a_cut_between_certificate_and_key_is_mended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = NodeFiles(tmp_path, "edge-1")
    files.install(certificate(files.next_key()))
    following = certificate(files.next_key())
    with monkeypatch.context() as patch:
        patch.setattr(NodeFiles, "_take_next", lambda self: None)
        files.install(following)
    assert not fits(files)
    assert files.settle() == following
    assert fits(files)


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    files = NodeFiles(tmp_path, "edge-1")
    files.next_key()
    authority = TestAuthority(tmp_path / "ca").certificate
    for data in (b"no certificate", of_another_version(authority)):
        files.certificate.write_bytes(data)
        with pytest.raises(StoredFault, match=r"edge-1\.crt is no PEM certificate"):
            files.settle()
    (tmp_path / "ca.crt").write_bytes(of_another_version(authority))
    with pytest.raises(StoredFault, match=r"ca\.crt is no PEM certificate"):
        read_authorities(tmp_path)
    (tmp_path / "nodes" / "edge-1.key.next").write_text("no key")
    with pytest.raises(StoredFault, match="no unencrypted PEM private key"):
        files.next_key()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoredFault, match="cannot be written"):
        NodeFiles(tmp_path / "file", "edge-1").next_key()


def test_another_ca_is_trusted_beside_the_present_one(tmp_path: Path) -> None:
    first, second = (certificate(ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
    for authority in (first, second, first):
        add_authority(tmp_path, authority)
    assert read_authorities(tmp_path) == [first, second]
