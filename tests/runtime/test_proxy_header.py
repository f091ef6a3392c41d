"""PROXY headers of load balancers: `services.runtime.proxy_header`."""

from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.runtime.proxy_header import (
    FIXED_BYTES,
    MAX_REST_BYTES,
    SIGNATURE,
    HeaderFault,
    ProxyHeader,
    begins_with_header,
    is_among,
    networks_of,
    read_header,
)

_addresses = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
_ports = st.integers(0, 65535)


def header(
    source: IPv4Address | IPv6Address,
    port: int,
    *,
    version: int = 2,
    command: int = 1,
    transport: int = 1,
    tlvs: bytes = b"",
) -> bytes:
    """As a balancer writes it; the destination is of no interest."""
    rest = source.packed * 2 + port.to_bytes(2, "big") + (10000).to_bytes(2, "big") + tlvs
    family = 1 if source.version == 4 else 2
    fixed = (
        SIGNATURE + bytes([version << 4 | command, family << 4 | transport]) + len(rest).to_bytes(2, "big")
    )
    return fixed + rest


@settings(deadline=None)
@given(_addresses, _ports, st.binary(max_size=200), st.binary(max_size=600))
def test_a_header_tells_address_and_port_and_where_it_ends(
    source: IPv4Address | IPv6Address, port: int, tlvs: bytes, after: bytes
) -> None:
    whole = header(source, port, tlvs=tlvs)
    assert read_header(whole + after) == ProxyHeader(len(whole), (str(source), port))


@settings(deadline=None)
@given(_addresses, _ports, st.binary(max_size=60), st.data())
def test_of_a_part_it_says_how_much_is_wanted(
    source: IPv4Address | IPv6Address, port: int, tlvs: bytes, data: st.DataObject
) -> None:
    """Never less than there is, never more than the header has: whoever waits for it gets on."""
    whole = header(source, port, tlvs=tlvs)
    part = whole[: data.draw(st.integers(0, len(whole) - 1))]
    wanted = read_header(part)
    assert wanted == (FIXED_BYTES if len(part) < FIXED_BYTES else len(whole))


@settings(deadline=None)
@given(st.binary(max_size=FIXED_BYTES + 60), st.booleans())
def test_whatever_comes_is_read_or_refused(content: bytes, signed: bool) -> None:
    data = SIGNATURE + content if signed else content
    try:
        found = read_header(data)
    except HeaderFault:
        return
    if isinstance(found, int):
        assert len(data) < found <= FIXED_BYTES + MAX_REST_BYTES
    else:
        assert FIXED_BYTES <= found.size <= len(data)


def test_a_header_is_bounded() -> None:
    fixed = SIGNATURE + b"\x21\x11"
    assert read_header(fixed + MAX_REST_BYTES.to_bytes(2, "big")) == FIXED_BYTES + MAX_REST_BYTES
    with pytest.raises(HeaderFault, match="has 2049 bytes behind its beginning; 2048 are taken"):
        read_header(fixed + (MAX_REST_BYTES + 1).to_bytes(2, "big"))


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"\x16\x03\x01\x02\x00\x01", "begins with no PROXY header"),
        (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", "of version 1: let the balancer send version 2"),
        (header(IPv4Address("192.0.2.1"), 1, version=1), "of version 1, which should be 2"),
        (header(IPv4Address("192.0.2.1"), 1, command=2), "the command of its PROXY header is 2"),
        (SIGNATURE + b"\x21\x11\x00\x04\x00\x00\x00\x00", "has 4 bytes, too few for its addresses"),
        (SIGNATURE + b"\x21\x21\x00\x0c" + bytes(12), "has 12 bytes, too few for its addresses"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, told: str) -> None:
    with pytest.raises(HeaderFault, match=told):
        read_header(data)


def test_some_connections_speak_for_themselves() -> None:
    """A balancer's own (LOCAL), of no family, of a datagram, of a socket of Unix."""
    source = IPv4Address("192.0.2.1")
    for data in (
        header(source, 1, command=0),
        SIGNATURE + b"\x20\x00\x00\x00",
        SIGNATURE + b"\x21\x00\x00\x00",
        header(source, 1, transport=2),
        SIGNATURE + b"\x21\x31\x00\xd8" + bytes(216),
    ):
        assert read_header(data) == ProxyHeader(len(data), None)


def test_both_versions_are_seen_where_none_is_expected() -> None:
    assert begins_with_header(SIGNATURE)
    assert begins_with_header(b"PROXY TCP4 ")
    assert not begins_with_header(b"\x16\x03\x01")
    assert not begins_with_header(SIGNATURE[:4])


def test_networks_are_read_and_compared() -> None:
    networks = networks_of("10.0.0.0/8, 2001:db8::/32,192.0.2.7")
    for host in ("10.1.2.3", "::ffff:10.1.2.3", "2001:db8::1", "192.0.2.7"):
        assert is_among(host, networks)
    for host in ("11.0.0.1", "2001:db9::1", "192.0.2.8", "fe80::1%eth0"):
        assert not is_among(host, networks)
    assert networks_of("") == ()
    for wrong in ("10.0.0.1/8", "balancer", "10.0.0.0/33"):
        with pytest.raises(ValueError, match="should be networks as in"):
            networks_of(wrong)
