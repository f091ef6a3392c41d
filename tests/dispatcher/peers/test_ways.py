"""Ways of a node's operations to the store."""

from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.peers.ways import Ways


class Way:
    """One that keeps what goes by it, in order."""

    def __init__(self) -> None:
        self.under_way: list[int] = []


def test_what_wants_another_way_waits_for_what_is_under_way() -> None:
    ways: Ways[str, int] = Ways()
    assert ways.enter("n", "here", 1)
    assert ways.enter("n", "here", 2)
    assert not ways.enter("n", "there", 3)
    assert not ways.enter("n", "here", 4), "it may not overtake 3"
    assert ways.enter("other", "there", 5)
    assert ways.left("n") == []
    assert ways.left("n") == [("there", 3)]
    assert ways.left("n") == [("here", 4)]
    assert ways.left("n") == ways.left("other") == []
    assert len(ways) == 0


def test_a_node_whose_way_ended_goes_on_by_another() -> None:
    ways: Ways[str, int] = Ways()
    assert ways.enter("n", "there", 1)
    ways.turn("n", "here")
    assert not ways.enter("n", "there", 2)
    assert ways.enter("m", "there", 3)
    assert ways.left("n") == [("there", 2)]


moves = st.lists(
    st.tuples(st.sampled_from(["publish", "answer", "break"]), st.integers(0, 2), st.integers(0, 2))
)


@given(moves)
def test_a_nodes_operations_are_done_in_the_order_of_their_submission(
    script: list[tuple[str, int, int]],
) -> None:
    """C15: whatever ways are wanted, come and break, nothing of a node overtakes and nothing is lost.

    Each way does what goes by it in its order; one that breaks is replaced, what it had goes by the first.
    """
    ways: Ways[Way, int] = Ways()
    open_ways = [Way(), Way(), Way()]
    node_of: dict[int, str] = {}
    submitted: dict[str, list[int]] = {}
    done: dict[str, list[int]] = {}

    def go(way: Way, item: int) -> None:
        # One that ended meanwhile gives everything back at once.
        if way in open_ways:
            way.under_way.append(item)
        else:
            ways.turn(node_of[item], open_ways[0])
            open_ways[0].under_way.append(item)

    def answer(way: Way) -> None:
        item = way.under_way.pop(0)
        done.setdefault(node_of[item], []).append(item)
        for wanted, released in ways.left(node_of[item]):
            go(wanted, released)

    for number, (what, node, choice) in enumerate(script):
        way = open_ways[choice]
        if what == "publish":
            node_id = f"n{node}"
            node_of[number] = node_id
            submitted.setdefault(node_id, []).append(number)
            if ways.enter(node_id, way, number):
                go(way, number)
        elif what == "answer" and way.under_way:
            answer(way)
        elif what == "break" and choice:
            open_ways[choice] = Way()
            for node_id in {node_of[item] for item in way.under_way}:
                ways.turn(node_id, open_ways[0])
            for item in way.under_way:
                open_ways[0].under_way.append(item)
    while any(way.under_way for way in open_ways):
        for way in open_ways:
            if way.under_way:
                answer(way)
    assert done == submitted
    assert len(ways) == 0
