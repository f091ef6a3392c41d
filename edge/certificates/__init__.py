"""Certificates of one hub for trials and small sites: a CA, and what it signs.

Layout of the folder: `ca`, `server` (edge links), `service` (gRPC of the services), `nodes/<id>` and
`programs/<name>` (who calls by gRPC), each as `.crt` and `.key`. A file that exists is never written
again: if it is still good it is kept, if not `CertificateFault` says why and what to do. The command is
`python -m edge.certificates`.
"""

import datetime
import ipaddress
import os
import re
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

# What the hub's services call each other by, and the organisations that carry roles
# (docs/operations/certificates.md).
SERVICE_NAME = "service.cloudhub.internal"
ROLES = {
    "service": "cloudhub:service",
    "publisher": "cloudhub:publisher",
    "operator": "cloudhub:operator",
}
ALWAYS_SERVED = ("localhost", "127.0.0.1", "::1")
AUTHORITY_DAYS = 3650
LEAF_DAYS = 825
# A certificate made now must already be good for a peer whose clock is a little behind.
CLOCK_SKEW = datetime.timedelta(minutes=5)
# X.509 holds 64 characters in a common name; "system:node:" takes 12 of them.
_NODE_ID = re.compile(r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,50}[A-Za-z0-9])?$")
_HOST_NAME = re.compile(r"^(\*\.)?[A-Za-z0-9]([A-Za-z0-9._-]{0,250}[A-Za-z0-9])?$")


class CertificateFault(Exception):
    """A file in the way or a name that cannot be certified; the text says what would be right."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A certificate with its private key, as files and loaded."""

    certificate_path: Path
    key_path: Path
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    created: bool
    """False if the files were there already and were kept."""


def create_authority(folder: Path) -> KeyPair:
    """The CA of `folder`: made if there is none, else the present one. Raises CertificateFault.

    It may sign another CA's certificate, as a bridge to the one after it (`edge.certificates.bridge`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    # Two CAs of one name are told apart by their keys' identifiers alone, which not every verifier looks at.
    name = name_of("cloudhub", f"cloudhub CA {secrets.token_hex(4)}")
    return _pair(
        folder / "ca",
        issuer=None,
        subject=name,
        days=AUTHORITY_DAYS,
        extensions=[
            (x509.BasicConstraints(ca=True, path_length=1), True),
            (key_usage(signs_certificates=True), True),
        ],
    )


def present_authority(folder: Path) -> KeyPair:
    """The CA that is in `folder` already. Raises CertificateFault."""
    certificate_path, key_path = folder / "ca.crt", folder / "ca.key"
    if not certificate_path.exists():
        raise CertificateFault(f"{certificate_path} does not exist; name the folder of the CA that is in use")
    return _present(certificate_path, key_path, None, x509.Name([]))


def create_server_certificate(folder: Path, names: Iterable[str] = ()) -> KeyPair:
    """The server's certificate for localhost and `names` (host names or IP addresses)."""
    return served(
        folder / "server",
        create_authority(folder),
        name_of("cloudhub", "cloudhub server"),
        (*ALWAYS_SERVED, *names),
        (ExtendedKeyUsageOID.SERVER_AUTH,),
    )


def served(
    stem: Path,
    authority: KeyPair,
    subject: x509.Name,
    names: Iterable[str],
    usages: Sequence[x509.ObjectIdentifier],
) -> KeyPair:
    """A certificate for whoever dials one of `names`."""
    wanted = list(dict.fromkeys(names))
    pair = _pair(
        stem,
        issuer=authority,
        subject=subject,
        days=LEAF_DAYS,
        extensions=[
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage(), True),
            (x509.ExtendedKeyUsage(usages), False),
            (x509.SubjectAlternativeName([_general_name(name) for name in wanted]), False),
        ],
    )
    missing = [name for name in wanted if name not in _served_names(pair.certificate)]
    if missing:
        raise CertificateFault(
            f"{pair.certificate_path} does not name {', '.join(missing)}; "
            "move it and its key away to have a new one made"
        )
    return pair


def create_service_certificate(folder: Path, names: Iterable[str] = ()) -> KeyPair:
    """What the hub's services show to each other and to gRPC clients: organisation `cloudhub:service`, named
    SERVICE_NAME, localhost and `names`."""
    return served(
        folder / "service",
        create_authority(folder),
        name_of(ROLES["service"], "cloudhub service"),
        (SERVICE_NAME, *ALWAYS_SERVED, *names),
        (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH),
    )


def create_program_certificate(folder: Path, name: str, roles: Sequence[str]) -> KeyPair:
    """The certificate of a gRPC client. `roles` are of ROLES; each is an organisation of its subject."""
    if not _NODE_ID.fullmatch(name):
        raise CertificateFault(
            f"program name {name!r}: should be 1 to 52 letters, digits, '.', '-' or '_', "
            "with a letter or digit first and last"
        )
    for role in roles:
        if role not in ROLES:
            raise CertificateFault(f"role {role!r}: should be one of {', '.join(ROLES)}")
    if not roles:
        raise CertificateFault(f"program {name}: give at least one role of {', '.join(ROLES)}")
    authority = create_authority(folder)
    (folder / "programs").mkdir(exist_ok=True)
    return _pair(
        folder / "programs" / name,
        issuer=authority,
        subject=name_of([ROLES[role] for role in dict.fromkeys(roles)], name),
        days=LEAF_DAYS,
        extensions=[
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (key_usage(), True),
            (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
        ],
    )


def create_node_certificates(folder: Path, node_ids: Sequence[str]) -> list[KeyPair]:
    """A client certificate per node: subject `O=system:nodes, CN=system:node:<id>` (docs/protocol.md).

    Every id is checked before the first file is written.
    """
    for node_id in node_ids:
        if not _NODE_ID.fullmatch(node_id):
            raise CertificateFault(
                f"node id {node_id!r}: should be 1 to 52 letters, digits, '.', '-' or '_', "
                "with a letter or digit first and last"
            )
    authority = create_authority(folder)
    (folder / "nodes").mkdir(exist_ok=True)
    return [
        _pair(
            folder / "nodes" / node_id,
            issuer=authority,
            subject=name_of("system:nodes", f"system:node:{node_id}"),
            days=LEAF_DAYS,
            extensions=[
                (x509.BasicConstraints(ca=False, path_length=None), True),
                (key_usage(), True),
                (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), False),
            ],
        )
        for node_id in node_ids
    ]


def name_of(organizations: str | Sequence[str], common_name: str) -> x509.Name:
    if isinstance(organizations, str):
        organizations = [organizations]
    return x509.Name(
        [
            *(x509.NameAttribute(NameOID.ORGANIZATION_NAME, one) for one in organizations),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def key_usage(*, signs_certificates: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        if not _HOST_NAME.fullmatch(name):
            raise CertificateFault(f"server name {name!r}: should be a host name or an IP address") from None
        return x509.DNSName(name)


def _served_names(certificate: x509.Certificate) -> set[str]:
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return set()
    return {*found.get_values_for_type(x509.DNSName), *map(str, found.get_values_for_type(x509.IPAddress))}


def _pair(
    stem: Path,
    *,
    issuer: KeyPair | None,
    subject: x509.Name,
    days: int,
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> KeyPair:
    # Not with_suffix: a node id may hold dots.
    certificate_path, key_path = stem.parent / f"{stem.name}.crt", stem.parent / f"{stem.name}.key"
    if certificate_path.exists():
        return _present(certificate_path, key_path, issuer, subject)
    # A key without a certificate is what a run that was cut short left: it is used, not replaced.
    key = _read_key(key_path) if key_path.exists() else ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    signer = issuer.key if issuer else key
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    certificate = builder.sign(signer, hashes.SHA256())
    if not key_path.exists():
        write_new(
            key_path,
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            ),
            0o600,
        )
    write_new(certificate_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)
    return KeyPair(certificate_path, key_path, certificate, key, created=True)


def _present(certificate_path: Path, key_path: Path, issuer: KeyPair | None, subject: x509.Name) -> KeyPair:
    move = "move it and its key away to have a new one made"
    try:
        certificate = x509.load_pem_x509_certificate(certificate_path.read_bytes())
    except (ValueError, x509.InvalidVersion):
        raise CertificateFault(f"{certificate_path} is no PEM certificate; {move}") from None
    if not key_path.exists():
        raise CertificateFault(f"{certificate_path} exists but its key {key_path} does not; {move}")
    key = _read_key(key_path)
    if certificate.public_key() != key.public_key():
        raise CertificateFault(f"{certificate_path} does not belong to the key {key_path}; {move}")
    expires = certificate.not_valid_after_utc
    if expires <= datetime.datetime.now(datetime.UTC):
        raise CertificateFault(f"{certificate_path} expired on {expires:%Y-%m-%d}; {move}")
    authority = issuer.certificate if issuer else certificate
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        whose = f"the CA in {issuer.certificate_path}" if issuer else "itself, so it is no root CA"
        raise CertificateFault(f"{certificate_path} is not signed by {whose}; {move}") from None
    if issuer and certificate.subject != subject:
        raise CertificateFault(
            f"{certificate_path} is for {certificate.subject.rfc4514_string()!r}, "
            f"not for {subject.rfc4514_string()!r}; {move}"
        )
    return KeyPair(certificate_path, key_path, certificate, key, created=False)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError):
        raise CertificateFault(f"{path} is no unencrypted PEM private key; move it away") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise CertificateFault(f"{path} is no elliptic-curve key; move it away")
    return key


def write_new(path: Path, data: bytes, mode: int) -> None:
    """Writes a file that must not exist; it appears whole or not at all."""
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        # A link, unlike a rename, fails if somebody made the file meanwhile.
        path.hardlink_to(draft)
    except FileExistsError:
        raise CertificateFault(f"{path} was made by somebody else meanwhile; run again") from None
    finally:
        draft.unlink()
