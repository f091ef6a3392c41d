"""A server certificate that edges of two CAs accept, for the time in which one comes after the other.

A stock edge reads its CA once and never asks for another: a hub that showed it a certificate of the next CA
alone would lock it out for good. So the hub shows a certificate, and with it a second one that leads from one
CA to the other: the *bridge*, a CA's name and key signed by the other CA (cross-certificate, RFC 5280, 3.2).
"""

import datetime
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID

from edge.certificates import (
    ALWAYS_SERVED,
    CLOCK_SKEW,
    CertificateFault,
    KeyPair,
    create_authority,
    key_usage,
    name_of,
    present_authority,
    served,
    write_new,
)


@dataclass(frozen=True, slots=True)
class Bridge:
    """What the hub shows: the certificates of `chain_path`, with the key of `server`."""

    chain_path: Path
    server: KeyPair
    certificate: x509.Certificate
    """The CA's that is not trusted by itself, as the other CA signed it."""
    until: datetime.datetime
    """When the first of them expires."""
    signed_by_old: bool
    """Whether the old CA vouches for the new one; else the new one for the old."""


def create_bridge(folder: Path, old_folder: Path, names: Iterable[str] = ()) -> Bridge:
    """Makes `bridge-server.crt`, its key and `bridge-chain.crt` in the folder of the new CA.

    The old CA signs the new one's if it may sign CAs at all; else (its path length is 0) the new one signs
    the old one's, and the hub's certificate stays one of the old CA. Raises CertificateFault.
    """
    old, new = present_authority(old_folder), create_authority(folder)
    if old.certificate.public_key() == new.certificate.public_key():
        raise CertificateFault(
            f"{new.certificate_path} and {old.certificate_path} are one CA; name another folder"
        )
    signed_by_old = _may_sign_authorities(old.certificate)
    if not signed_by_old and not _may_sign_authorities(new.certificate):
        raise CertificateFault(
            f"neither {old.certificate_path} nor {new.certificate_path} may sign a CA's certificate "
            "(path length 0); make the new CA in an empty folder"
        )
    signer, subject = (old, new) if signed_by_old else (new, old)
    server = served(
        folder / "bridge-server",
        subject,
        name_of("cloudhub", "cloudhub server"),
        (*ALWAYS_SERVED, *names),
        (ExtendedKeyUsageOID.SERVER_AUTH,),
    )
    chain_path = folder / "bridge-chain.crt"
    leaf = server.certificate.public_bytes(serialization.Encoding.PEM)
    if chain_path.exists():
        shown = x509.load_pem_x509_certificates(chain_path.read_bytes())
        if (
            len(shown) != 2
            or shown[0] != server.certificate
            or shown[1].subject != subject.certificate.subject
        ):
            raise CertificateFault(
                f"{chain_path} is not the chain of {server.certificate_path}; "
                "move it away to have a new one made"
            )
        bridge = shown[1]
    else:
        bridge = _sign(subject.certificate, signer)
        write_new(chain_path, leaf + bridge.public_bytes(serialization.Encoding.PEM), 0o644)
    until = min(
        one.not_valid_after_utc for one in (old.certificate, new.certificate, bridge, server.certificate)
    )
    return Bridge(chain_path, server, bridge, until, signed_by_old)


def _may_sign_authorities(certificate: x509.Certificate) -> bool:
    """Whether a CA's certificate below this one is accepted."""
    try:
        length = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
    except x509.ExtensionNotFound:
        return False
    return length is None or length > 0


def _sign(authority: x509.Certificate, signer: KeyPair) -> x509.Certificate:
    """The name and key of a CA, vouched for by another."""
    identifier = _identifier(authority)
    return (
        x509.CertificateBuilder()
        .subject_name(authority.subject)
        .issuer_name(signer.certificate.subject)
        .public_key(authority.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.datetime.now(datetime.UTC) - CLOCK_SKEW)
        .not_valid_after(min(authority.not_valid_after_utc, signer.certificate.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(key_usage(signs_certificates=True), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(_identifier(signer.certificate)),
            critical=False,
        )
        .sign(signer.key, hashes.SHA256())
    )


def _identifier(certificate: x509.Certificate) -> x509.SubjectKeyIdentifier:
    try:
        return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.SubjectKeyIdentifier.from_public_key(certificate.public_key())
