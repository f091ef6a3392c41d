"""The frames on a QUIC stream of a link, without I/O (docs/protocol.md, "Over QUIC").

A frame is a header of ten bytes (version u32, type u8, flags u8, payload length u32; big-endian) and its
payload. Streams of messages begin with the three bytes `msg`.
"""

import enum
import struct

VERSION = 0x01010100
TYPE_MESSAGE = 1
MESSAGE_PREFIX = b"msg"
HEADER_BYTES = 10

_header = struct.Struct(">IBBI")


class FramingFault(enum.Enum):
    """What is wrong with a stream; the value says it to people."""

    PREFIX = "a stream of messages begins with `msg`"
    VERSION = "the frame's version should be 1.1.1"
    TYPE = "the frame's type should be 1, a message"
    FLAGS = "the frame has flags, none is known"
    TOO_BIG = "the frame is too big"
    CUT = "the stream ended within a frame"


class FramingError(Exception):
    """The stream cannot be read any further."""

    def __init__(self, fault: FramingFault, detail: str = "") -> None:
        super().__init__(f"{fault.value}: {detail}" if detail else fault.value)
        self.fault = fault


def frame_header(payload_bytes: int) -> bytes:
    """What goes before a payload of that size."""
    return _header.pack(VERSION, TYPE_MESSAGE, 0, payload_bytes)


class FrameReader:
    """Takes a stream's bytes as they come and gives whole payloads.

    Faults are found at the first byte that shows them: a frame that is too big by its header, before a byte
    of its payload is kept. After a fault nothing more may be asked.
    """

    __slots__ = ("_buffer", "_consumed", "_most_bytes", "_needed", "_prefix")

    def __init__(self, most_bytes: int, prefix: bytes = b"") -> None:
        self._most_bytes = most_bytes
        self._prefix = prefix
        self._buffer = bytearray()
        self._consumed = 0
        # Header and payload of the frame that the buffer begins with; 0 while its header is not whole.
        self._needed = 0

    @property
    def waiting_bytes(self) -> int:
        """How many bytes are kept, for frames that nobody took or that are not whole."""
        return len(self._buffer)

    @property
    def consumed_bytes(self) -> int:
        """How many bytes of the stream are no longer kept."""
        return self._consumed

    @property
    def needed_bytes(self) -> int:
        """The size of the frame that is next, its header included; 0 while that is not known."""
        return self._needed

    def receive(self, data: bytes) -> None:
        """Keeps bytes for `next_payload`."""
        self._buffer += data

    def next_payload(self) -> bytes | None:
        """The next whole payload; None while there is none. Raises FramingError."""
        buffer = self._buffer
        if self._prefix:
            head = bytes(buffer[: len(self._prefix)])
            if not self._prefix.startswith(head):
                raise FramingError(FramingFault.PREFIX, f"not with {head!r}")
            if len(head) < len(self._prefix):
                return None
            self._drop(len(self._prefix))
            self._prefix = b""
        if not self._needed:
            if len(buffer) < HEADER_BYTES:
                return None
            version, kind, flags, size = _header.unpack_from(buffer)
            if version != VERSION:
                raise FramingError(FramingFault.VERSION, f"it is {version:#010x}")
            if kind != TYPE_MESSAGE:
                raise FramingError(FramingFault.TYPE, f"it is {kind}")
            if flags:
                raise FramingError(FramingFault.FLAGS, f"{flags:#04x}")
            if size > self._most_bytes:
                raise FramingError(FramingFault.TOO_BIG, f"{size} bytes, the most are {self._most_bytes}")
            self._needed = HEADER_BYTES + size
        if len(buffer) < self._needed:
            return None
        payload = bytes(memoryview(buffer)[HEADER_BYTES : self._needed])
        self._drop(self._needed)
        self._needed = 0
        return payload

    def ended(self) -> None:
        """The stream is over, and every payload was taken. Raises FramingError if that is within a frame."""
        if self._buffer:
            raise FramingError(FramingFault.CUT, f"{len(self._buffer)} bytes of it came")

    def _drop(self, count: int) -> None:
        del self._buffer[:count]
        self._consumed += count
