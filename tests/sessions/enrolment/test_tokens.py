"""The form of join tokens, and whom they let in: `services.sessions.enrolment.tokens`."""

from dataclasses import replace

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.sessions.enrolment.records import JoinToken, Refusal, RefusalReason, TokenScope
from services.sessions.enrolment.tokens import digest_of, make_jwt, matches, read_token_id, refusal_of

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
NOW = 1_700_000_000_000
SCOPE = TokenScope("edge-*", "", 2, NOW - 1000, NOW + 60_000)
TOKEN = make_jwt(KEY, "id-1", "secret", SCOPE.expires_at_ms)
KEPT = JoinToken("id-1", digest_of(TOKEN), SCOPE, 2)


def reason_of(found: object) -> RefusalReason | None:
    return found.reason if isinstance(found, Refusal) else None


def decide(
    found: JoinToken | None = KEPT,
    node_id: str = "edge-1",
    now_ms: int = NOW,
    *,
    repeated: bool = False,
    revoked_at_ms: int | None = None,
) -> RefusalReason | None:
    return reason_of(
        refusal_of(found, digest_of(TOKEN), node_id, now_ms, repeated=repeated, revoked_at_ms=revoked_at_ms)
    )


def test_a_token_tells_its_id_to_the_hub_that_signed_it() -> None:
    assert read_token_id(TOKEN, KEY) == "id-1"


def test_what_is_kept_of_a_token_does_not_make_it() -> None:
    """Key, id and expiry stand in the database; the secret does not."""
    assert make_jwt(KEY, "id-1", "guessed", SCOPE.expires_at_ms) != TOKEN
    assert "secret" not in repr(KEPT)


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        ("", RefusalReason.TOKEN_MALFORMED),
        ("a.b", RefusalReason.TOKEN_MALFORMED),
        ("a.b.c", RefusalReason.TOKEN_MALFORMED),
        (TOKEN.rpartition(".")[0] + "." + "A" * 43, RefusalReason.TOKEN_FOREIGN),
        ("x" * 2000, RefusalReason.TOKEN_MALFORMED),
        (make_jwt(OTHER_KEY, "id-1", "secret", SCOPE.expires_at_ms), RefusalReason.TOKEN_FOREIGN),
        (jwt.encode({"exp": 1, "jti": "id-1"}, "", "none"), RefusalReason.TOKEN_FOREIGN),
        (jwt.encode({"exp": 1, "jti": "id-1"}, KEY * 2, "HS512"), RefusalReason.TOKEN_FOREIGN),
        (jwt.encode({"jti": "id-1"}, KEY, "HS256"), RefusalReason.TOKEN_MALFORMED),
        (jwt.encode({"exp": 1}, KEY, "HS256"), RefusalReason.TOKEN_MALFORMED),
    ],
)
def test_what_is_no_token_of_this_hub_is_refused_with_its_reason(token: str, reason: RefusalReason) -> None:
    assert reason_of(read_token_id(token, KEY)) is reason


@given(st.text(max_size=200) | st.binary(max_size=200).map(lambda data: data.decode("latin-1")))
def test_any_text_is_refused_and_nothing_worse(text: str) -> None:
    assert isinstance(read_token_id(text, KEY), Refusal)
    assert isinstance(read_token_id(TOKEN.rpartition(".")[0] + "." + text, KEY), Refusal)


def test_a_token_lets_the_nodes_of_its_pattern_in() -> None:
    assert decide() is None
    assert decide(node_id="edge-17.west") is None
    assert decide(node_id="gate-1") is RefusalReason.TOKEN_OF_OTHERS
    assert matches("*", "anything")
    assert matches("edge-?", "edge-1")
    assert not matches("edge-?", "edge-12")


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, RefusalReason.TOKEN_FOREIGN),
        (replace(KEPT, digest=digest_of("another")), RefusalReason.TOKEN_FOREIGN),
        (replace(KEPT, revoked=True), RefusalReason.TOKEN_REVOKED),
        (replace(KEPT, uses_left=0), RefusalReason.TOKEN_USED_UP),
        (replace(KEPT, scope=replace(SCOPE, expires_at_ms=NOW)), RefusalReason.TOKEN_EXPIRED),
    ],
)
def test_a_token_that_is_no_longer_good_is_refused(found: JoinToken | None, reason: RefusalReason) -> None:
    assert decide(found) is reason


def test_the_same_request_again_needs_no_further_use() -> None:
    """Its answer may have been lost; other reasons to refuse stay."""
    used_up = replace(KEPT, uses_left=0)
    assert decide(used_up, repeated=True) is None
    assert decide(replace(used_up, revoked=True), repeated=True) is RefusalReason.TOKEN_REVOKED


def test_a_revoked_node_needs_a_token_that_was_made_later() -> None:
    assert decide(revoked_at_ms=NOW) is RefusalReason.NODE_REVOKED
    assert decide(revoked_at_ms=SCOPE.created_at_ms) is None
