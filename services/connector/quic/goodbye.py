"""The polite end of a QUIC connection: said when the peer has what was sent before it. No I/O."""

from dataclasses import dataclass

from services.connector.quic.connection import HubConnection

# As in a WebSocket close frame; it has to fit into one datagram.
_CLOSE_MOST_BYTES = 123


@dataclass(frozen=True, slots=True)
class Goodbye:
    """What to close with, and after what was written to which stream."""

    code: int
    text: str
    stream_id: int

    @property
    def short_text(self) -> str:
        """As much of the text as a close says."""
        return self.text.encode()[:_CLOSE_MOST_BYTES].decode(errors="ignore")

    def may_be_said(self, quic: HubConnection) -> bool:
        """Whether the peer has acknowledged the stream."""
        sent = quic.written_through(self.stream_id)
        return quic.acknowledged_through(self.stream_id) >= sent
