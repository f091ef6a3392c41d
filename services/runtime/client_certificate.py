"""Whether a client's certificate is good, by OpenSSL's rules as in its own TLS.

OpenSSL builds and verifies the chain; what its TLS would add is added here: the certificate's purpose and the
strength of every key and signature (security level 2: 112 bits).
"""

from collections.abc import Sequence

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from OpenSSL import crypto

from services.runtime.tls_faults import TlsFault, verify_fault

_LEAST_RSA_BITS = 2048
_LEAST_CURVE_BITS = 224
_WEAK_HASHES = frozenset({"md5", "sha1"})


def check_chain(shown: Sequence[x509.Certificate], trusted: crypto.X509Store) -> None:
    """Raises TlsFault unless the first of the certificates is a client's of a trusted CA, valid now."""
    if not shown:
        raise TlsFault("certificate_missing", "peer did not return a certificate")
    own, *others = [crypto.X509.from_cryptography(certificate) for certificate in shown]
    try:
        chain = crypto.X509StoreContext(trusted, own, others).get_verified_chain()
    except crypto.X509StoreContextError as error:
        raise verify_fault(error.errors[0], str(error.errors[2])) from None
    finally:
        forget_openssl_errors()
    try:
        for place, entry in enumerate(chain):
            certificate = entry.to_cryptography()
            _check_strength(certificate, is_root=place == len(chain) - 1)
            _check_purpose(certificate, is_peer=place == 0)
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise TlsFault("certificate_invalid", str(error)) from None


def forget_openssl_errors() -> None:
    """Empties the thread's queue of OpenSSL's errors: what a verification leaves there, such as a forged
    signature, would be taken for a fault of whatever connection is read next."""
    try:
        crypto.load_certificate(crypto.FILETYPE_ASN1, b"")
    except crypto.Error:
        # Which took all that was in the queue.
        pass


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
