"""Which address a node dials next."""

from hypothesis import given
from hypothesis import strategies as st

from edge.servers import Servers


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=6, max_size=6))
def test_every_address_has_its_turn_before_any_has_another(chances: list[float]) -> None:
    servers = Servers(["a", "b", "c"])
    taken = [servers.next(chance) for chance in chances]
    assert sorted(taken[:3]) == sorted(taken[3:]) == ["a", "b", "c"]


def test_chance_decides_where_a_node_begins() -> None:
    assert [Servers(["a", "b"]).next(chance) for chance in (0.0, 0.49, 0.5, 0.99)] == ["a", "a", "b", "b"]


def test_a_single_address_is_dialled_again() -> None:
    servers = Servers(["a"])
    assert [servers.next(0.5), servers.next(0.5)] == ["a", "a"]
