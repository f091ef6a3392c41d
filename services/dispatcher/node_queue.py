"""The pending messages of one node: by key, by id, by path, and which of them is next. Pure."""

import heapq
from bisect import insort
from collections.abc import Iterable
from operator import attrgetter
from typing import Any

from services.dispatcher.connector_room import ConnectorRoom
from services.dispatcher.entry import Entry, EntryState
from services.dispatcher.inflight import Window

READY, FETCHING, IN_FLIGHT = EntryState.READY, EntryState.FETCHING, EntryState.IN_FLIGHT
PARKED, GONE = EntryState.PARKED, EntryState.GONE
_by_seq = attrgetter("seq")


class NodeQueue:
    """What is pending for a node and the window it is sent through.

    At most `held_bytes` of bodies are kept for messages that come with one; the others are loaded
    when their turn comes.
    """

    __slots__ = (
        "_held_bytes",
        "_most_held_bytes",
        "_paths",
        "_ready",
        "_unrecorded",
        "by_id",
        "entries",
        "fetching",
        "fetching_bytes",
        "parked",
        "room",
        "window",
    )

    def __init__(self, window: Window, held_bytes: int, room: ConnectorRoom[Any]) -> None:
        self.window = window
        self.room = room
        self.entries: dict[str, Entry] = {}  # key -> its newest message
        self.by_id: dict[str, Entry] = {}  # also superseded ones that are in flight
        self.fetching = 0  # entries whose body is being loaded
        self.fetching_bytes = 0
        self.parked = 0  # entries that wait for an operator or a publisher
        self._most_held_bytes = held_bytes
        self._held_bytes = 0
        self._paths: dict[str, list[Entry]] = {}  # entries of one path in order of seq
        self._ready: list[tuple[int, int, Entry]] = []  # (-priority, seq, entry)
        self._unrecorded: dict[tuple[str, int], Entry] = {}  # (key, seq) -> an entry that holds its path

    def add(self, entry: Entry) -> None:
        """A message of a key that has none."""
        body, entry.body = entry.body, None
        self.entries[entry.key] = entry
        self._hold_body(entry, body)
        self.by_id[entry.message_id] = entry
        if entry.path and not entry.is_answer:  # an answer is about a request, it deletes nothing
            insort(self._paths.setdefault(entry.path, []), entry, key=_by_seq)
        if entry.state == READY:
            self.push(entry)
        elif entry.state == PARKED:
            self.parked += 1

    def replaced_by(self, entry: Entry) -> list[Entry]:
        """What another key has under the path of a message that was accepted later: an edge has one object
        there, so the outbox has ended these; deletes are sent all the same, before it."""
        siblings = self._paths.get(entry.path)
        if not siblings or entry.is_answer:
            return []
        return [
            other
            for other in siblings
            if other.seq < entry.seq and other.key != entry.key and not other.is_delete
        ]

    def is_outlived(self, entry: Entry) -> bool:
        """Whether such a later message is here already: what is told or read of this one is old."""
        siblings = self._paths.get(entry.path)
        if not siblings or entry.is_answer or entry.is_delete:
            return False
        return siblings[-1].seq > entry.seq and siblings[-1].key != entry.key

    def met(self, told: Entry) -> None:
        """An accepted message that was read before it was told: what was told has its body."""
        known = self.entries.get(told.key)
        if known is not None and known.seq == told.seq and known.state == READY and known.body is None:
            self._hold_body(known, told.body)

    def push(self, entry: Entry) -> None:
        """A ready entry waits for its turn. Pushing it twice does no harm."""
        heapq.heappush(self._ready, (-entry.priority, entry.seq, entry))

    def first(self) -> Entry | None:
        """The entry whose turn it is: by priority, then in the node's order, and not behind an earlier
        message of its path."""
        while self._ready:
            entry = self._ready[0][2]
            if entry.state == READY and self.earlier(entry) is None:
                return entry
            heapq.heappop(self._ready)  # one that waits is pushed again when the earlier one is done
        return None

    def pop(self) -> None:
        """Takes `first` out of the waiting ones."""
        heapq.heappop(self._ready)

    def fetch(self, entry: Entry) -> None:
        """Its body is being loaded."""
        entry.state = FETCHING
        self.fetching += 1
        self.fetching_bytes += entry.size_bytes
        self.room.fetching_bytes += entry.size_bytes

    def fetched(self, entry: Entry, body: bytes | None, size_bytes: int = 0) -> None:
        """Its body is here, or could not be had for now; it turned out to have `size_bytes`."""
        self._end_fetch(entry)
        entry.state = READY
        # Rows of former releases count for less than they are.
        entry.size_bytes = max(entry.size_bytes, size_bytes, len(body or b""))
        if body is not None:
            entry.body = body
            self._held_bytes += entry.size_bytes
        self.push(entry)

    def supersede(self, entry: Entry) -> None:
        """A newer message of its key takes its place; in flight it keeps its slot until ack or interval."""
        entry.superseded = True
        del self.entries[entry.key]
        self._leave_path(entry)

    def drop(self, entry: Entry, *, is_recorded: bool = True) -> None:
        """Forgets an entry and frees what it held; its path only once its end is recorded."""
        self._release(entry)
        if entry.state == PARKED:
            self.parked -= 1
        entry.state = GONE
        if self.entries.get(entry.key) is entry:
            del self.entries[entry.key]
        if self.by_id.get(entry.message_id) is entry:
            del self.by_id[entry.message_id]
        if is_recorded or not self._hold_path(entry):
            self._unrecorded.pop((entry.key, entry.seq), None)
            self._leave_path(entry)

    def park(self, entry: Entry) -> None:
        """Keeps the entry's place, frees what it held; once that is recorded, later ones of its path pass."""
        self._release(entry)
        entry.state = PARKED
        self.parked += 1
        self._hold_path(entry)

    def again(self, entry: Entry) -> None:
        """One in flight whose body is not here waits for its turn to be sent once more."""
        self.window.remove(entry)
        entry.state = READY
        self.push(entry)

    def forget_body(self, entry: Entry) -> None:
        """It is in the socket: until it has to be sent again, its body is in the store alone."""
        if entry.body is not None:
            self._held_bytes -= entry.size_bytes
            entry.body = None

    def unpark(self, entry: Entry) -> None:
        """A parked entry is sent once more."""
        self.parked -= 1
        entry.state = READY
        self.push(entry)

    def recorded(self, key: str, seq: int) -> bool:
        """A record of an entry's end or parking is durable; True if a later one of its path may go now."""
        entry = self._unrecorded.get((key, seq))
        if entry is None:
            return False
        entry.unrecorded -= 1
        if entry.unrecorded:
            return False
        del self._unrecorded[key, seq]
        siblings = self._paths[entry.path]  # the entry itself among them
        if entry.state == GONE:
            self._leave_path(entry)
        else:
            self._push_siblings(siblings)
        return bool(siblings)

    def earlier(self, entry: Entry) -> Entry | None:
        """The earliest delete of another object of the path that is neither over nor parked, durably. An
        edge deletes by path, so a delete and what follows it there go one after the other, and a restart
        that forgets how the delete ended must not find the later one sent; answers wait for none."""
        if entry.is_answer:
            return None
        for other in self._paths.get(entry.path, ()):
            if other is entry:
                return None
            if other.is_delete and (other.unrecorded or other.state != PARKED) and other.key != entry.key:
                return other
        return None

    def parked_before(self, entry: Entry) -> list[Entry]:
        """Parked deletes of the path that sending `entry` ends."""
        siblings = self._paths.get(entry.path, ())
        if entry.is_answer or len(siblings) < 2:
            return []
        return [other for other in siblings if other.seq < entry.seq and other.state == PARKED]

    def _hold_body(self, entry: Entry, body: bytes | None) -> None:
        if body is not None and self._held_bytes + entry.size_bytes <= self._most_held_bytes:
            entry.body = body
            self._held_bytes += entry.size_bytes

    def _release(self, entry: Entry) -> None:
        if entry.state == IN_FLIGHT:
            self.window.remove(entry)
        elif entry.state == FETCHING:
            self._end_fetch(entry)
        if entry.body is not None:
            self._held_bytes -= entry.size_bytes
            entry.body = None

    def _end_fetch(self, entry: Entry) -> None:
        self.fetching -= 1
        self.fetching_bytes -= entry.size_bytes
        self.room.fetching_bytes -= entry.size_bytes

    def _hold_path(self, entry: Entry) -> bool:
        """The entry keeps its place in its path until one more record is durable; False if it has none."""
        if not entry.path or not entry.is_delete or entry.superseded:
            return False
        entry.unrecorded += 1
        self._unrecorded[entry.key, entry.seq] = entry
        return True

    def _leave_path(self, entry: Entry) -> None:
        siblings = self._paths.get(entry.path)
        if siblings is not None and entry in siblings:
            siblings.remove(entry)
            if siblings:
                self._push_siblings(siblings)
            else:
                del self._paths[entry.path]

    def _push_siblings(self, siblings: Iterable[Entry]) -> None:
        for other in siblings:
            if other.state == READY:
                self.push(other)  # it may have waited for the one that is done
