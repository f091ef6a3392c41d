"""When the hub counts as recovered."""

from chaos.recovery import Recovery, Vitals


def vitals(at: float, **other: int) -> Vitals:
    """All is well with four nodes, each of which gets and stores ten messages per second."""
    fields = {"links": 4, "sessions": 4, "pending": 3, "accepted": int(at * 40), **other}
    return Vitals(at=at, stored=(int(at * 10),) * 4, **fields)


def looked(*seen: Vitals) -> list[float | None]:
    """What each look after a fault at 0.5 seconds says."""
    recovery = Recovery(since=0.5, usual_pending=5)
    return [recovery.look(one) for one in seen]


def test_all_nodes_live_and_something_stored_since_is_recovered() -> None:
    assert looked(vitals(1.0), vitals(1.2), vitals(1.5)) == [None, None, 1.5]


def test_what_was_on_its_way_when_the_fault_came_proves_nothing() -> None:
    looks = [vitals(at) for at in (0.6, 0.8, 0.9, 1.2, 1.4)]
    assert looked(*looks) == [None, None, None, None, 1.4]


def test_without_publishes_that_are_accepted_nothing_has_recovered() -> None:
    """C12: what nodes store then was accepted before the database went away."""
    away = [vitals(at, accepted=70) for at in (1.0, 1.5, 2.0, 2.5)]
    assert looked(*away) == [None] * 4
    assert looked(*away, vitals(3.0, accepted=71), vitals(3.5, accepted=72))[-2:] == [None, 3.5]


def test_a_missing_link_or_session_is_waited_for() -> None:
    missing = (vitals(1.0, links=3), vitals(1.5, sessions=3), vitals(2.0, sessions=-1))
    assert looked(*missing, vitals(2.5)) == [None, None, None, 2.5]
    assert looked(vitals(1.0), vitals(1.5), vitals(2.0, links=3), vitals(2.5)) == [None, None, None, 2.5]


def test_one_node_that_stores_nothing_has_not_recovered() -> None:
    """Also if it has a link and a session: its dispatcher may be the one that is paused."""
    stuck = [Vitals(at, 4, 4, int(at), (int(at), int(at), int(at), 7), 3) for at in (1.0, 2.0, 3.0)]
    assert looked(*stuck) == [None, None, None]


def test_a_backlog_has_to_fall() -> None:
    """Unless it is no more than usual; a hub that does not say how large it is has not recovered."""
    growing = [vitals(1.0, pending=90), vitals(1.5, pending=95), vitals(2.0, pending=95)]
    assert looked(*growing) == [None, None, None]
    assert looked(*growing, vitals(2.5, pending=94))[-1] == 2.5
    assert looked(vitals(1.0), vitals(1.5), vitals(2.0, pending=-1)) == [None, None, None]
