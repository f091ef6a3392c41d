"""What goes into the transactions of enrolment and what comes out of them. Pure values."""

from dataclasses import dataclass
from enum import IntEnum


class RefusalReason(IntEnum):
    """Why a node gets no certificate; the numbers are those of `EnrolmentRefusalReason`."""

    TOKEN_MALFORMED = 1
    TOKEN_FOREIGN = 2
    TOKEN_EXPIRED = 3
    TOKEN_REVOKED = 4
    TOKEN_USED_UP = 5
    TOKEN_OF_OTHERS = 6
    NODE_REVOKED = 7
    NODE_TOO_OFTEN = 8


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why, for programs and for people."""

    reason: RefusalReason
    detail: str


@dataclass(frozen=True, slots=True)
class TokenScope:
    """Whom a token lets in, how often, until when."""

    node_pattern: str
    project_id: str
    uses: int
    created_at_ms: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token on record. `digest` is the hexadecimal SHA-256 of its JWT, which nobody keeps."""

    token_id: str
    digest: str
    scope: TokenScope
    uses_left: int
    revoked: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """A certificate that is about to be signed. `key_sha256` in hexadecimal."""

    node_id: str
    serial: str
    not_before_ms: int
    not_after_ms: int
    key_sha256: str
    peer_address: str


@dataclass(frozen=True, slots=True)
class RevokedNode:
    """A node whose certificates of up to then are refused; with `enrolled_since` it has one that is not."""

    node_id: str
    revoked_at_ms: int
    enrolled_since: bool


@dataclass(frozen=True, slots=True)
class Certificate:
    """One on record; `token_id` is empty if the certificate before it was shown for it."""

    node_id: str
    serial: str
    not_before_ms: int
    not_after_ms: int
    issued_at_ms: int
    token_id: str
    peer_address: str
    revoked: bool
