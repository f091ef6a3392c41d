"""The CA that signs certificates of nodes, as files that may be renewed."""

import datetime
import ssl
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from services.enrolment.signing_request import NAME_PREFIX, ORGANIZATION, NodeKey
from services.runtime.clock import Clock
from services.runtime.errors import StartupError
from services.runtime.tls_files import RenewedFiles, TlsFiles, read_material

# A certificate made now must already be good for a peer whose clock is a little behind; the share of a short
# one is smaller, so that its middle is not behind it when it is made.
_CLOCK_SKEW = datetime.timedelta(minutes=5)
_CLOCK_SKEW_SHARE = 0.1


@dataclass(frozen=True, slots=True, repr=False)
class Authority:
    """A CA's certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

    @property
    def der(self) -> bytes:
        """The certificate, for `/ca.crt`."""
        return self.certificate.public_bytes(Encoding.DER)

    @property
    def not_after(self) -> datetime.datetime:
        """Until when it can sign."""
        return self.certificate.not_valid_after_utc


def read_authority(certificate: Path, private_key: Path, now_ms: int) -> Authority:
    """The first certificate of the file, with its key. Raises StartupError with one sentence."""
    material = read_material(TlsFiles(certificate, private_key, certificate), now_ms)
    found = x509.load_pem_x509_certificates(material.certificate)[0]
    try:
        is_ca = found.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except (x509.ExtensionNotFound, ValueError):
        is_ca = False
    if not is_ca:
        raise StartupError(f"the certificate {certificate} is no CA's, so it can sign none of nodes")
    try:
        key = load_pem_private_key(material.private_key, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StartupError(f"the private key {private_key} is not an unencrypted key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise StartupError(f"the private key {private_key} should be an elliptic-curve or RSA key")
    return Authority(found, key)


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate is good, in whole seconds."""

    not_before: datetime.datetime
    not_after: datetime.datetime


def validity_of(authority: Authority, now_ms: int, seconds: float) -> Validity:
    """Of a certificate signed now: for that long, and never beyond the CA's."""
    now = datetime.datetime.fromtimestamp(now_ms // 1000, datetime.UTC)
    wanted = now + datetime.timedelta(seconds=seconds)
    skew = min(_CLOCK_SKEW, datetime.timedelta(seconds=seconds * _CLOCK_SKEW_SHARE))
    first = max(now - skew, authority.certificate.not_valid_before_utc)
    return Validity(first, min(wanted, authority.not_after))


def sign(authority: Authority, node_id: str, key: NodeKey, serial: int, validity: Validity) -> bytes:
    """A node's certificate in DER form: its name, its key, for client authentication and nothing else."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
            x509.NameAttribute(NameOID.COMMON_NAME, NAME_PREFIX + node_id),
        ]
    )
    usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    signer = authority.certificate.public_key()
    assert isinstance(signer, ec.EllipticCurvePublicKey | rsa.RSAPublicKey)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.certificate.subject)
        .public_key(key.public_key)
        .serial_number(serial)
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(Encoding.DER)


class RenewedAuthority:
    """The present CA. Raises StartupError if its files cannot be used."""

    def __init__(self, certificate: Path, private_key: Path, clock: Clock) -> None:
        self.present: Authority
        self._files = RenewedFiles(
            "CA of edges",
            (certificate, private_key),
            lambda: self._load(certificate, private_key, clock),
        )

    def _load(self, certificate: Path, private_key: Path, clock: Clock) -> None:
        self.present = read_authority(certificate, private_key, clock.wall_ms())

    def look(self) -> bool:
        """Loads files that are newer; whether there were any that can be used."""
        return self._files.look()

    async def run(self) -> None:
        """Looks for newer files until cancelled."""
        await self._files.run()


class RenewedContext:
    """The TLS context of new connections: a client may show a certificate, and if it does it must be good.
    Connections that are open keep theirs. Raises StartupError if the files cannot be used."""

    def __init__(self, files: TlsFiles, clock: Clock) -> None:
        self.present: ssl.SSLContext
        self.not_after: datetime.datetime
        self._files = RenewedFiles("enrolment", files.paths, lambda: self._load(files, clock))

    def _load(self, files: TlsFiles, clock: Clock) -> None:
        material = read_material(files, clock.wall_ms())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.verify_mode = ssl.CERT_OPTIONAL
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.num_tickets = 0
        context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(files.certificate, files.private_key)
            context.load_verify_locations(files.authority)
        except (ssl.SSLError, OSError) as error:
            raise StartupError(
                f"cannot use the certificate {files.certificate} with its key and the CA {files.authority}: "
                f"{getattr(error, 'reason', None) or error.strerror}"
            ) from error
        self.present, self.not_after = context, material.not_after

    def look(self) -> bool:
        """Loads files that are newer; whether there were any that can be used."""
        return self._files.look()

    async def run(self) -> None:
        """Looks for newer files until cancelled."""
        await self._files.run()
