"""The hub's stream of messages: what was written to it, and whether the operating system has it. No I/O."""

from collections.abc import Sequence

from services.connector.quic.connection import DOWNSTREAM, HubConnection
from services.connector.quic.framing import MESSAGE_PREFIX, frame_header


class OutboundMessages:
    """Writes to a connection, whose owner sends."""

    __slots__ = ("_quic", "_written")

    def __init__(self, quic: HubConnection) -> None:
        self._quic = quic
        self._written = 0

    @property
    def sent(self) -> bool:
        """Whether all that was written left."""
        return self._quic.sent_through(DOWNSTREAM) >= self._written

    @property
    def written_bytes(self) -> int:
        """All that was written."""
        return self._written

    @property
    def confirmed_bytes(self) -> int:
        """What of it the peer has."""
        return self._quic.acknowledged_through(DOWNSTREAM)

    def begin(self) -> None:
        """The stream says what it is."""
        self._write(MESSAGE_PREFIX)

    def write(self, payloads: Sequence[bytes]) -> None:
        """A frame of each."""
        parts: list[bytes] = []
        for payload in payloads:
            parts.append(frame_header(len(payload)))
            parts.append(payload)
        self._write(b"".join(parts))

    def _write(self, data: bytes) -> None:
        self._quic.send_stream_data(DOWNSTREAM, data)
        self._written += len(data)
