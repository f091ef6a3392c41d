"""What is sent how after an edge ended its links with a message unanswered. Pure.

A message that its edge cannot take makes the edge end the link, and would be sent first again over the next
one, for ever. Networks end links too, at any message. What tells the two apart is repetition: the same first
unanswered message, link after link, each ended by the edge soon after the message was written. From the third
link on the doubtful messages are sent one at a time, after a rest of random length, so that the culprit is
certain and no coincidence lasts: a network that ends links anyway does so during the rest as well.
"""

from collections.abc import Callable
from typing import NamedTuple

from services.dispatcher.entry import Entry, EntryState
from services.dispatcher.outbox.records import NO_CUTS, Cuts

# After so many links in a row the next one is handled with caution.
DOUBTFUL_LINKS = 2
# An edge that ends every link before it answers anything is not brought to have its backlog parked message by
# message: each one more takes twice as many links, up to so many doublings.
MOST_DOUBLINGS = 3
# By these an edge says that it is what it was sent (RFC 6455, 7.4.1); a network never says them.
OBJECTIONS = frozenset({1002, 1003, 1007, 1008, 1009, 1010, 1011})
# By these it says that it goes away or is busy, for reasons of its own.
_REASONS = frozenset({1001, 1012, 1013})
# What a client's library says when it is closed, whyever: it takes four times as many links.
_NORMAL_CLOSURE = 1000
_NORMAL_DOUBLINGS = 2
_FAREWELLS = _REASONS | {_NORMAL_CLOSURE}


class LinkCut(NamedTuple):
    """How a link ended that neither the hub nor the network ended. `code` is that of the edge's close frame,
    0 if none came; with `silent` nothing more came from the edge, whoever is at fault."""

    code: int = 0
    silent: bool = False

    @property
    def kind(self) -> str:
        """The metric label."""
        if self.silent:
            return "silence"
        return "objection" if self.code in OBJECTIONS else "farewell" if self.code in _FAREWELLS else "reset"

    @property
    def words(self) -> str:
        """For people."""
        if self.silent:
            return "fell silent"
        return f"was closed with {self.code}" if self.code else "ended without a close frame"


class Verdict(NamedTuple):
    """What a cut comes to: what is to be stored, which message it counts for, and whether that is parked."""

    cuts: Cuts
    culprit: Entry | None = None
    links: int = 0
    is_over: bool = False


class Caution:
    """Of one session. Times are monotonic seconds."""

    __slots__ = (
        "_answered",
        "_is_on",
        "_max_cut_links",
        "_rest_seconds",
        "_rest_until",
        "_watch_seconds",
        "_watched",
        "cuts",
    )

    def __init__(self, max_cut_links: int, rest_seconds: float, watch_seconds: float) -> None:
        self.cuts = NO_CUTS
        self._max_cut_links = max_cut_links
        self._rest_seconds = rest_seconds
        self._watch_seconds = watch_seconds
        self._is_on = False
        self._rest_until: float | None = None
        self._watched: tuple[float, Entry] | None = None  # when to look at it, and the only one in flight
        self._answered = 0

    @property
    def is_on(self) -> bool:
        """Whether messages are sent one at a time."""
        return self._is_on

    def begin(self, now: float, spread: Callable[[], float]) -> None:
        """The session starts to send; with caution if its node's links were ended often enough."""
        if self.cuts.links >= DOUBTFUL_LINKS:
            self._is_on = True
            self._rest_until = now + self._rest_seconds * (0.3 + 0.7 * spread())

    def is_doubtful(self, entry: Entry) -> bool:
        """Whether it may be the one over which the links were ended."""
        return entry.seq <= self.cuts.through_seq and entry.state != EntryState.PARKED

    def end(self) -> Cuts | None:
        """Everything doubtful is over, or did no harm: what is to be stored, if that is new."""
        self._is_on, self._rest_until, self._watched = False, None, None
        before, self.cuts = self.cuts, Cuts(parked=self.cuts.parked)
        return self.cuts if self.cuts != before else None

    def rests(self, now: float) -> bool:
        """Whether nothing is to be sent yet."""
        if self._rest_until is not None and now >= self._rest_until:
            self._rest_until = None
        return self._rest_until is not None

    def written(self, entry: Entry, now: float) -> None:
        """The bytes of the only message in flight are in the socket."""
        if self._is_on and self._watched is None:
            self._watched = (now + self._watch_seconds, entry)

    def answered(self, entry: Entry) -> Cuts | None:
        """The edge acknowledged or refused it: what is to be stored, if that is new."""
        self._answered = max(self._answered, entry.number)
        self._watched = None
        if self.cuts.parked:
            self.cuts = self.cuts._replace(parked=0)
            return self.cuts
        return None

    def wake_at(self) -> float | None:
        """When to look again."""
        if self._rest_until is not None:
            return self._rest_until
        return self._watched[0] if self._watched else None

    def is_harmless(self, now: float, heard_at: float) -> bool:
        """Whether the message in flight has had its time and the edge was heard since."""
        if self._watched is None or now < self._watched[0]:
            return False
        entry = self._watched[1]
        if entry.state != EntryState.IN_FLIGHT:
            self._watched = None
        elif heard_at > (entry.first_written_at or now):
            return True
        else:
            self._watched = (now + self._watch_seconds, entry)
        return False

    def judge(self, cut: LinkCut, in_flight: list[Entry], now: float, heard_at: float) -> Verdict | None:
        """The link has ended so: what that comes to; None if nothing."""
        if cut.code in _REASONS:
            return None
        written = [entry for entry in in_flight if entry.first_written_at is not None]
        first = min(written, key=lambda entry: entry.number, default=None)
        if not in_flight and self._is_on and not cut.silent:
            # It ends links without any of them: over none of them, then.
            self.cuts = Cuts(parked=self.cuts.parked)
            return Verdict(self.cuts)
        if first is None or first.is_answer or first.superseded or first.number < self._answered:
            return None
        assert first.first_written_at is not None
        ended_at = heard_at if cut.silent else now
        if ended_at - first.first_written_at > self._watch_seconds and cut.code not in OBJECTIONS:
            return None  # the edge lived with it
        before = self.cuts
        if self._is_on:
            links = before.links + 1 if first.seq == before.seq else DOUBTFUL_LINKS + 1
            through_seq = max(before.through_seq, first.seq)
        else:
            links = before.links + 1 if first.seq == before.seq else 1
            through_seq = max(entry.seq for entry in written)
        if cut.silent:
            # Networks fall silent too. An interval without an answer counts by itself.
            links = min(links, max(before.links, DOUBTFUL_LINKS))
        needed = self._max_cut_links
        if cut.code not in OBJECTIONS:
            least = _NORMAL_DOUBLINGS if cut.code == _NORMAL_CLOSURE else 0
            needed <<= max(min(before.parked, MOST_DOUBLINGS), least)
        if links >= needed:
            self.cuts = Cuts(0, through_seq, DOUBTFUL_LINKS, before.parked + 1)
            return Verdict(self.cuts, first, links, is_over=True)
        self.cuts = Cuts(first.seq, through_seq, links, before.parked)
        return Verdict(self.cuts, first, links)
