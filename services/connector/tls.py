"""TLS of edge links, without I/O: ciphertext in, plaintext out, and the other way.

The shell owns the plain TCP transport, so it knows exactly which bytes the operating system has, and
a failed handshake is an exception with a reason instead of a log line of the event loop.
"""

import datetime
import ssl
from collections.abc import Callable
from typing import Any, cast

from services.connector.admission import CertificateNames
from services.runtime.clock import Clock
from services.runtime.errors import StartupError
from services.runtime.tls_faults import fault_of
from services.runtime.tls_files import RenewedFiles, TlsFiles, read_material

_RECORD_BYTES = 16384


class TlsChannel:
    """The server's side of one connection."""

    __slots__ = ("_incoming", "_object", "_outgoing", "ended", "established")

    def __init__(self, context: ssl.SSLContext) -> None:
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self.established = False
        # True after the peer's close_notify: no plaintext follows.
        self.ended = False

    def receive(self, ciphertext: bytes) -> bytes:
        """The plaintext that came complete. Raises TlsFault; `outgoing` then holds the alert."""
        self._incoming.write(ciphertext)
        try:
            if not self.established:
                self._object.do_handshake()
                self.established = True
            return self._read()
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            raise fault_of(error) from None

    def _read(self) -> bytes:
        parts: list[bytes] = []
        tls = self._object
        try:
            # Asking only while something is there saves the exception in the common case.
            while self._incoming.pending or tls.pending():
                part = tls.read(_RECORD_BYTES)
                if not part:
                    self.ended = True
                    break
                parts.append(part)
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def encrypt(self, plaintext: bytes) -> bytes:
        """The ciphertext of `plaintext`, behind whatever was waiting to go out."""
        view = memoryview(plaintext)
        try:
            while view:
                view = view[self._object.write(view) :]
        except ssl.SSLError as error:
            raise fault_of(error) from None
        return self._outgoing.read()

    def outgoing(self) -> bytes:
        """Handshake records and alerts that wait to go out."""
        return self._outgoing.read() if self._outgoing.pending else b""

    def close(self) -> bytes:
        """The close_notify alert; nothing can be encrypted afterwards."""
        try:
            self._object.unwrap()
        except ssl.SSLError:
            # The peer's own close_notify has not come (yet), or the session never was or broke.
            pass
        return self._outgoing.read()

    def names(self) -> CertificateNames:
        """Who the verified client certificate names."""
        certificate = cast("dict[str, Any]", self._object.getpeercert() or {})
        subject: tuple[tuple[tuple[str, str], ...], ...] = certificate.get("subject", ())
        found: dict[str, list[str]] = {"organizationName": [], "commonName": []}
        for relative_name in subject:
            for key, value in relative_name:
                if key in found:
                    found[key].append(value)
        serial = str(certificate.get("serialNumber", "")).lower().lstrip("0")
        return CertificateNames(tuple(found["organizationName"]), tuple(found["commonName"]), serial)


def server_context(files: TlsFiles, now_ms: int) -> tuple[ssl.SSLContext, datetime.datetime]:
    """The context of edge links (TLS 1.2 or newer, client certificate required, no resumption), and when its
    certificate expires.

    Raises StartupError with one sentence if a file is unreadable, expired or does not fit.
    """
    not_after = read_material(files, now_ms).not_after
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_mode = ssl.CERT_REQUIRED
    # A CA may be another one's: it is trusted itself, and none above it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # At least 112 bits: RSA from 2048, no SHA-1. Some builds of OpenSSL ask for less by themselves.
    context.set_ciphers("DEFAULT:@SECLEVEL=2")
    # Resumption would keep a session per edge in memory and skip the look at its certificate.
    context.num_tickets = 0
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
    try:
        context.load_cert_chain(files.certificate, files.private_key)
        context.load_verify_locations(files.authority)
    except (ssl.SSLError, OSError) as error:
        raise StartupError(
            f"cannot use the certificate {files.certificate} with its key and the CA {files.authority}: "
            f"{getattr(error, 'reason', None) or error.strerror}"
        ) from error
    return context, not_after


class EdgeTls:
    """The present context of new edge links; `run` loads certificate, key and CA anew when they change. Links
    that are open keep theirs. Raises StartupError if the files cannot be used."""

    def __init__(self, files: TlsFiles, clock: Clock) -> None:
        self.context: ssl.SSLContext
        # What else uses these files takes them now, or raises StartupError: then all keep what they have.
        self.on_load: Callable[[], None] = lambda: None
        self._not_after: datetime.datetime
        self._files = RenewedFiles("edge links", files.paths, lambda: self._load(files, clock))

    def _load(self, files: TlsFiles, clock: Clock) -> None:
        loaded = server_context(files, clock.wall_ms())
        self.on_load()
        self.context, self._not_after = loaded

    def expires_at(self) -> float:
        """When the certificate expires, in seconds since the epoch."""
        return self._not_after.timestamp()

    def look(self) -> bool:
        """Loads files that are newer; whether there were any that can be used."""
        return self._files.look()

    async def run(self) -> None:
        """Looks for newer files until cancelled."""
        await self._files.run()
