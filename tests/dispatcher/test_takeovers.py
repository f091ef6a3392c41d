"""Which nodes come and go in a way that operators should know: `services.dispatcher.takeovers`."""

from services.dispatcher.takeovers import MANY_TAKEOVERS, RETURN_SECONDS, WITHIN_SECONDS, Takeovers


def test_two_agents_of_a_node_are_known_by_their_takeovers() -> None:
    """A stock edge is back 31 to 44 s after it was thrown out; one takeover, or one a day, is none of it."""
    found = [Takeovers().superseded("edge-1", 0.0)]
    takeovers = Takeovers()
    found += [takeovers.superseded("edge-1", at) for at in (0.0, 86_400.0, 2 * 86_400.0)]
    assert found == [None] * 4
    takeovers = Takeovers()
    times = [takeovers.superseded("edge-1", 40.0 * number) for number in range(5)]
    assert times == [None] * (MANY_TAKEOVERS - 1) + [40.0 * (MANY_TAKEOVERS - 1)] * 3
    assert takeovers.superseded("edge-2", 200.0) is None
    assert takeovers.superseded("edge-1", 160.0 + WITHIN_SECONDS) is None


def test_a_deleted_node_that_comes_back_is_told_once() -> None:
    takeovers = Takeovers()
    assert takeovers.opened("edge-1", 0.0) is None
    takeovers.deleted("edge-1", 10.0)
    assert takeovers.opened("edge-1", 44.0) == 34.0
    assert takeovers.opened("edge-1", 50.0) is None
    takeovers.deleted("edge-1", 100.0)
    assert takeovers.opened("edge-1", 100.0 + RETURN_SECONDS) is None


def test_what_is_remembered_is_bounded() -> None:
    takeovers = Takeovers(max_nodes=10)
    for number in range(100):
        takeovers.superseded(f"edge-{number}", 1.0)
        takeovers.deleted(f"edge-{number}", 1.0)
    assert len(takeovers) == 10
    assert takeovers.opened("edge-99", 2.0) == 1.0
    assert takeovers.opened("edge-1", 2.0) is None
