"""What the registry and a dispatcher do not both have: `services.dispatcher.anti_entropy`."""

from typing import Any
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st

from services.dispatcher.anti_entropy import AntiEntropy, Disagreements, Settlement

LEASE = 15.0
NOTHING = Settlement([], [])


def test_agreement_is_nothing_to_settle() -> None:
    compared = Disagreements(LEASE)
    for now in range(0, 100, 5):
        assert compared.look({"edge-1": 7}, {"edge-1": 7}, now) == NOTHING
    assert not compared


def test_a_session_that_the_registry_does_not_have_is_settled_at_the_second_look() -> None:
    compared = Disagreements(LEASE)
    assert compared.look({}, {"edge-1": 7}, 0.0) == NOTHING
    assert compared
    assert compared.look({}, {"edge-1": 7}, 5.0) == Settlement([("edge-1", 7)], [])
    assert not compared


def test_a_session_that_is_not_here_is_left_alone_for_a_lease() -> None:
    """It may be opening, or its link on the way to this dispatcher."""
    compared = Disagreements(LEASE)
    for now in (0.0, 5.0, 10.0):
        assert compared.look({"edge-1": 7}, {}, now) == NOTHING
    assert compared.look({"edge-1": 7}, {}, 15.0) == Settlement([], [("edge-1", 7)])


def test_a_session_whose_end_the_registry_is_being_told_is_no_disagreement() -> None:
    """Sessions was away for longer than a lease, and answers again before it has heard of the end."""
    compared = Disagreements(LEASE)
    assert compared.look({"edge-1": 7}, {}, 0.0) == NOTHING
    assert compared.look({"edge-1": 7}, {}, 15.0, {("edge-1", 7)}) == NOTHING
    assert not compared
    assert compared.look({"edge-1": 8}, {}, 20.0, {("edge-1", 7)}) == NOTHING
    assert compared.look({"edge-1": 8}, {}, 35.0, {("edge-1", 7)}) == Settlement([], [("edge-1", 8)])


def test_an_epoch_that_changes_between_looks_is_another_session() -> None:
    """C37: a link that moves here and away again is no disagreement."""
    compared = Disagreements(LEASE)
    for step, now in enumerate(range(0, 100, 5)):
        assert compared.look({"edge-1": 8 + step}, {"edge-1": 7 + step}, now) == NOTHING


def test_what_agrees_at_one_look_begins_anew() -> None:
    """An opening whose two halves are read at different instants."""
    compared = Disagreements(LEASE)
    for now in range(0, 200, 10):
        assert compared.look({}, {"edge-1": 7}, now) == NOTHING
        assert compared.look({"edge-1": 7}, {"edge-1": 7}, now + 5) == NOTHING


def test_two_sides_with_two_epochs_are_settled_in_favour_of_the_registry() -> None:
    """The local session ends first; the registry's, which is nobody's, after a lease."""
    compared = Disagreements(LEASE)
    compared.look({"edge-1": 8}, {"edge-1": 7}, 0.0)
    assert compared.look({"edge-1": 8}, {"edge-1": 7}, 5.0) == Settlement([("edge-1", 7)], [])
    assert compared.look({"edge-1": 8}, {}, 10.0) == NOTHING
    assert compared.look({"edge-1": 8}, {}, 15.0) == Settlement([], [("edge-1", 8)])


sides = st.dictionaries(st.sampled_from(["n1", "n2", "n3"]), st.integers(1, 3))


@given(looks=st.lists(st.tuples(sides, sides, st.floats(0.1, 10.0)), max_size=20))
def test_only_what_was_apart_at_this_and_the_last_look_is_ever_settled(
    looks: list[tuple[dict[str, int], dict[str, int], float]],
) -> None:
    compared, now = Disagreements(LEASE), 0.0
    last: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for registry, here, step in looks:
        now += step
        settled = compared.look(registry, here, now)
        unknown = here.items() - registry.items() & last[1].items()
        assert set(settled.unknown_to_registry) <= unknown
        assert set(settled.unknown_to_registry) <= last[1].items() - last[0].items()
        assert set(settled.not_here) <= registry.items() - here.items()
        assert set(settled.not_here) <= last[0].items() - last[1].items()
        last = registry, here


async def test_what_still_waits_to_be_told_as_ended_is_not_ended_again() -> None:
    """The shell asks for it before it asks the registry: an end that is confirmed meanwhile counts too."""
    ends, sessions, clock = mock.Mock(), mock.AsyncMock(), mock.Mock()
    sessions.held.return_value = {"edge-1": 7}
    ends.closing.side_effect = [set(), {("edge-1", 7)}, set(), set()]
    here: Any = mock.Mock(sessions={}, draining=False)
    here.epochs.return_value = {}
    compared = AntiEntropy(here, sessions, ends, here, here, clock, mock.Mock(), LEASE)
    for now in (0.0, LEASE, 2 * LEASE):
        clock.monotonic.return_value = now
        await compared.look()
    ends.close.assert_not_called()
    clock.monotonic.return_value = 3 * LEASE
    await compared.look()
    ends.close.assert_called_once()
