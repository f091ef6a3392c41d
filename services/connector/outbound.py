"""What waits to be written to one link: two lanes and what of them is in the socket."""

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.connector.under_way import UnderWay

Tag = TypeVar("Tag")


@dataclass(frozen=True, slots=True)
class Written:
    """Cumulative numbers of the two lanes whose bytes the operating system has."""

    acknowledged_through: int
    direct_through: int


@dataclass(frozen=True, slots=True)
class Queued(Generic[Tag]):
    """One frame of a lane. `tag` is the caller's and comes back when the frame is written."""

    number: int
    frame: bytes
    tag: Tag | None


class OutboundLanes(Generic[Tag]):
    """The direct lane goes before every frame of the acknowledged lane not yet taken for writing.

    At most `most_frames` frames and `most_bytes` bytes wait; one frame always may.
    """

    __slots__ = (
        "_bytes",
        "_lanes",
        "_most_bytes",
        "_most_frames",
        "_queued",
        "_tags",
        "_taken",
        "_taken_bytes",
        "_under_way",
        "_written",
    )

    def __init__(self, most_frames: int, most_bytes: int) -> None:
        self._most_frames = most_frames
        self._most_bytes = most_bytes
        # Indexed by `direct`: 0 is the acknowledged lane, 1 the direct one.
        self._lanes: tuple[deque[Queued[Tag]], deque[Queued[Tag]]] = (deque(), deque())
        self._queued = [0, 0]
        self._taken = [0, 0]
        self._written = [0, 0]
        self._bytes = 0
        self._taken_bytes = 0
        self._tags: list[Tag] = []
        self._under_way = UnderWay()

    def __len__(self) -> int:
        return len(self._lanes[0]) + len(self._lanes[1])

    @property
    def queued_bytes(self) -> int:
        """Bytes that wait, not counting what was taken."""
        return self._bytes

    @property
    def unwritten_bytes(self) -> int:
        """Bytes that wait, and those taken that the operating system does not have yet."""
        return self._bytes + self._taken_bytes

    def is_next(self, number: int, *, direct: bool) -> bool:
        """Whether `number` grows the lane; anything else is a repetition."""
        return number > self._queued[direct]

    def fits(self, size: int) -> bool:
        """Whether a frame of this size may wait beside those that do."""
        waiting = len(self)
        return not waiting or (waiting < self._most_frames and self._bytes + size <= self._most_bytes)

    def queue(self, number: int, frame: bytes, tag: Tag | None = None, *, direct: bool) -> None:
        """Appends a frame; the caller has asked `is_next` and `fits`."""
        self._queued[direct] = number
        self._lanes[direct].append(Queued(number, frame, tag))
        self._bytes += len(frame)

    def take(self, most_bytes: int) -> list[bytes]:
        """The frames to write next, direct ones first: at least one, then up to `most_bytes`."""
        frames: list[bytes] = []
        size = 0
        for direct in (1, 0):
            lane = self._lanes[direct]
            while lane and (not frames or size + len(lane[0].frame) <= most_bytes):
                queued = lane.popleft()
                size += len(queued.frame)
                frames.append(queued.frame)
                self._taken[direct] = queued.number
                if queued.tag is not None:
                    self._tags.append(queued.tag)
            if lane:
                # The acknowledged lane must not fill the room that the next direct frame did not fit in.
                break
        self._bytes -= size
        self._taken_bytes += size
        return frames

    def given(self, given_bytes: int) -> None:
        """The transport has what was taken, and got so many bytes in all."""
        self._under_way.mark(self._taken[0], given_bytes)

    def is_under_way(self, number: int, confirmed_bytes: int) -> bool:
        """Whether the edge's host, which acknowledged so many bytes, may lack this frame of the acknowledged
        lane, which was given to the transport."""
        return self._under_way.includes(number, confirmed_bytes)

    def written(self) -> tuple[Written | None, list[Tag]]:
        """All that was taken is with the operating system: the new marks (None if they did not
        change) and the tags of the frames."""
        tags, self._tags = self._tags, []
        self._taken_bytes = 0
        if self._taken == self._written:
            return None, tags
        self._written = list(self._taken)
        return Written(self._written[0], self._written[1]), tags

    def restart(self) -> list[Tag]:
        """Another dispatcher takes over and numbers from 1. It sends again what the acknowledged lane holds,
        so that is dropped: the tags of those frames. Direct frames stay; no marks tell of them."""
        acknowledged, direct = self._lanes
        dropped = [queued.tag for queued in acknowledged if queued.tag is not None]
        self._bytes -= sum(len(queued.frame) for queued in acknowledged)
        acknowledged.clear()
        kept = [Queued(0, queued.frame, queued.tag) for queued in direct]
        direct.clear()
        direct.extend(kept)
        self._queued, self._taken, self._written = [0, 0], [0, 0], [0, 0]
        self._under_way.clear()
        return dropped

    def unwritten_tags(self) -> list[Tag]:
        """The tags of frames that were not reported written; for the end of the link."""
        waiting = [queued.tag for lane in self._lanes for queued in lane if queued.tag is not None]
        return [*self._tags, *waiting]
