"""The state of one admitted link, without sockets and clocks (docs/architecture.md).

The shell tells it what happened and asks `reading` afterwards: whether input may be looked at.
"""

import enum
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from services.connector.inbound import InboundLedger
from services.connector.outbound import OutboundLanes
from services.connector.tokens import TokenBucket

Tag = TypeVar("Tag")


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """The bounds of one link; `docs/operations/settings.md` tells how to choose them."""

    queued_most_frames: int = 4096
    queued_most_bytes: int = 8 * 1024 * 1024
    unreceipted_most_frames: int = 256
    unreceipted_most_bytes: int = 1024 * 1024
    frames_per_second: float = 1000.0
    frames_burst: float = 2000.0


class Pause:
    """Why input is not looked at: bits of an int, because enum.Flag costs microseconds per frame."""

    # The dispatcher has not taken over what came before.
    RECEIPTS: Final = 1
    # More frames per second than a link may send.
    RATE: Final = 2
    # The dispatcher asked for it.
    DISPATCHER: Final = 4
    # The stream to the dispatcher is behind.
    STREAM: Final = 8


class Accepted(enum.Enum):
    """What became of a frame from the dispatcher; the value of a refusal is the metric label."""

    QUEUED = "queued"
    REPEATED = "number_repeated"
    OVERFLOW = "queue_full"


class Link(Generic[Tag]):
    """One admitted link. `epoch` is its session's fencing token, compared for equality only."""

    __slots__ = ("_bucket", "_pauses", "epoch", "frames_sent", "inbound", "outbound")

    def __init__(self, epoch: int, limits: LinkLimits, now: float) -> None:
        self.epoch = epoch
        self.outbound: OutboundLanes[Tag] = OutboundLanes(limits.queued_most_frames, limits.queued_most_bytes)
        self.inbound = InboundLedger(limits.unreceipted_most_frames, limits.unreceipted_most_bytes)
        self.frames_sent = 0
        self._bucket = TokenBucket(limits.frames_per_second, limits.frames_burst, now)
        self._pauses = 0

    @property
    def reading(self) -> bool:
        """Whether input may be looked at."""
        return not self._pauses

    @property
    def pauses(self) -> int:
        """Why it may not: bits of Pause."""
        return self._pauses

    def move(self, epoch: int) -> tuple[list[bytes], list[Tag]]:
        """Another dispatcher has the session, under this epoch: the frames to hand to it, numbered from 1,
        and the tags of the frames that it sends again itself."""
        self.epoch = epoch
        self.detach()
        return self.inbound.restart(), self.outbound.restart()

    def detach(self) -> None:
        """The dispatcher is gone, and with it what it asked for; frames are kept for the next one."""
        self._pauses &= ~(Pause.DISPATCHER | Pause.STREAM)

    def owns(self, epoch: int) -> bool:
        """Whether an element under this epoch belongs to the link's present session."""
        return epoch == self.epoch

    def spend_frame(self, now: float) -> bool:
        """Counts one frame of any kind against the rate; False when that pauses the link."""
        if self._bucket.take(now):
            return True
        self._pauses |= Pause.RATE
        return False

    def rate_pause_seconds(self, tokens: float) -> float:
        """How long a pause over the rate lasts, so that some frames can follow it at once."""
        return self._bucket.refill_seconds(tokens)

    def receive(self, frame: bytes) -> int:
        """Numbers a frame for the dispatcher."""
        number = self.inbound.record(frame)
        if self.inbound.full:
            self._pauses |= Pause.RECEIPTS
        return number

    def receipt(self, through: int) -> bool:
        """The dispatcher took frames over; False if it names one that never was."""
        known = self.inbound.receipt(through)
        if not self.inbound.full:
            self._pauses &= ~Pause.RECEIPTS
        return known

    def pause(self, reason: int) -> None:
        """Stops reading for this reason too."""
        self._pauses |= reason

    def resume(self, reason: int) -> None:
        """This reason is over; others may remain."""
        self._pauses &= ~reason

    def send(self, number: int, frame: bytes, tag: Tag | None = None, *, direct: bool) -> Accepted:
        """Queues a frame for the edge. An overflow is the dispatcher's breach of its window."""
        if not self.outbound.is_next(number, direct=direct):
            return Accepted.REPEATED
        if not self.outbound.fits(len(frame)):
            return Accepted.OVERFLOW
        self.outbound.queue(number, frame, tag, direct=direct)
        return Accepted.QUEUED
