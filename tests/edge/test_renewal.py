"""When certificates are renewed, and what a join token looks like: `edge.renewal`, `edge.enrolment`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.enrolment import EnrolmentFault, JoinToken, read_join_token, split_server
from edge.renewal import Validity

HASH = "0123456789abcdef" * 4


def test_a_join_token_is_a_hash_and_a_jwt() -> None:
    assert read_join_token(f" {HASH.upper()}.a.b.c\n") == JoinToken(HASH, "a.b.c")


@pytest.mark.parametrize("text", ["", "x", HASH, f"{HASH}.a.b", f"{HASH}.a.b.c.d", f"{HASH[1:]}.a.b.secret"])
def test_another_text_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(EnrolmentFault, match="token: should be") as refused:
        read_join_token(text)
    assert "secret" not in str(refused.value)


def test_a_server_is_https_with_a_port() -> None:
    assert split_server("https://hub.example:10002/") == ("hub.example", 10002)
    assert split_server("https://[::1]:1") == ("[::1]", 1)
    for wrong in (
        "hub:1",
        "http://hub:1",
        "https://hub",
        "https://hub:0",
        "https://hub:70000",
        "https://a b:1",
    ):
        with pytest.raises(EnrolmentFault, match="HOST:PORT"):
            split_server(wrong)


def test_a_certificate_is_renewed_after_two_thirds_of_its_time() -> None:
    validity = Validity(0.0, 90.0)
    assert validity.renewal_in(0.0) == 60.0
    assert validity.renewal_in(70.0) == -10.0


@given(st.floats(1.0, 1e9))
def test_failed_attempts_are_repeated_several_times_before_the_end(lifetime: float) -> None:
    validity, now, attempts = Validity(0.0, lifetime), lifetime * 2 / 3, 0
    while now < lifetime and attempts < 5:
        now += validity.retry_in(now)
        attempts += 1
    assert attempts >= 5 or lifetime < 30
    assert validity.retry_in(lifetime * 2) == 1.0
