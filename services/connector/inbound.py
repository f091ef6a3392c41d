"""What came in over one link and the dispatcher has not taken over yet."""

from collections import deque


class InboundLedger:
    """Numbers upstream frames and keeps them until the dispatcher's cumulative receipt.

    Frames are kept as they came, so that they can be handed to another dispatcher. The bound is
    soft by one frame: whoever records a frame asks `full` before reading the next.
    """

    __slots__ = ("_before", "_bytes", "_frames", "_most_bytes", "_most_frames", "_number", "_receipted")

    def __init__(self, most_frames: int, most_bytes: int) -> None:
        self._most_frames = most_frames
        self._most_bytes = most_bytes
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._number = 0
        self._receipted = 0
        # Receipted under former numberings.
        self._before = 0

    def __len__(self) -> int:
        return len(self._frames)

    @property
    def full(self) -> bool:
        """Whether reading must wait for receipts."""
        return len(self._frames) >= self._most_frames or self._bytes >= self._most_bytes

    @property
    def excess_bytes(self) -> int:
        """What the last frame is more than the bound."""
        return max(0, self._bytes - self._most_bytes)

    @property
    def received(self) -> int:
        """How many frames came in so far."""
        return self._before + self._number

    def restart(self) -> list[bytes]:
        """Another dispatcher takes over: what has no receipt, in order, from now on numbered from 1."""
        self._before += self._receipted
        self._number, self._receipted = len(self._frames), 0
        return list(self._frames)

    def record(self, frame: bytes) -> int:
        """The number (1, 2, 3, ...) of a frame that is handed to the dispatcher now."""
        self._number += 1
        self._frames.append(frame)
        self._bytes += len(frame)
        return self._number

    def receipt(self, through: int) -> bool:
        """Forgets frames up to `through`; False (and nothing forgotten) if none had that number."""
        if through > self._number:
            return False
        while self._receipted < through:
            self._receipted += 1
            self._bytes -= len(self._frames.popleft())
        return True
