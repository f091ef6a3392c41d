"""The plan of days: `soak.day`."""

from soak.day import HOURS, What, days


def test_a_day_goes_by_the_clock_and_ends_all_that_it_begins() -> None:
    events = [event for _, event in days(1)]
    hours = [event.hour for event in events]
    assert hours == sorted(hours)
    assert all(0 <= hour < HOURS for hour in hours)
    updating = 0
    for event in events:
        updating += {What.UPDATE: 1, What.CALM: -1}.get(event.what, 0)
        assert updating in (0, 1)
    assert updating == 0
    assert [event.what for event in events if event.what in (What.LEAVE, What.RETURN)] == [
        What.LEAVE,
        What.RETURN,
    ]


def test_every_service_restarts_on_every_second_day() -> None:
    restarts = [
        [event.service for day, event in days(4) if day == number and event.service] for number in range(4)
    ]
    assert restarts == [[], ["connector", "dispatcher", "sessions"]] * 2
