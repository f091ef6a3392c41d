"""Tokens by which a peer proves that it hears what is sent to its address (RFC 9000, 8.1.2). Pure.

The hub keeps nothing between a retry and its token's return. That the token says when it was made tells the
connection how long a round trip to this peer takes before its first packet, which aioquic's tokens do not:
over a wire on which packets wait for seconds the hub then sends no copies of a handshake that only waits.
"""

import ipaddress
import os
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.connector.quic.host import Address

LIFETIME_SECONDS = 30.0
"""A peer sends its token back at once: RFC 9000, 8.1.4 wants it to be worthless soon."""
MAX_USED = 65_536
"""Tokens of which it is known that they were used: two thousand connections a second."""
_KEY_BITS = 128
_NONCE_BYTES = 12
_TIME_BYTES = 8


@dataclass(frozen=True, slots=True)
class RetryProof:
    """What a token that came back says."""

    original_id: bytes
    """The connection id that the peer chose for its very first packet."""
    round_trip: float
    """Seconds since the retry was made. The peer's own copies, where packets are lost, make it longer."""


class RetryTokens:
    """Tokens under a key of this process; one that was made before a restart is worth nothing."""

    def __init__(self) -> None:
        self._cipher = AESGCM(AESGCM.generate_key(_KEY_BITS))

    def token(self, address: Address, original_id: bytes, retry_id: bytes, now: float) -> bytes:
        """For a peer at that address, which has to send it to the connection id `retry_id`."""
        nonce = os.urandom(_NONCE_BYTES)
        said = int(now * 1000).to_bytes(_TIME_BYTES, "big") + original_id
        return nonce + self._cipher.encrypt(nonce, said, _bound_to(address, retry_id))

    def proof(self, address: Address, retry_id: bytes, token: bytes, now: float) -> RetryProof | None:
        """None if the token is not of this process, for another address or connection id, or too old."""
        nonce, sealed = token[:_NONCE_BYTES], token[_NONCE_BYTES:]
        if len(nonce) < _NONCE_BYTES:
            return None
        try:
            said = self._cipher.decrypt(nonce, sealed, _bound_to(address, retry_id))
        except InvalidTag:
            return None
        since = now - int.from_bytes(said[:_TIME_BYTES], "big") / 1000
        return RetryProof(said[_TIME_BYTES:], max(0.0, since)) if since <= LIFETIME_SECONDS else None


class UsedTokens:
    """Tokens that have opened a connection, by the connection id that each is bound to; none opens a second
    one. Of more than `max_tokens` within their lifetime the oldest is forgotten, and good again."""

    def __init__(self, max_tokens: int = MAX_USED) -> None:
        self._max_tokens = max_tokens
        self._used_at: dict[bytes, float] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._used_at)

    def knows(self, retry_id: bytes, now: float) -> bool:
        """Whether the token of that connection id was used."""
        self._forget(now)
        return retry_id in self._used_at

    def add(self, retry_id: bytes, now: float) -> None:
        """It opens a connection now."""
        self._used_at[retry_id] = now
        self._forget(now)

    def _forget(self, now: float) -> None:
        while self._used_at:
            oldest, used_at = next(iter(self._used_at.items()))
            # A token is older than its use.
            if now - used_at <= LIFETIME_SECONDS and len(self._used_at) <= self._max_tokens:
                return
            del self._used_at[oldest]


def _bound_to(address: Address, retry_id: bytes) -> bytes:
    host, port = address[0].partition("%")[0], address[1]
    packed: bytes = ipaddress.ip_address(host).packed
    return packed + int(port).to_bytes(2, "big") + retry_id
