"""Rendezvous hashing."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from services.connector.rendezvous import best_dispatcher

_ADDRESSES = st.lists(st.text(min_size=1, max_size=12), min_size=1, max_size=6, unique=True)


def test_without_dispatchers_there_is_no_choice() -> None:
    assert best_dispatcher("edge-1", []) is None


@given(st.text(max_size=20), _ADDRESSES)
def test_the_choice_does_not_depend_on_the_order(node: str, addresses: list[str]) -> None:
    assert best_dispatcher(node, addresses) == best_dispatcher(node, addresses[::-1])


@given(st.text(max_size=20), _ADDRESSES, st.text(min_size=13, max_size=15))
def test_a_node_moves_only_to_a_new_dispatcher_or_off_a_lost_one(
    node: str, addresses: list[str], new: str
) -> None:
    before = best_dispatcher(node, addresses)
    assert best_dispatcher(node, [*addresses, new]) in (before, new)
    for lost in addresses:
        rest = [address for address in addresses if address != lost]
        if lost != before:
            assert best_dispatcher(node, rest) == before


def test_nodes_spread_evenly() -> None:
    shares = Counter(best_dispatcher(f"edge-{n}", ["a:1", "b:1", "c:1"]) for n in range(3000))
    assert min(shares.values()) > 850
