"""Join tokens: their form, and when one lets a node in. Pure: key, secret and time are arguments.

A join token is `<hex SHA-256 of the CA's DER>.<JWT>` (docs/enrolment.md). The JWT is signed HS256 and carries
`exp`, the token's id (`jti`) and a secret that is kept nowhere: a copy of the database makes no token.
"""

import hashlib
from fnmatch import fnmatchcase

import jwt

from services.sessions.enrolment.records import JoinToken, Refusal, RefusalReason

_ALGORITHM = "HS256"
TOKEN_UNKNOWN = Refusal(
    RefusalReason.TOKEN_FOREIGN, "the token is none of this hub, or has been gone for long"
)
MOST_TOKEN_CHARS = 1024


def make_jwt(key: bytes, token_id: str, secret: str, expires_at_ms: int) -> str:
    """The part of a join token that the node shows to the hub."""
    claims = {"exp": expires_at_ms // 1000, "jti": token_id, "secret": secret}
    return jwt.encode(claims, key, _ALGORITHM)


def digest_of(token: str) -> str:
    """What is kept of a JWT."""
    return hashlib.sha256(token.encode()).hexdigest()


def read_token_id(token: str, key: bytes) -> str | Refusal:
    """The id of a token that this hub signed. Its time is looked at by `refusal_of`."""
    if len(token) > MOST_TOKEN_CHARS:
        return Refusal(
            RefusalReason.TOKEN_MALFORMED,
            f"a token has at most {MOST_TOKEN_CHARS} characters, this has {len(token)}",
        )
    try:
        claims = jwt.decode(
            token, key, [_ALGORITHM], options={"require": ["exp", "jti"], "verify_exp": False}
        )
    except (jwt.InvalidSignatureError, jwt.InvalidAlgorithmError):
        return Refusal(RefusalReason.TOKEN_FOREIGN, "the token was not signed by this hub")
    except jwt.InvalidTokenError:
        return Refusal(RefusalReason.TOKEN_MALFORMED, "the token is no join token of a hub")
    return str(claims["jti"])


def matches(pattern: str, node_id: str) -> bool:
    """Whether a token of this pattern is for the node."""
    return fnmatchcase(node_id, pattern)


def refusal_of(
    found: JoinToken | None,
    digest: str,
    node_id: str,
    now_ms: int,
    *,
    repeated: bool,
    revoked_at_ms: int | None,
) -> Refusal | None:
    """Why the token on record does not let the node in; None if it does.

    `repeated`: the node has a certificate by this token for the same key; the answer may have been lost, so
    it needs no further use. `revoked_at_ms`: when the node was revoked.
    """
    if found is None or found.digest != digest:
        return TOKEN_UNKNOWN
    scope = found.scope
    if scope.expires_at_ms <= now_ms:
        return Refusal(RefusalReason.TOKEN_EXPIRED, "the token has expired")
    if found.revoked:
        return Refusal(RefusalReason.TOKEN_REVOKED, "the token was revoked")
    if not matches(scope.node_pattern, node_id):
        return Refusal(RefusalReason.TOKEN_OF_OTHERS, f"the token is not for node {node_id}")
    if revoked_at_ms is not None and scope.created_at_ms < revoked_at_ms:
        return Refusal(
            RefusalReason.NODE_REVOKED,
            f"node {node_id} was revoked after the token was made; it needs a new one",
        )
    if not found.uses_left and not repeated:
        return Refusal(RefusalReason.TOKEN_USED_UP, "the token was used as often as it may be")
    return None
