"""Tokens that prove an address."""

import pytest

from services.connector.quic.retry_tokens import LIFETIME_SECONDS, RetryTokens, UsedTokens

HERE = ("192.0.2.1", 4711)


@pytest.mark.parametrize("address", [HERE, ("2001:db8::1", 4711, 0, 0), ("fe80::1%eth0", 4711, 0, 2)])
def test_a_token_that_comes_back_says_what_it_was_made_for(address: tuple[object, ...]) -> None:
    tokens = RetryTokens()
    token = tokens.token(address, b"original", b"retry-id", 100.0)
    proof = tokens.proof(address, b"retry-id", token, 102.5)
    assert proof is not None
    assert (proof.original_id, proof.round_trip) == (b"original", 2.5)


def test_a_token_is_worth_nothing_for_anybody_else_anything_else_or_later() -> None:
    tokens = RetryTokens()
    token = tokens.token(HERE, b"original", b"retry-id", 100.0)
    assert tokens.proof(("192.0.2.2", 4711), b"retry-id", token, 100.0) is None
    assert tokens.proof(("192.0.2.1", 4712), b"retry-id", token, 100.0) is None
    assert tokens.proof(HERE, b"other-id", token, 100.0) is None
    assert RetryTokens().proof(HERE, b"retry-id", token, 100.0) is None
    assert tokens.proof(HERE, b"retry-id", token, 100.0 + LIFETIME_SECONDS) is not None
    assert tokens.proof(HERE, b"retry-id", token, 100.1 + LIFETIME_SECONDS) is None


def test_no_bytes_but_a_token_are_one() -> None:
    tokens = RetryTokens()
    token = tokens.token(HERE, b"original", b"retry-id", 100.0)
    for size in range(len(token)):
        assert tokens.proof(HERE, b"retry-id", token[:size], 100.0) is None
    for at in range(len(token)):
        flipped = token[:at] + bytes([token[at] ^ 1]) + token[at + 1 :]
        assert tokens.proof(HERE, b"retry-id", flipped, 100.0) is None


def test_a_token_that_opened_a_connection_is_known_while_it_lives() -> None:
    """C47: replayed, it opens no second one."""
    used = UsedTokens()
    assert not used.knows(b"retry-id", 100.0)
    used.add(b"retry-id", 100.0)
    assert used.knows(b"retry-id", 100.0 + LIFETIME_SECONDS)
    assert not used.knows(b"other-id", 100.0)
    assert not used.knows(b"retry-id", 100.1 + LIFETIME_SECONDS)
    assert len(used) == 0


def test_what_is_known_of_used_tokens_is_bounded() -> None:
    used = UsedTokens(max_tokens=3)
    for number in range(10):
        used.add(b"%d" % number, 100.0)
    assert len(used) == 3
    assert [used.knows(b"%d" % number, 100.0) for number in (6, 7, 9)] == [False, True, True]
