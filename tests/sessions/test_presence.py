"""Silence of the hub's processes: `services.sessions.presence`."""

from services.sessions.presence import Presence, Sign


def test_a_process_is_silent_since_it_was_last_heard_of() -> None:
    presence = Presence(5.0)
    for now, heard in ((100.0, 1), (101.0, 2), (102.0, 2), (103.0, 2)):
        presence.look([Sign("d1", heard)], now)
    assert presence.silent_seconds(Sign("d1", 2), 103.5) == 2.5


def test_a_process_that_was_heard_of_after_the_last_look_is_not_silent() -> None:
    presence = Presence(5.0)
    presence.look([Sign("d1", 1)], 100.0)
    assert presence.silent_seconds(Sign("d1", 2), 104.0) == 0.0


def test_time_in_which_nobody_looked_is_not_silence() -> None:
    """C36: after a pause of the one who looks, every silence begins anew."""
    presence = Presence(5.0)
    presence.look([Sign("d1", 1)], 100.0)
    assert presence.look([Sign("d1", 1)], 3700.0) == [(Sign("d1", 1), 0.0)]


def test_what_is_gone_is_forgotten() -> None:
    """C2."""
    presence = Presence(5.0)
    for number in range(1000):
        presence.look([Sign(f"d{number}", 1)], 100.0)
    assert len(presence._since) == 1
