"""`services.runtime.openings`: nobody keeps others out, and a fleet behind one address gets in."""

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from services.runtime.openings import _MOST_TRIED, OpeningLimits, Openings, Turn
from services.runtime.rate_limit import network_of

ATTACKER = "10.0.0.1"
EDGE = "10.0.0.2"
LIMITS = OpeningLimits(max_openings=4, max_waiting=8, patience=0.5, hurried=10.0)


def turns(openings: Openings[str], now: float) -> list[Turn[str]]:
    """All that may begin now."""
    found = []
    while (turn := openings.next_turn(now)) is not None:
        found.append(turn)
    return found


def flood(openings: Openings[str], network: str, count: int, now: float, *, speak: bool) -> Counter[str]:
    """So many connections of a network; how many of which network were cut for them."""
    cut: Counter[str] = Counter()
    for number in range(count):
        item = f"{network} {number}"
        gone = openings.arrive(item, network, now)
        if gone is not None:
            cut[gone.split()[0]] += 1
        if gone != item and speak:
            openings.heard(item, now)
            turns(openings, now)
    return cut


def test_silent_connections_take_nothing_that_is_at_work() -> None:
    """C47: thousands of silent sockets of one network, and the next one of another begins at once."""
    openings: Openings[str] = Openings(LIMITS)
    assert flood(openings, ATTACKER, 5300, 0.0, speak=False) == {ATTACKER: 5292}
    assert (openings.waiting, openings.at_work) == (8, 0)
    gone = openings.arrive("edge", EDGE, 0.0)
    assert gone == f"{ATTACKER} 5292", "the oldest silent one gives way"
    openings.heard("edge", 0.0)
    assert turns(openings, 0.0) == [Turn("edge")]


def test_an_edge_of_the_same_network_as_the_silent_ones_gets_in() -> None:
    """A network has no share of its own to be used up by its worst member."""
    openings: Openings[str] = Openings(LIMITS)
    flood(openings, ATTACKER, 100, 0.0, speak=False)
    assert openings.arrive("edge", ATTACKER, 0.0) == f"{ATTACKER} 92"
    openings.heard("edge", 0.0)
    assert turns(openings, 0.0) == [Turn("edge")]


@pytest.mark.parametrize("members", [8 + 4, 100])
def test_a_fleet_behind_one_address_may_have_all_there_is(members: int) -> None:
    """Whole fleets come in the same second: nobody at work or waiting is cut for another of its network."""
    openings: Openings[str] = Openings(LIMITS)
    cut = flood(openings, EDGE, members, 0.0, speak=True)
    assert (openings.at_work, openings.ready) == (4, 8)
    assert cut.total() == members - 12
    # The others come in their order, each when one before it is done.
    order = []
    for number in range(12):
        openings.end(f"{EDGE} {number}")
        order += [turn.begins for turn in turns(openings, 1.0)]
    assert order == [f"{EDGE} {number}" for number in range(4, 12)]
    assert openings.networks() == 0


def test_one_that_begins_and_never_ends_gives_way_to_another_network() -> None:
    """A byte is easily sent: who has all that is at work gives way all the same, after a little patience."""
    openings: Openings[str] = Openings(LIMITS)
    flood(openings, ATTACKER, 100, 0.0, speak=True)
    assert (openings.at_work, openings.ready) == (4, 8)
    assert openings.arrive("edge", EDGE, 1.0) == f"{ATTACKER} 11", "of those who wait the youngest gives way"
    openings.heard("edge", 1.0)
    assert turns(openings, 1.4) == []
    assert turns(openings, 1.5) == [Turn("edge", f"{ATTACKER} 0")]


def test_what_makes_progress_is_not_the_first_to_give_way() -> None:
    openings: Openings[str] = Openings(LIMITS)
    flood(openings, ATTACKER, 4, 0.0, speak=True)
    openings.progressed(f"{ATTACKER} 0", 1.0)
    openings.decide(f"{ATTACKER} 1", 1.0)
    assert openings.give_way(EDGE, 1.0) == f"{ATTACKER} 2"
    assert openings.give_way(EDGE, 1.0) == f"{ATTACKER} 3"
    assert openings.give_way(EDGE, 1.4) is None, "it has just begun its second step"
    assert openings.give_way(EDGE, 1.5) == f"{ATTACKER} 0"
    assert openings.give_way(EDGE, 100.0) is None, "the request of the last one is whole"
    assert openings.at_work == 1


def test_of_a_flood_in_which_all_are_young_the_youngest_gives_way() -> None:
    """Else who begins anew fast enough would keep others out for ever."""
    openings: Openings[str] = Openings(LIMITS)
    for number in range(4):
        openings.begin(f"{number}", ATTACKER if number else EDGE, 0.0)
    assert openings.give_way("10.0.0.3", 0.1) == "3"
    assert openings.give_way("10.0.0.3", 0.1) is None, "nobody has more than half of all"


def test_within_one_network_only_time_decides() -> None:
    """The oldest that has had its time at a step makes room for the next of its own network."""
    openings: Openings[str] = Openings(LIMITS)
    flood(openings, EDGE, 5, 0.0, speak=True)
    assert turns(openings, 9.9) == []
    assert turns(openings, 10.0) == [Turn(f"{EDGE} 4", f"{EDGE} 0")]


def test_networks_take_turns() -> None:
    openings: Openings[str] = Openings(LIMITS)
    flood(openings, ATTACKER, 4, 0.0, speak=True)
    for item, network in (("a", ATTACKER), ("b", ATTACKER), ("c", EDGE), ("d", EDGE), ("e", "10.0.0.3")):
        assert openings.arrive(item, network, 0.0) is None
        openings.heard(item, 0.0)
    for number in range(4):
        openings.end(f"{ATTACKER} {number}")
    assert [turn.begins for turn in turns(openings, 0.0)] == ["a", "c", "e", "b"]


def test_who_came_first_gives_way_where_every_network_has_one() -> None:
    """Many addresses: silence alone tells those that only stand there."""
    openings: Openings[str] = Openings(LIMITS)
    for number in range(8):
        assert openings.arrive(f"silent {number}", f"10.1.0.{number}", number * 0.01) is None
    assert openings.arrive("early", EDGE, 0.1) == "early", "nobody has been silent for long"
    assert openings.arrive("edge", EDGE, 0.6) == "silent 0"


def test_a_silent_network_gives_way_to_a_larger_one_that_speaks() -> None:
    """A fleet behind one address may be larger than what an attacker's silence leaves of a fair share."""
    openings: Openings[str] = Openings(LIMITS)
    flood(openings, ATTACKER, 8, 0.0, speak=False)
    assert flood(openings, EDGE, 11, 1.0, speak=True) == {ATTACKER: 7}
    assert (openings.at_work, openings.ready) == (4, 7)


def test_what_is_being_closed_gives_way_first_and_has_a_bound() -> None:
    """A refused peer that does not read its refusal keeps no descriptor from others."""
    openings: Openings[str] = Openings(LIMITS)
    for number in range(20):
        openings.begin(f"{number}", ATTACKER, 0.0)
        openings.linger(f"{number}", ATTACKER, 0.0)
    assert (openings.at_work, openings.waiting) == (0, 20)
    assert openings.arrive("edge", EDGE, 0.0) == "0"
    for number in range(20):
        openings.end(f"{number}")
    openings.end("edge")
    assert openings.networks() == 0


def test_networks_of_ipv6_and_of_mapped_addresses_are_one_party() -> None:
    """C47: a host has all addresses of its /64, and an IPv4 address has two spellings."""
    for addresses in (
        [f"2001:db8::{number:x}" for number in range(8)],
        ["192.0.2.1", "::ffff:192.0.2.1"] * 4,
    ):
        openings: Openings[str] = Openings(LIMITS)
        for number, address in enumerate(addresses):
            assert openings.arrive(f"{number}", network_of(address), 0.0) is None
        assert openings.networks() == 1
        assert openings.arrive("edge", network_of("2001:db8:0:1::1"), 0.0) == "0"


NETWORKS = ("a", "b", "c")


class OpeningsMachine(RuleBasedStateMachine):
    """Held against a plain model of who is where."""

    items = Bundle("items")

    def __init__(self) -> None:
        super().__init__()
        self.openings: Openings[int] = Openings(LIMITS)
        self.now = 0.0
        self.made = 0
        self.network: dict[int, str] = {}
        self.stage: dict[int, str] = {}
        self.idle_since: dict[int, float] = {}
        self.lingering = 0

    def count(self, network: str, *stages: str) -> int:
        return sum(self.network[one] == network and stage in stages for one, stage in self.stage.items())

    @rule(seconds=st.sampled_from([0.0, 0.1, 0.6, 11.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(target=items, network=st.sampled_from(NETWORKS))
    def arrive(self, network: str) -> int:
        item = self.made
        self.made += 1
        self.network[item] = network
        full = sum(stage in ("idle", "ready") for stage in self.stage.values()) >= LIMITS.max_waiting
        mine = self.count(network, "idle", "ready")
        gone = self.openings.arrive(item, network, self.now)
        assert full == (gone is not None)
        silent = self.count(network, "idle")
        if gone == item:
            assert not silent, "of its own network a silent one goes first"
            for other in NETWORKS:
                assert self.count(other, "idle") <= 1
                assert self.count(other, "ready") <= mine + 1
            return item
        if gone is not None:
            whose, stage = self.network[gone], self.stage[gone]
            if stage == "ready":
                assert self.count(whose, "idle", "ready") > mine + 1
            elif whose != network and self.now - self.idle_since[gone] < LIMITS.patience:
                assert self.count(whose, "idle") > silent + 1
            del self.stage[gone]
        self.idle_since[item] = self.now
        self.stage[item] = "idle"
        return item

    @rule(item=items)
    def heard(self, item: int) -> None:
        self.openings.heard(item, self.now)
        if self.stage.get(item) == "idle":
            self.stage[item] = "ready"

    @rule()
    def take_turns(self) -> None:
        while (turn := self.openings.next_turn(self.now)) is not None:
            assert self.stage[turn.begins] == "ready"
            if turn.gives_way is not None:
                assert self.stage.pop(turn.gives_way) == "working"
            self.stage[turn.begins] = "working"
        if self.openings.has_room:
            assert "ready" not in self.stage.values(), "somebody waits for room that is there"

    @rule(item=items)
    def progressed(self, item: int) -> None:
        self.openings.progressed(item, self.now)

    @rule(item=items)
    def decide(self, item: int) -> None:
        self.openings.decide(item, self.now)
        if self.stage.get(item) == "working":
            self.stage[item] = "deciding"

    @rule(item=items)
    def linger(self, item: int) -> None:
        if self.stage.get(item) in ("working", "deciding"):
            self.openings.linger(item, self.network[item], self.now)
            self.stage[item] = "idle"
            self.idle_since[item] = self.now
            self.lingering += 1

    @rule(item=consumes(items))
    def end(self, item: int) -> None:
        self.openings.end(item)
        self.stage.pop(item, None)

    @rule(target=items)
    def nothing(self) -> object:
        return multiple()

    @invariant()
    def counts_agree(self) -> None:
        stages = Counter(self.stage.values())
        assert self.openings.at_work == stages["working"] + stages["deciding"] <= LIMITS.max_openings
        assert self.openings.ready == stages["ready"]
        assert self.openings.waiting == stages["idle"] + stages["ready"]
        assert self.openings.waiting <= LIMITS.max_waiting + self.lingering
        assert self.openings.networks() == len({self.network[item] for item in self.stage})


TestOpeningsMachine = OpeningsMachine.TestCase
TestOpeningsMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_so_many_networks_are_looked_at_for_one_that_gets_anothers_room() -> None:
    """Of hundreds that wait each has its turn all the same, a few looks later."""
    openings: Openings[str] = Openings(OpeningLimits(max_openings=4, max_waiting=1000, patience=0.5))
    flood(openings, ATTACKER, 4, 0.0, speak=True)
    networks = [f"10.1.{number // 250}.{number % 250}" for number in range(3 * _MOST_TRIED)]
    for network in networks[:-1]:
        openings.arrive(network, network, 0.9)
        openings.heard(network, 0.9)
    openings.arrive(networks[-1], networks[-1], 0.0)
    openings.heard(networks[-1], 0.0)
    # The last one alone has waited long enough by now.
    looks = [openings.next_turn(1.0) for _ in range(3)]
    assert looks[:2] == [None, None]
    assert looks[2] == Turn(networks[-1], f"{ATTACKER} 0")
