"""Who is at the other end of each connection of a gRPC server with TLS, and what is said against those whose
certificate proves nothing, or lets its owner call nothing. Pure, but for the look at the certificate, which
knows the present time."""

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from services.runtime.client_certificate import check_chain
from services.runtime.errors import Forbidden, HubError, Unauthenticated
from services.runtime.rate_limit import network_of
from services.runtime.roles import Identity, Role, identity_of
from services.runtime.tls_faults import TlsFault

_MOST_NAME_CHARACTERS = 200
_REASONS = {"certificate_purpose": "CERTIFICATE_NOT_FOR_CLIENTS"}
REASONS = (
    "CERTIFICATE_MISSING",
    "CERTIFICATE_UNTRUSTED",
    "CERTIFICATE_EXPIRED",
    "CERTIFICATE_NOT_YET_VALID",
    "CERTIFICATE_NOT_FOR_CLIENTS",
    "CERTIFICATE_WEAK_KEY",
    "CERTIFICATE_INVALID",
    "CERTIFICATE_REVOKED",
)
"""What can be said against a certificate."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is at the other end of a connection, as far as TLS knows."""

    address: str
    """As gRPC writes it: `ipv4:192.0.2.1:4711`."""
    identity: Identity | None
    """Proven, unless there is a `refusal` that is Unauthenticated: then it is what was shown, if that could
    be read."""
    issuer: str
    refusal: HubError | None

    @property
    def network(self) -> str:
        """Whose limits the address is under."""
        return network_of(self.address.partition(":")[2].rpartition(":")[0].strip("[]"))


def judge(
    address: str,
    shown: Sequence[x509.Certificate] | TlsFault,
    trusted: crypto.X509Store,
    authorities: Sequence[str],
    revoked: Callable[[Identity], HubError | None],
) -> Caller:
    """Who showed these certificates, and whether that is proven. `authorities` are the names of the CAs in
    `trusted`, for people; `revoked` says what is on record against a certificate."""
    identity, issuer = None, ""
    try:
        if isinstance(shown, TlsFault):
            raise shown
        if shown:
            identity, issuer = _read(shown[0])
        check_chain(shown, trusted)
    except TlsFault as fault:
        return Caller(address, identity, issuer, _refusal(fault, shown, identity, issuer, authorities))
    refusal = None if identity is None else revoked(identity) or without_role(identity)
    return Caller(address, identity, issuer, refusal)


def without_role(identity: Identity) -> Forbidden | None:
    """What is said against a certificate that may call nothing, whatever it is that is called."""
    if Role.EDGE in identity.roles:
        return Forbidden(
            "ROLE_FORBIDDEN",
            f"the certificate of {printable(identity.name)} is an edge's, which may call nothing by gRPC",
            role=Role.EDGE.name.lower(),
        )
    if identity.roles:
        return None
    return Forbidden(
        "CERTIFICATE_WITHOUT_ROLE",
        f"the certificate of {printable(identity.name)} has no role: its organisation should be one of "
        + ", ".join(role.value for role in Role if role is not Role.EDGE),
    )


def _read(certificate: x509.Certificate) -> tuple[Identity, str]:
    try:
        return identity_of(certificate.public_bytes(Encoding.PEM)), _name(certificate.issuer)
    except ValueError as error:
        raise TlsFault("certificate_invalid", f"its names cannot be read: {error}") from None


def _refusal(
    fault: TlsFault,
    shown: Sequence[x509.Certificate] | TlsFault,
    identity: Identity | None,
    issuer: str,
    authorities: Sequence[str],
) -> Unauthenticated:
    reason = _REASONS.get(fault.reason, fault.reason.upper())
    return Unauthenticated(
        reason if reason in REASONS else "CERTIFICATE_INVALID",
        _sentence(fault, shown, identity, issuer, " or ".join(authorities)),
    )


def _sentence(
    fault: TlsFault,
    shown: Sequence[x509.Certificate] | TlsFault,
    identity: Identity | None,
    issuer: str,
    authorities: str,
) -> str:
    if isinstance(shown, TlsFault) or identity is None:
        if fault.reason == "certificate_missing":
            return f"the client showed no certificate; it needs one that {authorities} issued"
        return f"the client's certificate is not taken: {fault.detail}"
    own = shown[0]
    what = f"the client's certificate ({printable(identity.name)})"
    if fault.reason == "certificate_untrusted":
        return f"{what} was issued by {issuer}, which is not trusted here: it should be by {authorities}"
    if fault.reason == "certificate_expired":
        until = f"{own.not_valid_after_utc:%Y-%m-%d %H:%M} UTC"
        return f"{what} has expired, or one above it: it was valid until {until}"
    if fault.reason == "certificate_not_yet_valid":
        since = f"{own.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return f"{what} is not valid yet, or one above it: it is from {since} on; the clocks may differ"
    if fault.reason == "certificate_purpose":
        return (
            f"{what} is not for clients: its extended key usage should have clientAuth, "
            "its key usage digitalSignature"
        )
    if fault.reason == "certificate_weak_key":
        return f"{what} is too weak: {fault.detail}; RSA keys should have 2048 bits, signatures SHA-256"
    return f"{what} is not taken: {fault.detail}"


def _name(name: x509.Name) -> str:
    return printable(name.rfc4514_string())


def printable(text: str) -> str:
    """What a stranger says of himself, short and on one line."""
    kept = text[:_MOST_NAME_CHARACTERS]
    return "".join(one if one.isprintable() else "?" for one in kept)


# gRPC's core has connections of the front that ends TLS before it alone; each is named after who made it.


def address_of(host: str, port: int) -> str:
    """A client's address as gRPC writes it."""
    # Of a socket for both families, clients of IPv4 have mapped addresses.
    address = ipaddress.ip_address(host.partition("%")[0])
    plain = getattr(address, "ipv4_mapped", None) or address
    return f"ipv4:{plain}:{port}" if plain.version == 4 else f"ipv6:[{plain}]:{port}"


def connection_name(number: int, address: str) -> str:
    """What the socket is called that carries a client's bytes: unique by its number."""
    return f"{number}@{address}"


def client_address(peer: str) -> str:
    """Where a client is, of what gRPC calls the peer of a call (unquoted)."""
    return peer.rpartition("@")[2] if peer.startswith("unix:") else peer


class Callers:
    """Who is on which connection of one server."""

    def __init__(self) -> None:
        self._callers: dict[str, Caller] = {}

    def __len__(self) -> int:
        return len(self._callers)

    def add(self, name: str, caller: Caller) -> None:
        """Before gRPC can see the connection of that name."""
        self._callers[name] = caller

    def remove(self, name: str) -> None:
        """When the connection is closed."""
        self._callers.pop(name, None)

    def at(self, peer: str) -> Caller | None:
        """Who makes a call, by what gRPC calls its peer (unquoted); None if the connection is gone."""
        return self._callers.get(peer.rpartition("/")[2])
