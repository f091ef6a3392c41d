"""Whether a client's certificate is good, by OpenSSL's rules as on a WebSocket link.

OpenSSL builds and verifies the chain; what its TLS would add is added here: the certificate's purpose and the
strength of every key and signature (security level 2: 112 bits).
"""

from collections.abc import Sequence
from pathlib import Path

from aioquic.tls import AlertDescription
from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from OpenSSL import crypto

from services.connector.admission import CertificateNames
from services.connector.tls import VERIFY_REASONS, TlsFault
from services.runtime.errors import StartupError

_LEAST_RSA_BITS = 2048
_LEAST_CURVE_BITS = 224
_WEAK_HASHES = frozenset({"md5", "sha1"})

ALERTS = {
    "certificate_missing": AlertDescription.certificate_required,
    "certificate_expired": AlertDescription.certificate_expired,
    "certificate_not_yet_valid": AlertDescription.bad_certificate,
    "certificate_untrusted": AlertDescription.unknown_ca,
    "certificate_purpose": AlertDescription.unsupported_certificate,
    "certificate_weak_key": AlertDescription.bad_certificate,
}
"""The TLS alert of each reason; others are `bad_certificate`."""


def trusted_authorities(client_ca: Path) -> crypto.X509Store:
    """The CAs whose edges may connect. Raises StartupError."""
    store = crypto.X509Store()
    try:
        store.load_locations(str(client_ca))
    except crypto.Error as error:
        raise StartupError(f"cannot use the client CA {client_ca} for QUIC links") from error
    return store


def check_certificates(shown: Sequence[x509.Certificate], store: crypto.X509Store) -> CertificateNames:
    """Who the first of the certificates names. Raises TlsFault with the reason that WebSocket links give."""
    if not shown:
        raise TlsFault("certificate_missing", "peer did not return a certificate")
    own, *others = [crypto.X509.from_cryptography(certificate) for certificate in shown]
    try:
        chain = crypto.X509StoreContext(store, own, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        reason = VERIFY_REASONS.get(error.errors[0], "certificate_invalid")
        raise TlsFault(reason, str(error.errors[2])) from None
    try:
        for place, entry in enumerate(chain):
            certificate = entry.to_cryptography()
            _check_strength(certificate, is_root=place == len(chain) - 1)
            _check_purpose(certificate, is_peer=place == 0)
        return _names(shown[0])
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise TlsFault("certificate_invalid", str(error)) from None


def _check_strength(certificate: x509.Certificate, *, is_root: bool) -> None:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey | dsa.DSAPublicKey):
        weak = key.key_size < _LEAST_RSA_BITS
    else:
        weak = isinstance(key, ec.EllipticCurvePublicKey) and key.key_size < _LEAST_CURVE_BITS
    if weak:
        raise TlsFault("certificate_weak_key", "the key has less than 112 bits of security")
    # Nobody relies on what a root says of itself.
    used = certificate.signature_hash_algorithm
    if not is_root and used is not None and used.name in _WEAK_HASHES:
        raise TlsFault("certificate_weak_key", f"the certificate is signed with {used.name}")


def _check_purpose(certificate: x509.Certificate, *, is_peer: bool) -> None:
    extensions = certificate.extensions
    try:
        purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        pass
    else:
        if ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
            raise TlsFault("certificate_purpose", "the certificate is not for TLS clients")
    if not is_peer:
        return
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound:
        return
    if not (usage.digital_signature or usage.key_agreement):
        raise TlsFault("certificate_purpose", "the certificate's key is not for signatures")


def _names(certificate: x509.Certificate) -> CertificateNames:
    def values(of: x509.ObjectIdentifier) -> tuple[str, ...]:
        return tuple(str(entry.value) for entry in certificate.subject.get_attributes_for_oid(of))

    return CertificateNames(
        values(NameOID.ORGANIZATION_NAME), values(NameOID.COMMON_NAME), f"{certificate.serial_number:x}"
    )
