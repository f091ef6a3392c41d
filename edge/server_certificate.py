"""Whether the certificate that a hub shows over QUIC is good: by the rules of WebSocket links.

aioquic's own check knows no partial chains: a CA that is not a root is no end of a chain to it.
"""

import ipaddress
from collections.abc import Sequence

import service_identity
from cryptography import x509
from OpenSSL import crypto
from service_identity import cryptography as names


def trusting(authority: str) -> crypto.X509Store:
    """The CAs of a PEM file, each of them the end of a chain whether it is a root or not. Raises
    crypto.Error."""
    store = crypto.X509Store()
    store.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
    store.load_locations(authority)
    return store


def fault_of(shown: Sequence[x509.Certificate], host: str, trusted: crypto.X509Store) -> str:
    """What is wrong with the first of the certificates as that of a host (a name or an IP address); "" if
    nothing is. Its key is known to be the server's."""
    own, *others = [crypto.X509.from_cryptography(one) for one in shown]
    try:
        crypto.X509StoreContext(trusted, own, others).verify_certificate()
    except crypto.X509StoreContextError as error:
        return f"its certificate is not taken: {error.errors[2]}"
    try:
        if _is_address(host):
            names.verify_certificate_ip_address(shown[0], host)
        else:
            names.verify_certificate_hostname(shown[0], host)
    except (service_identity.CertificateError, service_identity.VerificationError, ValueError):
        return f"its certificate is not for {host}"
    return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
