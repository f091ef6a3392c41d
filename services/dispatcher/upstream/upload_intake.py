"""Uploads that are not stored yet, and the links that must wait because of them. No I/O, no clock.

A link's reads pause when its node has too much waiting here, or anything at all while the store is in
trouble, or an upload that its share of the store has no room for; they go on when that has passed. A pause
has a limit: after it the link is closed, and what found no room in the share is dropped, for the close tells
so. What waits for a store in trouble stays. Nodes are stored in turn, one upload each: none waits behind
another's.
"""

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cloudhub.v1.message_pb2 import Message
from services.dispatcher.upstream.shares import Amount, Shares

# Of nodes without room so many are looked at again whenever some was made.
LOOKS_PER_CHANGE = 64
# Of a node without room so many are looked up in the store at once.
UNFIT_PER_NODE = 64


@dataclass(frozen=True, slots=True)
class IntakeBounds:
    """From `pause_*` of a node on its link pauses; at `most_*` of a node, or its share of `total_*`, uploads
    are refused."""

    pause_seconds: float
    pause_messages: int = 128  # below what a connector keeps for want of receipts
    pause_bytes: int = 4 * 1024 * 1024
    most_messages: int = 2048
    most_bytes: int = 16 * 1024 * 1024
    total_messages: int = 65_536
    total_bytes: int = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """An upload on its way to the store; `place` grows with arrival, `frame` is its number on the link."""

    node_id: str
    epoch: int
    place: int
    message: Message
    size_bytes: int
    frame: int = 0


@dataclass(frozen=True, slots=True)
class PauseReads:
    """Stop (or go on) reading from the link."""

    node_id: str
    epoch: int
    paused: bool


@dataclass(frozen=True, slots=True)
class GiveUp:
    """A node has waited for its uploads as long as it may: its link, if it is there still, is closed for
    `detail`, and `dropped` are not stored."""

    node_id: str
    epoch: int
    is_linked: bool
    detail: str
    dropped: tuple[Upload, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """What to do next: store `uploads`; look whether `unfit`, for which their node has no room, repeat what
    is stored. All of them stay here until `stored` and `judged`."""

    uploads: list[Upload] = field(default_factory=list)
    unfit: list[tuple[Upload, str]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.uploads or self.unfit)


@dataclass(slots=True)
class _Line:
    """One node's. `full` is the bound of its share that keeps its first upload out."""

    epoch: int
    waiting: deque[Upload] = field(default_factory=deque)
    size_bytes: int = 0
    closed: bool = False
    paused: bool = False
    full: str = ""


class UploadIntake:
    """The queue before the store."""

    def __init__(self, bounds: IntakeBounds) -> None:
        self.bounds = bounds
        self.trouble = ""  # why the store takes nothing now
        self._room = Shares(
            Amount(bounds.most_messages, bounds.most_bytes), Amount(bounds.total_messages, bounds.total_bytes)
        )
        self._lines: dict[str, _Line] = {}
        self._ready: OrderedDict[str, None] = OrderedDict()  # have something, and room for it as far as known
        self._full: OrderedDict[str, None] = OrderedDict()
        self._held_up: dict[str, float] = {}  # paused or full, since when, earliest first

    def __len__(self) -> int:
        return self._room.used.messages

    @property
    def size_bytes(self) -> int:
        """Of all that waits."""
        return self._room.used.size_bytes

    @property
    def is_ready(self) -> bool:
        """Whether something can be stored."""
        return bool(self._ready)

    @property
    def paused(self) -> int:
        """How many links are."""
        return sum(self._lines[node_id].paused for node_id in self._held_up)

    @property
    def full(self) -> int:
        """How many nodes wait for room in their share of the store."""
        return len(self._full)

    def refusal(self, node_id: str, size_bytes: int) -> str:
        """The bound that a further upload would pass; empty if it may come."""
        bound = self._room.refusal(node_id, size_bytes)
        return f"upload_{bound}" if bound else ""

    def add(self, upload: Upload, now: float) -> list[PauseReads]:
        """An upload came in that `refusal` had nothing against."""
        node_id = upload.node_id
        line = self._lines.get(node_id)
        if line is None:
            line = self._lines[node_id] = _Line(upload.epoch)
        elif line.epoch != upload.epoch:
            # Another link, or the same one under another dispatcher epoch: it reads until told otherwise.
            line.epoch, line.closed, line.paused = upload.epoch, False, False
            self._held_up.pop(node_id, None)
        line.waiting.append(upload)
        line.size_bytes += upload.size_bytes
        self._room.add(node_id, upload.size_bytes)
        if line.full:
            self._held_up.setdefault(node_id, now)
        else:
            self._ready[node_id] = None
        return self._pause(node_id, line, now)

    # -- to the store --------------------------------------------------------------------------

    def batch(self, most: int, most_bytes: int, shares: Shares) -> Batch:
        """The first ones of each node in turn, taken into its share; at least one if any can be stored."""
        batch = Batch()
        turns = deque((node_id, iter(self._lines[node_id].waiting)) for node_id in islice(self._ready, most))
        served: dict[str, None] = {}
        unfit: dict[str, int] = {}
        size = 0
        while turns and len(batch.uploads) + len(batch.unfit) < most:
            node_id, rest = turns.popleft()
            upload = next(rest, None)
            if upload is None:
                continue
            bound = shares.refusal(node_id, upload.size_bytes)
            if bound:
                served[node_id] = None
                batch.unfit.append((upload, bound))
                unfit[node_id] = unfit.get(node_id, 0) + 1
                # What comes behind one that cannot be told waits with it.
                if upload.message.sync and unfit[node_id] < UNFIT_PER_NODE:
                    turns.append((node_id, rest))
                continue
            if node_id in unfit:
                continue  # a smaller one: not before those are dealt with
            if batch.uploads and size + upload.size_bytes > most_bytes:
                break
            size += upload.size_bytes
            shares.add(node_id, upload.size_bytes)
            batch.uploads.append(upload)
            served[node_id] = None
            turns.append((node_id, rest))
        for node_id in served:
            self._ready.move_to_end(node_id)
        return batch

    def stored(self, uploads: Sequence[Upload]) -> list[PauseReads]:
        """These, the first ones of their nodes, are on disk or need not be; the store works."""
        for upload in uploads:
            line = self._lines[upload.node_id]
            first = line.waiting.popleft()
            assert first is upload, "stored out of turn"
            line.size_bytes -= upload.size_bytes
            self._room.remove(upload.node_id, upload.size_bytes)
            if not line.waiting:
                self._ready.pop(upload.node_id, None)
        nodes = dict.fromkeys(upload.node_id for upload in uploads)
        if self.trouble:
            self.trouble = ""
            nodes |= dict.fromkeys(self._held_up)
        return [effect for node_id in nodes for effect in self._resume(node_id)]

    def judged(self, unfit: Sequence[tuple[Upload, str]], now: float) -> list[PauseReads]:
        """These, the first ones of their nodes, are not on disk, have no room, and cannot be told so."""
        effects: list[PauseReads] = []
        for upload, bound in unfit:
            line = self._lines[upload.node_id]
            line.full = bound
            self._ready.pop(upload.node_id, None)
            self._full[upload.node_id] = None
            self._held_up.setdefault(upload.node_id, now)
            effects += self._pause(upload.node_id, line, now)
        return effects

    def room_made(self, shares: Shares) -> list[PauseReads]:
        """Something was taken out of the store: who may go on? A few are looked at each time, in turn."""
        effects: list[PauseReads] = []
        for node_id in list(self._full)[:LOOKS_PER_CHANGE]:
            self._full.move_to_end(node_id)
            line = self._lines[node_id]
            if not shares.refusal(node_id, line.waiting[0].size_bytes):
                self._not_full(node_id, line)
                self._ready[node_id] = None
                effects += self._resume(node_id)
        return effects

    def troubled(self, detail: str, now: float) -> list[PauseReads]:
        """The store takes nothing: every link that waits for it pauses."""
        if self.trouble == detail:
            return []
        self.trouble = detail
        return [effect for node_id, line in self._lines.items() for effect in self._pause(node_id, line, now)]

    # -- links ---------------------------------------------------------------------------------

    def link_ended(self, node_id: str, epoch: int) -> None:
        """Nobody waits for the link any more. What its node's share has no room for waits on for its time."""
        line = self._lines.get(node_id)
        if line is not None and line.epoch == epoch:
            line.closed, line.paused = True, False
            if not line.full:
                self._held_up.pop(node_id, None)
            self._forget_if_idle(node_id, line)

    def deadline(self) -> float | None:
        """When whoever has waited longest has waited enough."""
        since = next(iter(self._held_up.values()), None)
        return None if since is None else since + self.bounds.pause_seconds

    def overdue(self, now: float, describe: Callable[[str], str] = str) -> list[GiveUp]:
        """Who has waited too long; `describe` makes a sentence of the bound of a share."""
        given_up: list[GiveUp] = []
        for node_id, since in list(self._held_up.items()):
            if since + self.bounds.pause_seconds > now:
                break
            line = self._lines[node_id]
            why = self.trouble or "uploads come faster than they can be stored"
            dropped: tuple[Upload, ...] = ()
            if line.full:
                why = describe(line.full)
                dropped = tuple(line.waiting)
                line.waiting.clear()
                line.size_bytes = 0
                self._room.set(node_id, Amount())
                self._not_full(node_id, line)
            detail = f"uploads found no room for {self.bounds.pause_seconds:g} s: {why}"
            given_up.append(GiveUp(node_id, line.epoch, not line.closed, detail, dropped))
            self.link_ended(node_id, line.epoch)
        return given_up

    def _pause(self, node_id: str, line: _Line, now: float) -> list[PauseReads]:
        bounds = self.bounds
        is_crowded = len(line.waiting) >= bounds.pause_messages or line.size_bytes >= bounds.pause_bytes
        if line.closed or line.paused or not (is_crowded or self.trouble or line.full):
            return []
        line.paused = True
        self._held_up.setdefault(node_id, now)
        return [PauseReads(node_id, line.epoch, True)]

    def _resume(self, node_id: str) -> list[PauseReads]:
        line, bounds = self._lines[node_id], self.bounds
        effects: list[PauseReads] = []
        is_calm = len(line.waiting) * 2 <= bounds.pause_messages and line.size_bytes * 2 <= bounds.pause_bytes
        if is_calm and not line.full and not self.trouble:
            self._held_up.pop(node_id, None)
            if line.paused:
                line.paused = False
                effects.append(PauseReads(node_id, line.epoch, False))
        self._forget_if_idle(node_id, line)
        return effects

    def _not_full(self, node_id: str, line: _Line) -> None:
        line.full = ""
        self._full.pop(node_id, None)

    def _forget_if_idle(self, node_id: str, line: _Line) -> None:
        if not line.waiting and not line.paused:
            self._ready.pop(node_id, None)
            self._held_up.pop(node_id, None)
            del self._lines[node_id]
