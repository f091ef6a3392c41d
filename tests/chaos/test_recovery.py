"""When the hub counts as recovered."""

from chaos.recovery import Recovery, Vitals


def vitals(at: float, **other: int) -> Vitals:
    """All is well, and each of the two fleets has stored ten messages per second."""
    fields = {"links": 4, "sessions": 4, "pending": 3, **other}
    return Vitals(at=at, acknowledged=(int(at * 10), int(at * 10)), **fields)


def looked(*seen: Vitals) -> list[float | None]:
    recovery = Recovery(nodes=4, usual_pending=5)
    return [recovery.look(one) for one in seen]


def test_all_nodes_live_and_something_stored_since_is_recovered() -> None:
    assert looked(vitals(1.0), vitals(1.5)) == [None, 1.5]


def test_a_missing_link_or_session_is_waited_for() -> None:
    missing = (vitals(1.0, links=3), vitals(1.5, sessions=3), vitals(2.0, sessions=-1))
    assert looked(*missing, vitals(2.5), vitals(3.0)) == [None, None, None, None, 3.0]


def test_links_that_are_lost_again_start_it_over() -> None:
    assert looked(vitals(1.0), vitals(1.5, links=3), vitals(2.0), vitals(2.5)) == [None, None, None, 2.5]


def test_a_fleet_that_stores_nothing_has_not_recovered() -> None:
    """Also if the other one does."""
    stuck = [Vitals(at, 4, 4, (int(at), 7), 3) for at in (1.0, 2.0, 3.0)]
    assert looked(*stuck) == [None, None, None]


def test_a_backlog_has_to_fall() -> None:
    """Unless it is no more than usual; a hub that does not say how large it is has not recovered."""
    growing = [vitals(1.0, pending=90), vitals(1.5, pending=95), vitals(2.0, pending=95)]
    assert looked(*growing) == [None, None, None]
    assert looked(*growing, vitals(2.5, pending=94))[-1] == 2.5
    assert looked(vitals(1.0), vitals(1.5, pending=-1)) == [None, None]
