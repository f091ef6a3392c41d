"""The edge's stream of messages: what came and was not taken, and how much more may come. Pure."""

from services.connector.quic.framing import MESSAGE_PREFIX, FrameReader


class InboundMessages:
    """The peer may always send a window past what was taken, or the whole of a frame that is larger: so what
    is kept is bounded, and no frame is waited for that may not come."""

    __slots__ = ("_announced", "_ended", "_reader", "_window")

    def __init__(self, frame_most_bytes: int, window_bytes: int) -> None:
        self._reader = FrameReader(frame_most_bytes, MESSAGE_PREFIX)
        self._window = window_bytes
        self._announced = window_bytes
        self._ended = False

    @property
    def waiting(self) -> bool:
        """Whether there is something that nobody took."""
        return self._reader.waiting_bytes > 0

    @property
    def waiting_bytes(self) -> int:
        """How much that is."""
        return self._reader.waiting_bytes

    @property
    def is_large(self) -> bool:
        """Whether the frame that is next is larger than the window."""
        return self._reader.needed_bytes > self._window

    def receive(self, data: bytes, *, ended: bool) -> None:
        """Keeps bytes; `ended` if they are the last."""
        self._reader.receive(data)
        self._ended = ended

    def next_message(self) -> bytes | None:
        """The next whole payload; None while there is none. Raises FramingError."""
        return self._reader.next_payload()

    def over(self) -> bool:
        """Whether nothing more comes, asked when every message was taken. Raises FramingError if the stream
        ended within a frame."""
        if self._ended:
            self._reader.ended()
        return self._ended

    def let_in(self) -> int | None:
        """The offset up to which the peer may send, if it is time to tell it."""
        reader, announced = self._reader, self._announced
        taken, needed = reader.consumed_bytes, reader.needed_bytes
        through = taken + max(self._window, needed)
        if through - announced < self._window // 2 and taken + needed <= announced:
            return None
        self._announced = through
        return through
