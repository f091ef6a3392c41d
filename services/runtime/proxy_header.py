"""PROXY protocol, version 2 (haproxy.org, proxy-protocol.txt, 2.2): a balancer says before the first byte of
a connection from where it comes. Pure.

Version 1, a line of text, is not taken. What follows the addresses (TLVs) is skipped.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
FIXED_BYTES = 16
"""Signature, version and command, family, length of the rest."""
MAX_REST_BYTES = 2048
"""Of addresses and what follows them; addresses are 36 bytes, balancers of clouds send some hundred."""

_VERSION_1 = b"PROXY "
_LOCAL, _PROXY = 0, 1
_STREAM = 1
_IPV4, _IPV6 = 1, 2
_ADDRESS_BYTES = {_IPV4: 4, _IPV6: 16}

Network = IPv4Network | IPv6Network


class HeaderFault(Exception):
    """What a connection begins with is no header that is taken; the text says why."""


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """A whole header of `size` bytes. `origin`: host and port that it tells; None where the connection speaks
    for itself (the balancer's own, or of a family that is not known here)."""

    size: int
    origin: tuple[str, int] | None


def read_header(data: bytes) -> ProxyHeader | int:
    """The header that a connection begins with, or how many bytes are wanted to go on. Raises HeaderFault."""
    if not SIGNATURE.startswith(data[: len(SIGNATURE)]):
        if data.startswith(_VERSION_1):
            raise HeaderFault("it begins with a PROXY header of version 1: let the balancer send version 2")
        raise HeaderFault(
            "it begins with no PROXY header, which the networks in --proxy-networks have to send"
        )
    if len(data) < FIXED_BYTES:
        return FIXED_BYTES
    version, command = data[12] >> 4, data[12] & 15
    if version != 2:
        raise HeaderFault(f"it begins with a PROXY header of version {version}, which should be 2")
    if command not in (_LOCAL, _PROXY):
        raise HeaderFault(f"the command of its PROXY header is {command}, which should be 0 or 1")
    rest_bytes = int.from_bytes(data[14:16], "big")
    if rest_bytes > MAX_REST_BYTES:
        raise HeaderFault(
            f"its PROXY header has {rest_bytes} bytes behind its beginning; {MAX_REST_BYTES} are taken"
        )
    size = FIXED_BYTES + rest_bytes
    if len(data) < size:
        return size
    if command == _LOCAL:
        return ProxyHeader(size, None)
    return ProxyHeader(size, _origin(data[13] >> 4, data[13] & 15, data[FIXED_BYTES:size]))


def _origin(family: int, transport: int, rest: bytes) -> tuple[str, int] | None:
    length = _ADDRESS_BYTES.get(family)
    if length is None or transport != _STREAM:
        return None
    if len(rest) < 2 * length + 4:
        raise HeaderFault(f"its PROXY header has {len(rest)} bytes, too few for its addresses")
    port = int.from_bytes(rest[2 * length : 2 * length + 2], "big")
    return str(ip_address(rest[:length])), port


def begins_with_header(data: bytes) -> bool:
    """Whether a connection sends a header of either version."""
    return data.startswith((SIGNATURE, _VERSION_1))


def networks_of(text: str) -> tuple[Network, ...]:
    """`10.0.0.0/8,2001:db8::/32`; empty: none. Raises ValueError with one sentence."""
    found = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ip_network(part))
        except ValueError:
            raise ValueError(
                "should be networks as in 10.0.0.0/8,2001:db8::/32, with zeros behind their length"
            ) from None
    return tuple(found)


def is_among(host: str, networks: Sequence[Network]) -> bool:
    """Whether an address is of one of the networks; IPv4 in the form of IPv6 counts as IPv4."""
    address: IPv4Address | IPv6Address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    return any(address in network for network in networks)
