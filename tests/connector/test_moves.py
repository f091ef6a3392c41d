"""Which links ask another dispatcher, and when: `services.connector.moves`."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from services.connector.moves import Moves


def moves(most_asked: int = 2) -> Moves:
    return Moves(verdict_seconds=10.0, most_asked=most_asked)


def delay(attempt: int) -> float:
    return 0.5 * attempt


def test_a_link_is_due_once_however_often_it_is_wanted() -> None:
    found = moves()
    for number in (2, 1, 2):
        found.want(number)
    assert found.is_due
    assert found.take_due() == [2, 1]
    assert found.take_due() == []
    assert not found.is_due


def test_a_link_that_nobody_took_rests_longer_each_time() -> None:
    found = moves()
    found.want(1)
    for attempt in (1, 2, 3):
        assert found.take_due() == [1]
        found.asked(1, "a", 100.0)
        found.rest(1, 100.0, delay)
        assert found.next_at() == 100.0 or found.pass_time(100.0 + delay(attempt) - 0.01) == []
        assert not found.is_due
        assert found.pass_time(100.0 + delay(attempt)) == []


def test_a_verdict_that_does_not_come_is_late_once() -> None:
    found = moves()
    found.want(1)
    found.take_due()
    found.asked(1, "a", 0.0)
    assert found.pass_time(9.9) == []
    assert found.pass_time(10.0) == [1]
    found.rest(1, 10.0, delay)
    assert found.pass_time(10.5) == []
    assert found.take_due() == [1]


def test_one_dispatcher_is_asked_about_so_many_links_at_a_time() -> None:
    """The load of a lost dispatcher comes in portions."""
    found = moves(most_asked=2)
    for number in (1, 2, 3):
        found.want(number)
    for number in found.take_due():
        if found.has_room("a"):
            found.asked(number, "a", 0.0)
        else:
            found.put_back(number)
    assert not found.has_room("a")
    assert found.has_room("b")
    found.forget(1)
    assert found.has_room("a")
    assert found.take_due() == [3]


def test_links_that_asked_a_lost_dispatcher_are_due_again_at_once() -> None:
    found = moves()
    for number in (1, 2):
        found.want(number)
    found.take_due()
    found.asked(1, "a", 0.0)
    found.asked(2, "b", 0.0)
    found.lost("a")
    assert found.take_due() == [1]
    assert found.has_room("a")
    assert found.pass_time(10.0) == [2], "the lost one's time is not counted"


def test_a_shelved_link_waits_until_the_dispatchers_change() -> None:
    found = moves()
    found.want(1)
    assert found.take_due() == [1]  # and nobody is there to be asked
    found.want(1)
    assert found.pass_time(1e9) == []
    assert not found.is_due
    found.reconsider()
    assert found.take_due() == [1]


def test_a_link_that_comes_back_is_not_met_by_its_former_times() -> None:
    found = moves()
    found.want(1)
    found.take_due()
    found.asked(1, "a", 0.0)
    found.forget(1)
    found.want(1)
    found.take_due()
    found.asked(1, "b", 5.0)
    assert found.pass_time(10.0) == []
    assert found.pass_time(15.0) == [1]


class MovesMachine(RuleBasedStateMachine):
    """Any order of events: no link is forgotten unless it is told to, none is asked about twice at a time."""

    numbers = st.integers(1, 5)
    places = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.moves = moves()
        self.wanted: set[int] = set()
        self.asked: dict[int, str] = {}

    @rule(number=numbers)
    def want(self, number: int) -> None:
        self.moves.want(number)
        self.wanted.add(number)

    @rule(number=numbers)
    def forget(self, number: int) -> None:
        self.moves.forget(number)
        self.wanted.discard(number)
        self.asked.pop(number, None)

    @rule(place=places, shelve=st.booleans())
    def ask_what_is_due(self, place: str, shelve: bool) -> None:
        for number in self.moves.take_due():
            assert number in self.wanted
            assert number not in self.asked
            if shelve:
                continue
            if self.moves.has_room(place):
                self.moves.asked(number, place, self.now)
                self.asked[number] = place
            else:
                self.moves.put_back(number)

    @rule(number=numbers)
    def nobody_takes_it(self, number: int) -> None:
        if number in self.asked:
            self.moves.rest(number, self.now, delay)
            del self.asked[number]

    @rule(place=places)
    def lose(self, place: str) -> None:
        self.moves.lost(place)
        self.asked = {number: at for number, at in self.asked.items() if at != place}

    @rule(seconds=st.floats(0, 20))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        for number in self.moves.pass_time(self.now):
            assert self.asked.pop(number)
            self.moves.rest(number, self.now, delay)

    @invariant()
    def all_are_there_and_none_too_many_asked(self) -> None:
        assert {number for number in range(1, 6) if number in self.moves} == self.wanted
        for place in ("a", "b"):
            asked = list(self.asked.values()).count(place)
            assert asked <= 2
            assert self.moves.has_room(place) is (asked < 2)

    def teardown(self) -> None:
        """Once time passes and dispatchers change, every link is due or waits for a verdict."""
        for number in self.moves.pass_time(self.now + 1000.0):
            self.asked.pop(number)
            self.moves.rest(number, self.now, delay)
        self.moves.pass_time(self.now + 2000.0)
        self.moves.reconsider()
        assert set(self.moves.take_due()) == self.wanted - set(self.asked)


TestMoves = MovesMachine.TestCase
TestMoves.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
