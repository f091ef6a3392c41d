"""Packets of no connection: what can be read of them, and answers for which nothing is kept. Pure."""

from dataclasses import dataclass

from aioquic._crypto import CryptoError
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import (
    QuicErrorCode,
    QuicFrameType,
    QuicHeader,
    QuicPacketType,
    encode_quic_version_negotiation,
)
from aioquic.quic.packet_builder import QuicPacketBuilder

_LONG_HEADER = 0x80
_VERSION_BYTES = 4
_CLOSE_TEXT = b"the token is not for this address and connection, or too old: begin without one"
_CLOSE_FRAME_BYTES = 4 * 8 + len(_CLOSE_TEXT)


@dataclass(frozen=True, slots=True)
class LongHeader:
    """What every version of QUIC says in a packet with a long header (RFC 8999, 5.1)."""

    version: int
    """0 in a version negotiation packet."""
    destination_id: bytes
    """Of up to 255 bytes; versions 1 and 2 have no more than 20."""
    source_id: bytes


def is_long(datagram: bytes) -> bool:
    """Whether the first packet has a long header."""
    return bool(datagram[0] & _LONG_HEADER)


def read_long_header(datagram: bytes) -> LongHeader | None:
    """None if the datagram is too short for what it says."""
    at = 1 + _VERSION_BYTES
    version = int.from_bytes(datagram[1:at], "big")
    ids: list[bytes] = []
    for _ in range(2):
        if at >= len(datagram):
            return None
        end = at + 1 + datagram[at]
        ids.append(datagram[at + 1 : end])
        at = end
    return LongHeader(version, *ids) if at <= len(datagram) else None


def version_negotiation(header: LongHeader, versions: list[int]) -> bytes:
    """Tells a peer of another version which ones there are."""
    return encode_quic_version_negotiation(
        source_cid=header.destination_id, destination_cid=header.source_id, supported_versions=versions
    )


def invalid_token_close(datagram: bytes, header: QuicHeader, packet_number_at: int) -> bytes | None:
    """The end of an opening whose Retry token is no good (RFC 9000, 8.1.2): its client takes no second Retry,
    and would wait. None if the packet is not what a client makes for that connection id."""
    assert header.version is not None
    keys = CryptoPair()
    keys.setup_initial(cid=header.destination_cid, is_client=False, version=header.version)
    try:
        keys.decrypt_packet(datagram[: header.packet_length], packet_number_at, 0)
    except CryptoError:
        return None
    builder = QuicPacketBuilder(
        host_cid=header.destination_cid,
        is_client=False,
        max_datagram_size=SMALLEST_MAX_DATAGRAM_SIZE,
        peer_cid=header.source_cid,
        version=header.version,
    )
    builder.start_packet(QuicPacketType.INITIAL, keys)
    frame = builder.start_frame(QuicFrameType.TRANSPORT_CLOSE, capacity=_CLOSE_FRAME_BYTES)
    frame.push_uint_var(QuicErrorCode.INVALID_TOKEN)
    frame.push_uint_var(QuicFrameType.PADDING)  # of no frame in particular
    frame.push_uint_var(len(_CLOSE_TEXT))
    frame.push_bytes(_CLOSE_TEXT)
    ((close,), _) = builder.flush()
    return bytes(close)
