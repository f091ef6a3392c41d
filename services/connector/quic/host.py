"""What a QUIC connection needs of the listener that owns it."""

from typing import TYPE_CHECKING, Any, Protocol

from OpenSSL import crypto

from services.connector.connections import ConnectionHost

if TYPE_CHECKING:
    from services.connector.quic.transport import QuicEdgeConnection

Address = tuple[Any, ...]
"""Of a peer, as the socket tells it."""


class QuicHost(ConnectionHost, Protocol):
    """Who owns QUIC connections: the listener."""

    authorities: crypto.X509Store
    window_bytes: int

    def send(self, datagram: bytes, address: Address) -> None:
        """Sends a datagram."""
        ...

    def behind(self) -> bool:
        """Whether datagrams have come that were not read yet."""
        ...

    def dropped(self) -> None:
        """A datagram was over the connection's rate."""
        ...

    def touched(self, connection: "QuicEdgeConnection") -> None:
        """The connection may have something to send: `flush` is called soon."""
        ...

    def identified(self, connection_id: bytes, connection: "QuicEdgeConnection") -> None:
        """Datagrams with that id are the connection's."""
        ...

    def retired(self, connection_id: bytes) -> None:
        """The id is used no more."""
        ...
