"""Edges of two CAs at one hub: what `python -m edge.certificates bridge` makes, as verifiers take it."""

import datetime
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from edge.certificates import CertificateFault, create_authority, create_server_certificate
from edge.certificates.bridge import create_bridge

HUB = "hub.example.com"


def old_authority(folder: Path, path_length: int | None, days: int = 400) -> None:
    """A CA as other tools make it, in the layout of ours."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "the old CA")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "ca.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def accepts(chain: Path, trusted: Path, folder: Path) -> bool:
    """Whether two strict verifiers, which agree, take a chain on the word of one CA alone."""
    shown = x509.load_pem_x509_certificates(chain.read_bytes())
    root = x509.load_pem_x509_certificate(trusted.read_bytes())
    verifier = PolicyBuilder().store(Store([root])).build_server_verifier(x509.DNSName(HUB))
    try:
        verifier.verify(shown[0], shown[1:])
        first = True
    except VerificationError:
        first = False
    leaf, others = folder / "leaf.pem", folder / "others.pem"
    leaf.write_bytes(shown[0].public_bytes(serialization.Encoding.PEM))
    others.write_bytes(b"".join(one.public_bytes(serialization.Encoding.PEM) for one in shown[1:]))
    second = subprocess.run(
        [
            *("openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-verify_hostname", HUB),
            *("-CAfile", str(trusted), "-no-CApath"),
            *(("-untrusted", str(others)) if len(shown) > 1 else ()),
            str(leaf),
        ],
        capture_output=True,
        check=False,
    )
    assert first == (second.returncode == 0), second.stderr.decode()
    return first


@pytest.mark.parametrize(("path_length", "signed_by_old"), [(0, False), (1, True), (None, True)])
def test_edges_of_either_ca_accept_the_bridge(
    tmp_path: Path, path_length: int | None, signed_by_old: bool
) -> None:
    """An old CA that may sign no other CA is vouched for by the new one instead."""
    old, new = tmp_path / "old", tmp_path / "new"
    old_authority(old, path_length)
    made = create_bridge(new, old, [HUB])
    assert made.signed_by_old is signed_by_old
    assert accepts(made.chain_path, old / "ca.crt", tmp_path)
    assert accepts(made.chain_path, new / "ca.crt", tmp_path)
    create_authority(tmp_path / "third")
    assert not accepts(made.chain_path, tmp_path / "third" / "ca.crt", tmp_path)


def test_without_it_a_new_certificate_locks_old_edges_out(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old_authority(old, 0)
    server = create_server_certificate(new, [HUB])
    assert accepts(server.certificate_path, new / "ca.crt", tmp_path)
    assert not accepts(server.certificate_path, old / "ca.crt", tmp_path)


def test_cas_that_were_made_here_follow_one_another(tmp_path: Path) -> None:
    create_authority(tmp_path / "first")
    made = create_bridge(tmp_path / "second", tmp_path / "first", [HUB])
    assert made.signed_by_old
    assert accepts(made.chain_path, tmp_path / "first" / "ca.crt", tmp_path)


def test_it_is_good_as_long_as_both_cas_are(tmp_path: Path) -> None:
    old_authority(tmp_path / "old", 1, days=30)
    made = create_bridge(tmp_path / "new", tmp_path / "old", [HUB])
    left = made.until - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=29) < left <= datetime.timedelta(days=30)


def test_a_second_run_keeps_what_is_there(tmp_path: Path) -> None:
    old_authority(tmp_path / "old", 0)
    first = create_bridge(tmp_path / "new", tmp_path / "old", [HUB])
    again = create_bridge(tmp_path / "new", tmp_path / "old", [HUB])
    assert again.certificate == first.certificate
    with pytest.raises(CertificateFault, match=r"does not name other\.example\.com"):
        create_bridge(tmp_path / "new", tmp_path / "old", ["other.example.com"])
    (tmp_path / "new" / "bridge-chain.crt").write_bytes((tmp_path / "new" / "ca.crt").read_bytes())
    with pytest.raises(CertificateFault, match="is not the chain of"):
        create_bridge(tmp_path / "new", tmp_path / "old", [HUB])


def test_one_ca_needs_no_bridge(tmp_path: Path) -> None:
    create_authority(tmp_path / "only")
    with pytest.raises(CertificateFault, match="are one CA"):
        create_bridge(tmp_path / "only", tmp_path / "only")


def test_two_cas_that_may_sign_no_other_are_told_apart(tmp_path: Path) -> None:
    old_authority(tmp_path / "old", 0)
    old_authority(tmp_path / "new", 0)
    with pytest.raises(CertificateFault, match="make the new CA in an empty folder"):
        create_bridge(tmp_path / "new", tmp_path / "old")


def test_the_command_says_who_accepts_what_until_when(tmp_path: Path) -> None:
    old_authority(tmp_path / "old", 0)
    command = [sys.executable, "-m", "edge.certificates", "bridge"]
    done = subprocess.run(
        [*command, str(tmp_path / "new"), str(tmp_path / "old"), "--server-name", HUB],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "edges of both CAs accept" in done.stdout
    assert "the new CA vouches for the old one" in done.stdout
    missing = subprocess.run(
        [*command, str(tmp_path / "new"), str(tmp_path / "nowhere")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert missing.returncode == 1
    assert missing.stderr == (
        f"edge.certificates: {tmp_path}/nowhere/ca.crt does not exist; "
        "name the folder of the CA that is in use\n"
    )
