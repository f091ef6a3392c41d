"""Messages over which an edge ends its links: `services.dispatcher.caution`."""

import random
from collections.abc import Callable, Iterator
from itertools import count

import pytest

from services.dispatcher.actions import Action, Fetch, Keep, Record, Send
from services.dispatcher.caution import LinkCut
from services.dispatcher.delivery import entry_of
from services.dispatcher.entry import Entry
from services.dispatcher.outbox.ledger import Ledger
from services.dispatcher.outbox.quotas import Quotas, Totals
from services.dispatcher.outbox.records import (
    Accept,
    Accepted,
    Claim,
    Cuts,
    End,
    Event,
    EventKind,
    Loaded,
    NodeRow,
    ObjectRow,
    Park,
    RowState,
    Settle,
)
from services.dispatcher.policy import NodeDelivery, PolicySettings
from tests.support.outbox import NODE, publication

ROUND_TRIP = 0.2
SETTINGS = PolicySettings()
Answer = Callable[[str], LinkCut | None]
"""What an edge does with a message: acknowledges it, or ends the link in this way."""


class World:
    """One node, its rows in the real ledger, and as many links one after the other as it takes. Every session
    is a new policy, as after a restart or at another dispatcher."""

    def __init__(self, messages: int, settings: PolicySettings = SETTINGS) -> None:
        self.settings = settings
        self.now = 1000.0
        self.node = NodeRow(NODE, known=True)
        self.rows: dict[str, ObjectRow] = {}
        self.bodies: dict[str, bytes] = {}
        self.cuts: dict[str, Cuts] = {}
        self.events: list[Event] = []
        self.acknowledged: list[str] = []
        self.in_flight: set[str] = set()
        self.held: list[float] = []  # how long each link kept its first message waiting
        self.random = random.Random(1)
        self.epochs = count(1)
        for number in range(1, messages + 1):
            self.publish(f"k{number}")

    def publish(self, key: str, version: int = 1) -> None:
        what = publication(version, uid=key, path=f"path/of/{key}", message_id=f"{key}v{version}")
        result = self.ledger().apply(Accept(NODE, what, int(self.now * 1000)))
        assert isinstance(result, Accepted)
        self.bodies[key] = what.body

    def ledger(self) -> Ledger:
        return Ledger(
            Quotas(), Totals(), {NODE: self.node}, {NODE: self.rows}, {}, cuts=self.cuts, events=self.events
        )

    def states(self, state: RowState) -> list[str]:
        return sorted(row.message_id for row in self.rows.values() if row.state == state)

    @property
    def parked(self) -> list[str]:
        return self.states(RowState.PARKED)

    @property
    def pending(self) -> list[str]:
        return self.states(RowState.PENDING)

    def link(self, lifetime: float, answer: Answer, *, end: LinkCut | None = None) -> bool:
        """One link of at most so many seconds, which something else ends then; as `end`, if the hub cannot
        tell that from the edge. False if everything was quiet before."""
        epoch = next(self.epochs)
        policy = NodeDelivery(NODE, epoch, self.settings, self.random.random)
        loaded = self.ledger().apply(Claim(NODE, epoch, int(self.now * 1000)))
        assert isinstance(loaded, Loaded)
        opened_at = self.now
        heard_at = self.now
        sends: list[tuple[float, Entry]] = []

        def perform(actions: list[Action]) -> None:
            for action in actions:
                if isinstance(action, Send):
                    sends.append((self.now + ROUND_TRIP, action.entry))
                    written = policy.written(action.number, 0, self.now, int(self.now * 1000))
                    perform(written)
                elif isinstance(action, (Record, Keep)):
                    self.ledger().apply(action.op)
                    op = action.op
                    if isinstance(op, (Settle, Park, End)) and policy.recorded(op.key, op.seq):
                        perform(policy.proceed(self.now, int(self.now * 1000)))
                elif isinstance(action, Fetch):
                    found = [(key, seq, self.bodies[key]) for key, seq in action.wanted]
                    perform(policy.bodies(found, self.now, int(self.now * 1000)))

        def over(cut: LinkCut | None) -> bool:
            if cut is not None:
                perform(policy.cut(cut, self.now, int(self.now * 1000), heard_at))
            policy.closed(int(self.now * 1000))
            return True

        entries = [entry_of(row, self.now, int(self.now * 1000)) for row in loaded.rows]
        perform(policy.loaded(entries, loaded.last_seq, self.now, int(self.now * 1000), cuts=loaded.cuts))
        if not sends:
            self.held.append((policy.next_deadline() or self.now) - self.now)
        while True:
            due = min([at for at, _ in sends] + [policy.next_deadline() or float("inf")])
            if due == float("inf") and end is None:
                return False
            if due >= opened_at + lifetime:
                self.now = opened_at + lifetime
                return over(end)
            self.now = max(self.now, due)
            for at, entry in list(sends):
                if at > self.now:
                    continue
                sends.remove((at, entry))
                self.in_flight = {entry.message_id, *(other.message_id for _, other in sends)}
                cut = answer(entry.message_id)
                if cut is not None:
                    return over(cut)
                heard_at = self.now
                self.acknowledged.append(entry.message_id)
                perform(policy.acknowledged(entry.message_id, self.now, int(self.now * 1000)))
            perform(policy.deadline(self.now, int(self.now * 1000), heard_at))

    def live(self, answer: Answer, most_links: int, lifetime: float = 1e9) -> int:
        """Links until everything is quiet, half a minute apart as a stock edge dials; how many it took."""
        for links in range(1, most_links + 1):
            if not self.link(lifetime, answer):
                return links
            self.now += 30.0
        return most_links + 1


def poison(*bad: str, code: int = 0) -> Answer:
    return lambda message_id: LinkCut(code) if message_id in bad else None


@pytest.mark.parametrize("code", [0, 1009, 1007, 4999])
@pytest.mark.parametrize("place", [1, 7, 64, 65, 100])
def test_a_message_over_which_its_edge_ends_its_links_is_parked_and_those_behind_it_arrive(
    place: int, code: int
) -> None:
    """C42: with its reason, after as many links as the setting says, over as many sessions as it takes."""
    world = World(100)
    assert world.live(poison(f"k{place}v1", code=code), 20) == SETTINGS.max_cut_links + 1
    assert world.parked == [f"k{place}v1"]
    assert world.pending == []
    assert len(set(world.acknowledged)) == 99
    row = world.rows[f"k{place}"]
    assert row.reason.startswith("its edge ended 5 links in a row while it was the first unanswered message")
    assert row.reason.endswith(f"was closed with {code}" if code else "ended without a close frame")
    told = [(event.kind, event.attempt) for event in world.events if event.message_id == row.message_id]
    assert [attempt for kind, attempt in told if kind is EventKind.UNACKNOWLEDGED] == [2, 3, 4, 5]
    assert EventKind.PARKED in dict(told)


def test_messages_that_an_edge_had_not_answered_yet_are_not_taken_for_the_culprit() -> None:
    """C42: an edge decodes ahead of what it does, and drops the first two over the third as well."""
    world = World(100)
    assert world.live(lambda _message_id: LinkCut() if "k3v1" in world.in_flight else None, 20) == 6
    assert world.parked == ["k3v1"]
    assert world.pending == []


def test_several_in_a_row_are_each_found_out() -> None:
    """C42."""
    world = World(80)
    bad = ["k3v1", "k4v1", "k70v1"]
    assert world.live(poison(*bad, code=1009), 40) < 20
    assert world.parked == sorted(bad)
    assert world.pending == []


def lifetimes(kind: str, seed: int) -> Iterator[float]:
    chance = random.Random(seed)
    while True:
        yield {
            "shorter than a round trip": lambda: 0.19,
            "about as long as the rest": lambda: chance.uniform(0.5, 3.5),
            "by chance": lambda: chance.expovariate(1 / 3),
            "regular": lambda: 1.0 + (seed % 7) / 2,
        }[kind]()


@pytest.mark.parametrize("seed", range(14))
@pytest.mark.parametrize(
    "kind", ["shorter than a round trip", "about as long as the rest", "by chance", "regular"]
)
def test_links_that_a_network_ends_park_nothing(kind: str, seed: int) -> None:
    """C42: however often, with messages in flight each time, and though the hub takes it for the edge."""
    world = World(0)
    random_edge = random.Random(seed)
    ends = lifetimes(kind, seed)
    key = count(1)
    for _ in range(300):
        while len(world.pending) < random_edge.choice([1, 3, 100]):
            world.publish(f"k{next(key)}")
        world.link(next(ends), poison(), end=LinkCut())
        world.now += random_edge.uniform(0.5, 30)
        if kind != "shorter than a round trip":
            assert world.parked == []
    # Nothing at all comes through for hours: even then hardly anything is given up.
    assert len(world.parked) <= 8


def test_a_black_hole_after_each_writing_brings_caution_alone() -> None:
    """C42: silence is the network's as well; what counts is an interval without an answer, as ever."""
    world = World(10)
    for _ in range(5):
        world.link(ROUND_TRIP / 2, poison(), end=LinkCut(silent=True))
    assert world.parked == []
    assert world.cuts[NODE].links == 2
    assert world.live(poison(), 2) == 1
    assert world.pending == []
    assert world.cuts[NODE] == Cuts()


def test_silence_after_each_writing_never_parks_by_itself() -> None:
    """C42."""
    world = World(10)
    for _ in range(30):
        world.link(1e9, lambda _message_id: LinkCut(silent=True))
        world.now += 30
    assert world.parked == []
    assert world.cuts[NODE].links == 2


def test_a_link_that_ends_during_its_rest_takes_the_suspicion_back() -> None:
    """C42: it ended without the message."""
    world = World(10)
    for _ in range(4):
        world.link(1e9, poison("k1v1"))
    assert world.cuts[NODE].links == 4
    world.link(SETTINGS.rest_seconds * 0.29, poison("k1v1"), end=LinkCut())
    assert world.cuts[NODE].links == 0
    assert world.parked == []
    assert world.live(poison("k1v1"), 20) == 6


def test_an_edge_that_closes_normally_each_time_takes_four_times_as_long() -> None:
    """C42: a client's library says 1000 whyever it is closed, and what is behind must not wait for ever."""
    world = World(100)
    assert world.live(poison("k7v1", code=1000), 40) == 4 * SETTINGS.max_cut_links + 1
    assert world.parked == ["k7v1"]
    assert world.rows["k7"].reason.startswith("its edge ended 20 links in a row")
    assert world.pending == []
    assert len(set(world.acknowledged)) == 99


@pytest.mark.parametrize("code", [1001, 1012, 1013])
def test_an_edge_that_takes_its_leave_objects_to_nothing(code: int) -> None:
    """C42."""
    world = World(10)
    for _ in range(20):
        world.link(1e9, poison("k1v1", code=code))
    assert world.parked == []
    assert NODE not in world.cuts


def test_messages_are_held_for_few_seconds_and_only_while_one_is_doubtful() -> None:
    """C42: those behind wait for the rest of a link alone, and no more once the culprit is parked."""
    world = World(100)
    world.live(poison("k1v1"), 20)
    assert len(world.held) == 4  # links 3, 4 and 5, and 6 for what else was in flight
    assert max(world.held) <= SETTINGS.rest_seconds
    world.publish("k200")
    assert world.live(poison(), 2) == 1
    assert len(world.held) == 4


def test_an_edge_that_ends_every_link_has_its_backlog_parked_ever_more_slowly() -> None:
    """C42: the fault is the edge's then; repairing it finds nearly everything pending."""
    world = World(100)
    for _ in range(200):
        world.link(1e9, lambda _message_id: LinkCut())
        world.now += 30
    assert 1 <= len(world.parked) <= 8
    assert world.live(poison(), 5) == 1
    assert len(world.acknowledged) == 100 - len(world.parked)


def test_an_acknowledgement_ends_the_slowness() -> None:
    """C42: one poison message a day is parked in five links each time."""
    world = World(0)
    for day in range(5):
        world.publish(f"good{day}")
        world.publish(f"bad{day}")
        assert world.live(poison(*(f"bad{n}v1" for n in range(5))), 20) == 6
    assert len(world.parked) == 5


def test_a_parked_message_that_waits_again_has_all_its_links_again() -> None:
    """C42: redelivered it goes alone soon; a newer version is another message."""
    world = World(3)
    world.live(poison("k1v1"), 20)
    ledger = world.ledger()
    ledger.unpark(world.node, world.rows["k1"], int(world.now * 1000))
    assert world.live(poison("k1v1"), 20) == 6
    assert world.parked == ["k1v1"]
    world.publish("k1", 2)
    assert world.live(poison("k1v1"), 20) == 1
    assert world.parked == world.pending == []


def test_a_message_that_an_edge_swallows_is_not_the_culprit_of_later_cuts() -> None:
    """C42: no acknowledgement ever comes for an unknown operation; those behind it are answered."""
    world = World(3)

    def swallow(world: World) -> None:
        policy = NodeDelivery(NODE, next(world.epochs), SETTINGS, lambda: 0.0)
        loaded = world.ledger().apply(Claim(NODE, policy.epoch, 0))
        assert isinstance(loaded, Loaded)
        entries = [entry_of(row, world.now, 0) for row in loaded.rows]
        for entry in entries:
            entry.body = b"x"
        sends = [a for a in policy.loaded(entries, loaded.last_seq, 0.0, 0) if isinstance(a, Send)]
        policy.written(len(sends), 0, 0.0, 0)
        policy.acknowledged("k2v1", 0.1, 0)
        assert policy.cut(LinkCut(1009), 0.2, 0, 0.1) == []

    for _ in range(6):
        swallow(world)
    assert world.parked == []


def test_a_cut_long_after_the_writing_counts_nothing() -> None:
    """C42: unless the edge says that it objects to what it was sent."""
    policy = NodeDelivery(NODE, 1, SETTINGS, lambda: 0.0)
    entry = Entry("k", 1, "m", body=b"x")
    policy.loaded([entry], 1, 0.0, 0)
    policy.written(1, 0, 0.0, 0)
    assert policy.cut(LinkCut(), SETTINGS.watch_seconds + 1, 0, 1.0) == []
    assert policy.cut(LinkCut(1009), SETTINGS.watch_seconds + 1, 0, 1.0) != []


def test_an_edge_that_is_heard_after_its_time_has_passed_ends_the_caution() -> None:
    """C42: and one that is not heard does not."""
    policy = NodeDelivery(NODE, 1, SETTINGS, lambda: 0.0)
    entries = [Entry(f"k{n}", n, f"m{n}", path=f"p{n}", body=b"x") for n in (1, 2, 3)]
    assert policy.loaded(entries, 3, 0.0, 0, cuts=Cuts(1, 3, 2, 0)) == []
    rest = policy.next_deadline()
    assert rest is not None
    assert [a.entry.key for a in policy.deadline(rest, 0) if isinstance(a, Send)] == ["k1"]
    policy.written(1, 0, rest, 0)
    assert policy.doubtful_links == 2
    policy.deadline(rest + SETTINGS.watch_seconds + 1, 0, rest)
    assert policy.doubtful_links == 2
    actions = policy.deadline(rest + 2 * SETTINGS.watch_seconds + 2, 0, rest + SETTINGS.watch_seconds)
    assert [a.op.cuts for a in actions if isinstance(a, Keep)] == [Cuts()]
    assert {a.entry.key for a in actions if isinstance(a, Send)} >= {"k2", "k3"}
