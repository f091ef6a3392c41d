"""What a peer sent over WebSocket and nobody took yet, and whole messages of it. No I/O."""

from collections import deque

from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from services.connector.transport import LinkHandler

# Input is looked at in slices, so that a paused link holds few parsed frames.
_SLICE_BYTES = 16 * 1024
_HELD_MOST_BYTES = 64 * 1024


class WebSocketInbox:
    """Bytes, the frames that the library made of them, and a message that came in parts."""

    __slots__ = ("_partial", "_protocol", "frames", "unread")

    def __init__(self, protocol: ServerProtocol) -> None:
        self._protocol = protocol
        self._partial: bytearray | None = None
        self.unread = bytearray()
        """Not looked at yet."""
        self.frames: deque[Frame] = deque()
        """Not handled yet."""

    @property
    def waiting(self) -> bool:
        """Whether anything is."""
        return bool(self.unread or self.frames)

    @property
    def unfinished_bytes(self) -> int:
        """What is kept of a message that is not whole."""
        return len(self._protocol.reader.buffer) + len(self._partial or b"")

    @property
    def full(self) -> bool:
        """Whether as much waits as may wait while nobody looks."""
        return len(self.unread) > _HELD_MOST_BYTES

    def parse_slice(self) -> None:
        """Hands the library one slice; what it wants written is the caller's."""
        waiting = self.unread
        if len(waiting) <= _SLICE_BYTES:
            part, self.unread = waiting, bytearray()
        else:
            part = waiting[:_SLICE_BYTES]
            del waiting[:_SLICE_BYTES]
        self._protocol.receive_data(part)
        for event in self._protocol.events_received():
            assert isinstance(event, Frame)
            self.frames.append(event)

    def hand_over(self, frame: Frame, handler: LinkHandler) -> None:
        """Tells the link of a frame that is no close frame; of parts, when the message is whole."""
        opcode = frame.opcode
        if opcode is Opcode.TEXT and frame.fin:
            handler.frame_received(bytes(frame.data))
        elif opcode is Opcode.TEXT:
            self._partial = bytearray(frame.data)
            handler.control_received()
        elif opcode is Opcode.CONT:
            partial = self._partial
            if partial is None:
                return
            partial += frame.data
            if frame.fin:
                self._partial = None
                handler.frame_received(bytes(partial))
            else:
                handler.control_received()
        elif opcode is Opcode.BINARY:
            handler.binary_received()
        else:
            handler.control_received()

    def drop_partial(self) -> None:
        """The message that came in parts is not waited for any more."""
        self._partial = None

    def clear(self) -> None:
        """Nothing of it is looked at any more."""
        self.unread.clear()
        self.frames.clear()
