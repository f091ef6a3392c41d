"""When certificates are renewed, and what a join token looks like: `edge.renewal`, `edge.enrolment`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.enrolment import EnrolmentFault, JoinToken, read_join_token, split_server
from edge.renewal import Schedule, Validity

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


DAY = 86_400.0


def test_a_node_asks_when_its_certificate_is_due_or_refused() -> None:
    schedule = Schedule(Validity(0.0, 90 * DAY))
    assert schedule.wait(0.0, 5.0) == 60 * DAY
    schedule.refuse()
    assert schedule.wait(0.0, 5.0) <= 0


def test_refusals_are_answered_by_patience_however_often_links_are_refused() -> None:
    schedule, uptime, delays = Schedule(Validity(0.0, 90 * DAY)), 100.0, []
    for _ in range(9):
        delays.append(schedule.failed(0.0, uptime, 1.0, unproven=True))
        for _ in range(3):
            schedule.refuse()
        assert schedule.wait(0.0, uptime) == delays[-1]
        uptime += delays[-1]
        assert schedule.wait(0.0, uptime) <= 0
    assert delays == [30.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 3600.0, 3600.0]


def test_a_hub_that_is_away_is_asked_soon_by_a_node_that_has_no_good_certificate() -> None:
    expired, good = Schedule(Validity(0.0, DAY)), Schedule(Validity(0.0, DAY))
    assert [expired.failed(DAY, 0.0, 1.0, unproven=False) for _ in range(8)] == [
        *(0.5, 1, 2, 4, 8, 16, 30, 30)
    ]
    assert expired.failed(DAY, 0.0, 0.0, unproven=False, retry_after_seconds=50.0) == 50.0
    assert good.failed(0.0, 0.0, 0.0, unproven=False) > 1000
    # What could wait cannot wait any more.
    good.refuse()
    assert good.wait(0.0, 0.0) <= 0


def test_a_node_whose_certificates_are_not_why_it_is_refused_renews_seldom() -> None:
    schedule = Schedule(Validity(0.0, 90 * DAY))
    schedule.refuse()
    schedule.renewed(Validity(0.0, 90 * DAY), 0.0, 7.0)
    schedule.refuse()
    assert schedule.wait(0.0, 7.0) == 3600.0


def test_a_clock_that_steps_makes_no_node_ask_without_a_pause() -> None:
    """Years ahead every certificate seems to have expired; a new one is kept for its time all the same."""
    schedule, ahead = Schedule(Validity(0.0, 90 * DAY)), 3650 * DAY
    assert schedule.wait(ahead, 0.0) <= 0
    schedule.renewed(Validity(0.0, 90 * DAY), ahead, 0.0)
    assert schedule.wait(ahead, 0.0) == 60 * DAY
    # Set right, it goes by the clock again.
    assert schedule.wait(80 * DAY, 60 * DAY) <= 0


@given(st.lists(st.tuples(st.floats(0, 1e10), st.sampled_from(["refuse", "renewed", "failed", "unproven"]))))
def test_between_two_attempts_there_is_a_pause_whatever_happens(steps: list[tuple[float, str]]) -> None:
    schedule, uptime = Schedule(Validity(0.0, 4.0)), 0.0
    for now, step in steps:
        uptime += max(0.0, min(schedule.wait(now, uptime), 1e6))
        if step == "refuse":
            schedule.refuse()
        elif step == "renewed":
            schedule.renewed(Validity(now, now + 4.0), now, uptime)
            assert schedule.wait(now, uptime) > 0.9
        else:
            schedule.failed(now, uptime, 0.0, unproven=step == "unproven")
            assert schedule.wait(now, uptime) > 0.2
