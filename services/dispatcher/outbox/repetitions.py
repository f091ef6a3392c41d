"""Lines of history that say the same again and again are one line with a count. Pure.

The first ones of an hour have lines of their own; what follows is counted in the last of them, as long as
nothing else happens to the message. So a link that comes and goes, or a publisher that is refused in a loop,
makes a few lines an hour. What is not known any more, after a restart for instance, begins anew.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from services.dispatcher.outbox.event_ids import EventIds
from services.dispatcher.outbox.records import Event, EventKind

MERGE_MS = 3_600_000
# So many of an hour are told one by one, and then one more, in which the others are counted.
ALONE = 8
# About 800 bytes each.
MAX_OPEN_LINES = 16_384

_SENT, _REJECTED, _DROPPED = EventKind.SENT, EventKind.REJECTED, EventKind.DROPPED
_NOTED = EventKind.NOTED

_Topic = tuple[str, ...]


class Line(NamedTuple):
    """An event and its id."""

    event_id: int
    event: Event


class _Open(NamedTuple):
    """The last line about a topic, how many there are of it, and when the first of them was."""

    event_id: int
    event: Event
    lines: int
    since_ms: int


class Written(NamedTuple):
    """What a transaction writes."""

    new: list[Line]
    changed: list[Line]  # lines that were written before, and what they say now


def _topic(event: Event) -> _Topic:
    """What must be the same in events that are counted in one line. Attempts are those of one message; of
    refusals and drops each has a message of its own, and the last one's id is kept; notes have none."""
    kind = event.kind
    if kind is _REJECTED:
        return (event.node_id, event.key, str(event.version), event.reason, "")
    if kind is _DROPPED:
        return (event.node_id, event.reason, "")
    if kind is _NOTED:
        return (event.node_id, event.reason.partition(":")[0], "noted")
    return (event.node_id, event.message_id)


def _merged(line: Event, event: Event) -> Event:
    return line._replace(
        message_id=event.message_id,
        attempt=event.attempt,
        repeats=line.repeats + event.repeats + 1,
        last_at_ms=max(event.at_ms, event.last_at_ms),
    )


@dataclass(slots=True)
class Transaction:
    """What one transaction writes; `confirm` when it is durable."""

    lines: "OpenLines"
    merge_ms: int
    _open: dict[_Topic, _Open | None] = field(default_factory=dict)  # None: no longer open

    def lay(self, events: Iterable[Event], ids: EventIds) -> Written:
        """Gives each event a line of its own or counts it in one that is open."""
        new: dict[int, Event] = {}
        changed: dict[int, Event] = {}
        for event in events:
            topic = _topic(event)
            kind = event.kind
            found = self._find(topic)
            if kind is not _SENT and kind is not _REJECTED and kind is not _DROPPED and kind is not _NOTED:
                if found is not None:
                    self._open[topic] = None
                new[ids.next(event.at_ms)] = event
                continue
            goes_on = found is not None and 0 <= event.at_ms - found.since_ms < self.merge_ms
            if found is None or not goes_on:
                line = _Open(ids.next(event.at_ms), event, 1, event.at_ms)
                new[line.event_id] = event
            elif found.lines <= ALONE:
                line = _Open(ids.next(event.at_ms), event, found.lines + 1, found.since_ms)
                new[line.event_id] = event
            else:
                line = found._replace(event=_merged(found.event, event))
                (new if line.event_id in new else changed)[line.event_id] = line.event
            self._open[topic] = line
        return Written([Line(*item) for item in new.items()], [Line(*item) for item in changed.items()])

    def _find(self, topic: _Topic) -> _Open | None:
        if topic in self._open:
            return self._open[topic]
        return self.lines.find(topic)

    def deleted(self, node_id: str, through: int | None = None) -> None:
        """Lines of a node were deleted that were written before: all of them, or up to this id."""
        for topic, line in self.lines.of(node_id):
            self._open.setdefault(topic, line)
        for topic, found in self._open.items():
            if topic[0] == node_id and found and (through is None or found.event_id <= through):
                self._open[topic] = None

    def confirm(self) -> None:
        """It is durable."""
        self.lines.keep(self._open)


class OpenLines:
    """Bounded; the line that was counted in longest ago is closed first."""

    def __init__(self, max_lines: int = MAX_OPEN_LINES, merge_ms: int = MERGE_MS) -> None:
        self._max_lines = max_lines
        self._merge_ms = merge_ms
        self._lines: OrderedDict[_Topic, _Open] = OrderedDict()

    def __len__(self) -> int:
        return len(self._lines)

    def begin(self) -> Transaction:
        """A transaction starts."""
        return Transaction(self, self._merge_ms)

    def find(self, topic: _Topic) -> _Open | None:
        """The open line about it."""
        return self._lines.get(topic)

    def keep(self, changes: dict[_Topic, _Open | None]) -> None:
        """What a transaction that is durable opened and closed."""
        for topic, line in changes.items():
            self._lines.pop(topic, None)
            if line is not None:
                self._lines[topic] = line
        while len(self._lines) > self._max_lines:
            self._lines.popitem(last=False)

    def of(self, node_id: str) -> Iterator[tuple[_Topic, _Open]]:
        """The open lines of a node; looks through all."""
        return ((topic, line) for topic, line in self._lines.items() if topic[0] == node_id)

    def close_before(self, event_id: int) -> None:
        """All lines with lower ids were deleted."""
        for topic in [topic for topic, line in self._lines.items() if line.event_id < event_id]:
            del self._lines[topic]
