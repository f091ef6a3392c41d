"""The processes of the hub as operators see them: `services.sessions.instances`."""

from services.sessions.instances import Instance, instances, signs
from services.sessions.presence import Sign
from services.sessions.records import ConnectorLoad, Lease, Replica

REPLICA = Replica("s1", "sessions-0", "127.0.0.1:50052", 4)
D1 = Lease(
    "d1", 7, False, "north", "127.0.0.1:1", 5, (ConnectorLoad("c1", "edge-north", 5, "10.0.0.7:50053"),)
)
D2 = Lease(
    "d2",
    9,
    False,
    "south",
    "127.0.0.1:2",
    3,
    (ConnectorLoad("c2", "edge-south", 1), ConnectorLoad("c1", "edge-north", 2, "10.0.0.7:50053")),
)
SILENCE = {Sign("s1", 4): 0.5, Sign("d1", 7): 8.0, Sign("d2", 9): 1.0}


def test_every_process_is_shown_with_its_load_and_silence() -> None:
    """A connector that several dispatchers report is one, with the links of all."""
    assert instances([D1, D2], [REPLICA], SILENCE.__getitem__) == [
        Instance("sessions", "s1", "sessions-0", "127.0.0.1:50052", 0, 0.5),
        Instance("dispatcher", "d1", "north", "127.0.0.1:1", 5, 8.0),
        Instance("dispatcher", "d2", "south", "127.0.0.1:2", 3, 1.0),
        Instance("connector", "c1", "edge-north", "10.0.0.7:50053", 7, 1.0),
        Instance("connector", "c2", "edge-south", "", 1, 1.0),
    ]


def test_a_lost_dispatcher_and_what_only_it_reported_are_not_shown() -> None:
    lost = Lease("d1", 7, True, "north", "127.0.0.1:1", 5, D1.connectors)
    assert instances([lost], [], SILENCE.__getitem__) == []


def test_every_process_has_a_sign_of_life() -> None:
    assert set(signs([D1, D2], [REPLICA])) == set(SILENCE)


def test_enrolment_releases_and_what_drains_are_shown() -> None:
    """A connector drains as soon as one of its dispatchers has heard so."""
    enrolment = Replica("e1", "enrolment-0", "127.0.0.1:50054", 1, "enrolment", "2.0")
    lease = Lease(
        *("d1", 7, False, "north", "127.0.0.1:1", 5),
        (ConnectorLoad("c1", "edge-north", 5, "10.0.0.7:50053", "1.9", True),),
        *("2.0", True),
    )
    found = instances([lease, D2], [enrolment, REPLICA], lambda _: 0.0)
    assert [(one.service, one.name, one.version, one.draining) for one in found] == [
        ("sessions", "sessions-0", "", False),
        ("dispatcher", "north", "2.0", True),
        ("dispatcher", "south", "", False),
        ("connector", "edge-north", "1.9", True),
        ("connector", "edge-south", "", False),
        ("enrolment", "enrolment-0", "2.0", False),
    ]
