"""How a node gets its certificate from the hub, and the next one before it expires (docs/enrolment.md).

A join token says which CA to trust, by its hash, and proves to the hub that the node may enrol. Later
certificates are had by showing the present one.
"""

import hashlib
import hmac
import http.client
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from edge.node_files import NodeFiles, add_authority, read_authorities
from edge.reconnect import UNPROVEN
from edge.tls_alerts import says_certificate_refused

_SERVER = re.compile(r"https://(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})")
_HUB_PORT = 10000
_MOST_ANSWER_BYTES = 64 * 1024
REQUEST_SECONDS = 10.0
_TRY_LATER = frozenset({429, 500, 502, 503, 504})


class EnrolmentFault(Exception):
    """There is no certificate. `passing`: trying again may help; `retry_after_seconds`: the hub's advice.
    `unproven`: the hub does not take what the node showed, a certificate or a token. `answered`: the node got
    past TLS."""

    def __init__(
        self,
        text: str,
        *,
        passing: bool = False,
        retry_after_seconds: float = 0.0,
        unproven: bool = False,
        answered: bool = False,
    ) -> None:
        super().__init__(text)
        self.passing = passing
        self.retry_after_seconds = retry_after_seconds
        self.unproven = unproven
        self.answered = answered


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What an operator hands to a node."""

    authority_sha256: str
    secret: str


def read_join_token(text: str) -> JoinToken:
    """Raises EnrolmentFault; the text of it does not repeat the token."""
    authority, _, secret = text.strip().partition(".")
    if not re.fullmatch(r"[0-9a-fA-F]{64}", authority) or secret.count(".") != 2 or not secret.isascii():
        raise EnrolmentFault("token: should be <64 hexadecimal digits>.<three parts with dots between>")
    return JoinToken(authority.lower(), secret)


def split_server(server: str) -> tuple[str, int]:
    """Host and port of `https://HOST:PORT`. Raises EnrolmentFault."""
    match = _SERVER.fullmatch(server.rstrip("/"))
    if not match or not 0 < int(match[2]) < 65536:
        told = "" if "@" in server else f" {server!r}"  # a password may be in it
        raise EnrolmentFault(f"enrol{told}: should be https://HOST:PORT")
    return match[1], int(match[2])


def hub_beside(server: str) -> str:
    """Where the hub of an enrolment `https://HOST:PORT` is when nobody says. Raises EnrolmentFault."""
    return f"wss://{split_server(server)[0]}:{_HUB_PORT}"


def signing_request(node_id: str, key: ec.EllipticCurvePrivateKey) -> bytes:
    """The node's signing request in DER form."""
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "system:nodes"),
            x509.NameAttribute(NameOID.COMMON_NAME, f"system:node:{node_id}"),
        ]
    )
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.DER)


class Enroller:
    """Gets certificates of the nodes whose files are in `folder`. Its calls block: run them in a thread. They
    raise EnrolmentFault, and StoredFault for files."""

    def __init__(self, server: str, folder: Path) -> None:
        self._host, self._port = split_server(server)
        self._folder = folder

    def enrol(self, node_id: str, token: JoinToken) -> x509.Certificate:
        """The first certificate of a node, by token."""
        files = NodeFiles(self._folder, node_id)
        # Trusted is what the token names, whoever answers.
        untrusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        untrusting.check_hostname = False
        untrusting.verify_mode = ssl.CERT_NONE
        authority = self._get("/ca.crt", untrusting)
        if not hmac.compare_digest(hashlib.sha256(authority).hexdigest(), token.authority_sha256):
            raise EnrolmentFault(
                f"the CA that https://{self._host}:{self._port} shows is not the one that the token names"
            )
        add_authority(self._folder, _certificate(authority))
        return self._next(files, self._trusting(), {"Authorization": f"Bearer {token.secret}"})

    def renew(self, node_id: str) -> x509.Certificate:
        """The next certificate, by the present one; the hub's next CA is trusted from then on, too."""
        files = NodeFiles(self._folder, node_id)
        context = self._trusting()
        try:
            context.load_cert_chain(files.certificate, files.key)
        except (ssl.SSLError, OSError) as error:
            raise EnrolmentFault(f"{files.certificate} or {files.key} cannot be used: {error}") from error
        add_authority(self._folder, _certificate(self._get("/ca.crt", context)))
        return self._next(files, context, {})

    def _trusting(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # The hub's CA may be another one's.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        try:
            context.load_verify_locations(self._folder / "ca.crt")
        except (ssl.SSLError, OSError) as error:
            raise EnrolmentFault(f"{self._folder / 'ca.crt'} cannot be used: {error}") from error
        return context

    def _next(
        self, files: NodeFiles, context: ssl.SSLContext, headers: Mapping[str, str]
    ) -> x509.Certificate:
        key = files.next_key()
        answer = self._get(
            "/edge.crt",
            context,
            {"NodeName": files.node_id, "Content-Type": "application/pkcs10", **headers},
            signing_request(files.node_id, key),
        )
        certificate = _certificate(answer)
        if certificate.public_key() != key.public_key():
            raise EnrolmentFault("the hub answered with a certificate of another key")
        if not any(_issued_by(certificate, one) for one in read_authorities(self._folder)):
            raise EnrolmentFault("the hub answered with a certificate of another CA than its own")
        files.install(certificate)
        return certificate

    def _get(
        self, path: str, context: ssl.SSLContext, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> bytes:
        connection = http.client.HTTPSConnection(
            self._host.strip("[]"), self._port, timeout=REQUEST_SECONDS, context=context
        )
        try:
            connection.request("GET", path, body or None, dict(headers or {}))
            response = connection.getresponse()
            data = response.read(_MOST_ANSWER_BYTES)
        except (OSError, http.client.HTTPException) as error:
            where = f"https://{self._host}:{self._port}{path}"
            refused = says_certificate_refused(error)
            raise EnrolmentFault(f"{where}: {error}", passing=not refused, unproven=refused) from error
        finally:
            connection.close()
        if response.status == http.client.OK:
            return data
        detail = data[:300].decode(errors="replace").strip()
        after = response.getheader("Retry-After") or ""
        raise EnrolmentFault(
            f"the hub refuses ({response.status}): {detail}",
            passing=response.status in _TRY_LATER,
            retry_after_seconds=float(after[:6]) if after.isdecimal() else 0.0,
            unproven=response.status in UNPROVEN,
            answered=True,
        )


def _certificate(data: bytes) -> x509.Certificate:
    try:
        return x509.load_der_x509_certificate(data)
    except (ValueError, x509.InvalidVersion) as error:
        raise EnrolmentFault("the hub answered with something that is no certificate") from error


def _issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True
