"""Certificate authorities and certificates for tests."""

import datetime as dt
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from services.runtime.clock import Clock, SystemClock
from services.runtime.roles import Role
from services.runtime.security import SERVICE_NAME, MutualTls
from services.runtime.tls_files import TlsFiles

PrivateKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey
_HOUR = dt.timedelta(hours=1)


def _name(common_name: str, *organizations: str | None) -> x509.Name:
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, one) for one in organizations if one is not None),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _write_key(path: Path, data: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(data)


@dataclass(frozen=True)
class Issued:
    """A certificate and its key as PEM files."""

    certificate: Path
    key: Path


def of_another_version(issued: Path) -> bytes:
    """The certificate of a PEM file with a version that X.509 does not have."""
    der = x509.load_pem_x509_certificate(issued.read_bytes()).public_bytes(Encoding.DER)
    third = b"\xa0\x03\x02\x01\x02"
    assert third in der
    return ssl.DER_cert_to_PEM_cert(der.replace(third, third[:-1] + b"\x07", 1)).encode()


class TestAuthority:
    """A CA in a directory of its own."""

    __test__ = False

    def __init__(
        self,
        directory: Path,
        name: str = "cloudhub-test-ca",
        *,
        path_length: int = 0,
        parent: "TestAuthority | None" = None,
        starts: dt.timedelta = -_HOUR,
        ends: dt.timedelta = 24 * _HOUR,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name, None)
        now = dt.datetime.now(dt.UTC)
        self._chain = parent.chain() if parent else b""
        issuer = parent or self
        certificate = (
            x509.CertificateBuilder()
            .subject_name(self._name)
            .issuer_name(issuer._name)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
            .sign(issuer._key, hashes.SHA256())
        )
        self.certificate = directory / "ca.crt"
        self.certificate.write_bytes(certificate.public_bytes(Encoding.PEM))
        self.key_file = directory / "ca.key"
        _write_key(self.key_file, self.private_key())

    def chain(self) -> bytes:
        """What a node of this CA shows besides its own certificate, if this CA is not the hub's."""
        return self.certificate.read_bytes() + self._chain

    def issue(
        self,
        common_name: str,
        organization: str | None = "system:nodes",
        *,
        subject: x509.Name | None = None,
        key: PrivateKey | None = None,
        extensions: Sequence[x509.ExtensionType] = (),
        chain: bytes = b"",
        starts: dt.timedelta = -_HOUR,
        ends: dt.timedelta = _HOUR,
        file: str = "",
        names: Sequence[str] = ("localhost",),
    ) -> Issued:
        """A certificate valid from now + `starts` to now + `ends`; its file holds the `chain` behind it."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        now = dt.datetime.now(dt.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject or _name(common_name, organization))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + starts)
            .not_valid_after(now + ends)
            .add_extension(x509.SubjectAlternativeName(list(map(x509.DNSName, names))), critical=False)
        )
        for extension in extensions:
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        stem = file or common_name.replace(":", "-")
        issued = Issued(self._directory / f"{stem}.crt", self._directory / f"{stem}.key")
        issued.certificate.write_bytes(certificate.public_bytes(Encoding.PEM) + chain)
        _write_key(issued.key, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return issued

    def private_key(self) -> bytes:
        """This CA's key in PEM form."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def signing_as(self, issued: Issued, key: ec.EllipticCurvePrivateKey) -> "TestAuthority":
        """This CA from now on with the name and key of a certificate that is no CA's."""
        self._name = x509.load_pem_x509_certificate(issued.certificate.read_bytes()).subject
        self._key = key
        return self

    def node(self, node_id: str) -> Issued:
        """The certificate of an edge node."""
        return self.issue(f"system:node:{node_id}")

    def service(self, file: str = "service", **options: Any) -> Issued:
        """What services show to each other and to gRPC clients."""
        return self.issue(
            "service", Role.SERVICE.value, file=file, names=("localhost", SERVICE_NAME), **options
        )

    def program(self, name: str, *roles: Role, **options: Any) -> Issued:
        """What a gRPC client with these roles shows."""
        return self.issue(name, subject=_name(name, *(role.value for role in roles)), **options)

    def security(self, issued: Issued, clock: Clock | None = None) -> MutualTls:
        """Opens channels, or serves, with a certificate of this CA or of another."""
        files = TlsFiles(issued.certificate, issued.key, self.certificate)
        return MutualTls(files, clock or SystemClock())

    def client_context(self, issued: Issued | None) -> ssl.SSLContext:
        """The TLS settings of an edge that trusts this CA; without a certificate if None."""
        context = ssl.create_default_context(cafile=str(self.certificate))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        if issued is not None:
            context.load_cert_chain(issued.certificate, issued.key)
        return context
