"""The server's side of TLS for gRPC, without I/O: ciphertext in, plaintext out, and the other way.

A client's certificate is asked for and taken whatever it is, so that a refusal can be a status with a reason
and not the end of a handshake. Whether it is good says `client_certificate.check_chain`, and nothing here:
OpenSSL's own verification knows no CA and decides nothing. Sessions are not resumed, since that would skip
the certificate. The names of our CAs are not sent: clients that compare would show nothing and could not be
told what is wrong with what they have.
"""

from collections.abc import Sequence
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from OpenSSL import SSL, crypto

from services.runtime.client_certificate import forget_openssl_errors
from services.runtime.errors import StartupError
from services.runtime.revocations import Revocations
from services.runtime.tls_faults import TlsFault, protocol_fault
from services.runtime.tls_files import TlsMaterial

# What gRPC's core asks for by itself, at the strength of edge links (112 bits).
_CIPHERS = (
    b"ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    b"ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384:@SECLEVEL=2"
)
_PROTOCOL = b"h2"
_RECORD_BYTES = 16_384
_PIECE_BYTES = 65_536
# A handshake's answer fits in it; so does the overhead of a piece of `encrypt`.
_OVERHEAD_BYTES = 4_096


class _NoHttp2(Exception):
    """Ends a handshake by the alert no_application_protocol."""


def _choose_protocol(_: SSL.Connection, offered: list[bytes]) -> bytes:
    if _PROTOCOL not in offered:
        raise _NoHttp2
    return _PROTOCOL


def _take_any(_: SSL.Connection, __: crypto.X509, code: int, depth: int, ok: int) -> bool:
    return True


class ServerTls:
    """What new connections of a server shake hands with, and the CAs whose clients it takes. Raises
    StartupError if OpenSSL has something against the certificate or its key."""

    def __init__(self, material: TlsMaterial, revocations: Revocations) -> None:
        self.revocations = revocations
        own, *chain = x509.load_pem_x509_certificates(material.certificate)
        authorities = x509.load_pem_x509_certificates(material.authority)
        context = SSL.Context(SSL.TLS_SERVER_METHOD)
        context.set_min_proto_version(SSL.TLS1_2_VERSION)
        context.set_options(SSL.OP_NO_TICKET | SSL.OP_NO_RENEGOTIATION | SSL.OP_NO_COMPRESSION)
        context.set_session_cache_mode(SSL.SESS_CACHE_OFF)
        context.set_mode(SSL.MODE_RELEASE_BUFFERS)
        context.set_alpn_select_callback(_choose_protocol)
        context.set_verify(SSL.VERIFY_PEER, _take_any)
        self.trusted = crypto.X509Store()
        # A CA may be another one's: it is trusted itself, and none above it. gRPC's core has it so too.
        self.trusted.set_flags(crypto.X509StoreFlags.PARTIAL_CHAIN)
        try:
            context.set_cipher_list(_CIPHERS)
            context.use_certificate(own)
            for one in chain:
                context.add_extra_chain_cert(one)
            # Of a kind that TLS signs with, or OpenSSL says so.
            context.use_privatekey(load_pem_private_key(material.private_key, None))  # type: ignore[arg-type]
            for one in authorities:
                self.trusted.add_cert(crypto.X509.from_cryptography(one))
        except (SSL.Error, crypto.Error, TypeError) as error:
            raise StartupError(
                f"gRPC cannot use the certificate, its key or the CA: {_words(error)}"
            ) from error
        self.authorities = tuple(one.subject.rfc4514_string() for one in authorities)
        self.context = context


class TlsStream:
    """One connection's TLS."""

    __slots__ = ("_tls", "ended", "established")

    def __init__(self, present: ServerTls) -> None:
        self._tls = SSL.Connection(present.context, None)
        self._tls.set_accept_state()
        self.established = False
        # True after the peer's close_notify: no plaintext follows.
        self.ended = False

    def receive(self, ciphertext: bytes) -> bytes:
        """The plaintext that came complete. Raises TlsFault; `outgoing` then holds the alert."""
        self._tls.bio_write(ciphertext)
        try:
            if not self.established:
                self._shake_hands()
            return self._read()
        except SSL.WantReadError:
            return b""
        except SSL.Error as error:
            raise protocol_fault(_words(error).upper().replace(" ", "_")) from None

    def _shake_hands(self) -> None:
        try:
            self._tls.do_handshake()
        except _NoHttp2:
            raise TlsFault("no_http2", "the peer does not offer HTTP/2 (ALPN h2)") from None
        finally:
            forget_openssl_errors()
        if self._tls.get_alpn_proto_negotiated() != _PROTOCOL:
            raise TlsFault("no_http2", "the peer offers no protocol (ALPN), as HTTP/2 over TLS needs")
        self.established = True

    def _read(self) -> bytes:
        parts: list[bytes] = []
        try:
            while True:
                parts.append(self._tls.recv(_RECORD_BYTES))
        except SSL.WantReadError:
            pass
        except SSL.ZeroReturnError:
            self.ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, plaintext: bytes) -> bytes:
        """The ciphertext of `plaintext`, behind whatever was waiting to go out. Raises TlsFault."""
        try:
            self._tls.sendall(plaintext)
        except SSL.Error as error:
            raise protocol_fault(_words(error).upper().replace(" ", "_")) from None
        return self._taken(len(plaintext) + len(plaintext) // 256 + _OVERHEAD_BYTES)

    def outgoing(self) -> bytes:
        """Handshake records and alerts that wait to go out."""
        return self._taken(_OVERHEAD_BYTES)

    def _taken(self, expected: int) -> bytes:
        parts: list[bytes] = []
        try:
            parts.append(self._tls.bio_read(expected))
            while len(parts[-1]) == expected:
                expected = _PIECE_BYTES
                parts.append(self._tls.bio_read(expected))
        except SSL.WantReadError:
            pass
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def close(self) -> bytes:
        """The close_notify alert; nothing can be encrypted afterwards."""
        try:
            self._tls.shutdown()
        except SSL.Error:
            # The session never was, or broke.
            forget_openssl_errors()
        return self.outgoing()

    def shown(self) -> Sequence[x509.Certificate]:
        """The peer's certificates, first the one whose key it proved to have; none if it showed none. Raises
        TlsFault for what is no certificate."""
        try:
            own = self._tls.get_peer_certificate(as_cryptography=True)
            others: Sequence[Any] = self._tls.get_peer_cert_chain(as_cryptography=True) or ()
        except ValueError as error:
            raise TlsFault("certificate_invalid", f"a certificate cannot be read: {error}") from None
        return [] if own is None else [own, *others]


def _words(error: Exception) -> str:
    """OpenSSL's reason."""
    found = error.args[0] if error.args else ""
    return str(found[0][2]) if isinstance(found, list) and found else str(found or error)
