"""Uploads that are not stored yet, and the links that must wait because of them. No I/O, no clock.

A link's reads pause when its node has too much waiting here, or anything at all while the store is in
trouble (it does not answer, or it is full); they go on when that has passed. A pause has a limit:
after it the link is closed. What was taken in stays until it is stored.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice

from cloudhub.v1.message_pb2 import Message


@dataclass(frozen=True, slots=True)
class IntakeBounds:
    """From `pause_*` of a node on its link pauses, at `most_*` of a node or `total_*` uploads are refused."""

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
class CloseLink:
    """The link has waited for its uploads as long as it may."""

    node_id: str
    epoch: int
    detail: str


@dataclass(slots=True)
class _Line:
    epoch: int
    messages: int = 0
    size_bytes: int = 0
    closed: bool = False


@dataclass(slots=True)
class UploadIntake:
    """The queue before the store."""

    bounds: IntakeBounds
    trouble: str = ""  # why the store takes nothing now
    size_bytes: int = 0
    _waiting: deque[Upload] = field(default_factory=deque)
    _lines: dict[str, _Line] = field(default_factory=dict)
    _paused: dict[str, float] = field(default_factory=dict)  # since when, earliest first

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def paused(self) -> int:
        """How many links are."""
        return len(self._paused)

    def refusal(self, node_id: str, size_bytes: int) -> str:
        """The bound that a further upload would pass; empty if it may come."""
        bounds, line = self.bounds, self._lines.get(node_id)
        if line is not None and line.messages >= bounds.most_messages:
            return "upload_node_messages"
        if line is not None and line.size_bytes + size_bytes > bounds.most_bytes:
            return "upload_node_bytes"
        if len(self._waiting) >= bounds.total_messages:
            return "upload_total_messages"
        if self.size_bytes + size_bytes > bounds.total_bytes:
            return "upload_total_bytes"
        return ""

    def add(self, upload: Upload, now: float) -> list[PauseReads]:
        """An upload came in that `refusal` had nothing against."""
        line = self._lines.get(upload.node_id)
        if line is None:
            line = self._lines[upload.node_id] = _Line(upload.epoch)
        elif line.epoch != upload.epoch:
            # Another link, or the same one under another dispatcher epoch: it reads until told otherwise.
            self._paused.pop(upload.node_id, None)
            line.epoch, line.closed = upload.epoch, False
        line.messages += 1
        line.size_bytes += upload.size_bytes
        self.size_bytes += upload.size_bytes
        self._waiting.append(upload)
        return self._pause(upload.node_id, line, now)

    def batch(self, most: int, most_bytes: int) -> list[Upload]:
        """The first ones, which stay here until `stored`; at least one if any waits."""
        batch: list[Upload] = []
        size = 0
        for upload in islice(self._waiting, most):
            size += upload.size_bytes
            if batch and size > most_bytes:
                break
            batch.append(upload)
        return batch

    def stored(self, batch: Sequence[Upload]) -> list[PauseReads]:
        """These, the first ones, are on disk; the store works."""
        for upload in batch:
            self._waiting.popleft()
            line = self._lines[upload.node_id]
            line.messages -= 1
            line.size_bytes -= upload.size_bytes
            self.size_bytes -= upload.size_bytes
            if not line.messages and upload.node_id not in self._paused:
                del self._lines[upload.node_id]
        self.trouble = ""
        resumed: list[PauseReads] = []
        for node_id in list(self._paused):
            line = self._lines[node_id]
            if (
                line.messages * 2 <= self.bounds.pause_messages
                and line.size_bytes * 2 <= self.bounds.pause_bytes
            ):
                del self._paused[node_id]
                resumed.append(PauseReads(node_id, line.epoch, False))
                if not line.messages:
                    del self._lines[node_id]
        return resumed

    def troubled(self, detail: str, now: float) -> list[PauseReads]:
        """The store takes nothing: every link that waits for it pauses."""
        if self.trouble == detail:
            return []
        self.trouble = detail
        return [effect for node_id, line in self._lines.items() for effect in self._pause(node_id, line, now)]

    def link_ended(self, node_id: str, epoch: int) -> None:
        """Nobody waits for the link any more."""
        line = self._lines.get(node_id)
        if line is not None and line.epoch == epoch:
            line.closed = True
            self._paused.pop(node_id, None)

    def deadline(self) -> float | None:
        """When the longest pause is over."""
        since = next(iter(self._paused.values()), None)
        return None if since is None else since + self.bounds.pause_seconds

    def overdue(self, now: float) -> list[CloseLink]:
        """Links that have paused too long."""
        closes: list[CloseLink] = []
        why = self.trouble or "uploads come faster than they can be stored"
        for node_id, since in list(self._paused.items()):
            if since + self.bounds.pause_seconds > now:
                break
            line = self._lines[node_id]
            detail = f"uploads found no room for {self.bounds.pause_seconds:g} s: {why}"
            closes.append(CloseLink(node_id, line.epoch, detail))
            self.link_ended(node_id, line.epoch)
        return closes

    def _pause(self, node_id: str, line: _Line, now: float) -> list[PauseReads]:
        bounds = self.bounds
        crowded = line.messages >= bounds.pause_messages or line.size_bytes >= bounds.pause_bytes
        if line.closed or node_id in self._paused or not (crowded or self.trouble):
            return []
        self._paused[node_id] = now
        return [PauseReads(node_id, line.epoch, True)]
