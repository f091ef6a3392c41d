"""What is remembered of where nodes are."""

from services.dispatcher.peers.locations import Locations


def test_a_location_is_known_for_a_while() -> None:
    locations = Locations(valid_seconds=2.0)
    assert locations.find("a", 10.0) is None
    locations.learn("a", "d1", 10.0)
    locations.learn("b", "", 10.0)
    assert (locations.find("a", 11.9), locations.find("b", 11.9)) == ("d1", "")
    assert (locations.find("a", 12.0), locations.find("b", 12.0)) == (None, None)


def test_a_wrong_location_is_forgotten() -> None:
    locations = Locations()
    locations.learn("a", "d1", 10.0)
    locations.forget(["a", "never-known"])
    assert locations.find("a", 10.0) is None


def test_the_oldest_go_when_there_are_too_many() -> None:
    locations = Locations(most=2)
    for second, node_id in enumerate(("a", "b", "a", "c")):
        locations.learn(node_id, "d1", float(second))
    assert len(locations) == 2
    assert [locations.find(node_id, 3.0) for node_id in ("a", "b", "c")] == ["d1", None, "d1"]
