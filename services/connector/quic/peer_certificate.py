"""Who a client's certificate names on a QUIC link, if it is good: by the rules of WebSocket links."""

from collections.abc import Sequence
from pathlib import Path

from aioquic.tls import AlertDescription
from cryptography import x509
from cryptography.x509.oid import NameOID
from OpenSSL import crypto

from services.connector.admission import CertificateNames
from services.runtime.client_certificate import check_chain
from services.runtime.errors import StartupError
from services.runtime.tls_faults import TlsFault

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
    # As on WebSocket links.
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    try:
        store.load_locations(str(client_ca))
    except crypto.Error as error:
        raise StartupError(f"cannot use the client CA {client_ca} for QUIC links") from error
    return store


def check_certificates(shown: Sequence[x509.Certificate], store: crypto.X509Store) -> CertificateNames:
    """Who the first of the certificates names. Raises TlsFault with the reason that WebSocket links give."""
    check_chain(shown, store)
    try:
        return _names(shown[0])
    except ValueError as error:
        raise TlsFault("certificate_invalid", str(error)) from None


def _names(certificate: x509.Certificate) -> CertificateNames:
    def values(of: x509.ObjectIdentifier) -> tuple[str, ...]:
        return tuple(str(entry.value) for entry in certificate.subject.get_attributes_for_oid(of))

    return CertificateNames(
        values(NameOID.ORGANIZATION_NAME), values(NameOID.COMMON_NAME), f"{certificate.serial_number:x}"
    )
