"""The datagrams of one QUIC connection: which are its own, how many may come, when it has to be called."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from aioquic.quic import events

from services.connector.quic.connection import HubConnection
from services.connector.quic.host import Address, QuicHost
from services.connector.quic.timer import QuicTimer
from services.connector.tokens import TokenBucket

if TYPE_CHECKING:
    from services.connector.quic.transport import QuicEdgeConnection


class Wire:
    """Between a connection and the socket of its listener."""

    __slots__ = (
        "_close_datagram",
        "_connection",
        "_host",
        "_ids",
        "_packets",
        "_quic",
        "_timer",
        "_unanswered",
    )

    def __init__(
        self,
        connection: "QuicEdgeConnection",
        host: QuicHost,
        quic: HubConnection,
        loop: asyncio.AbstractEventLoop,
        packets: TokenBucket,
    ) -> None:
        self._connection = connection
        self._host = host
        self._quic = quic
        self._packets = packets
        self._close_datagram: tuple[bytes, Address] | None = None
        self._unanswered = 0
        self._ids: set[bytes] = set()
        self._timer = QuicTimer(loop, quic, host.behind)

    def receive(self, datagram: bytes, address: Address, now: float) -> bool:
        """Whether the connection took the datagram in. Over the rate of a link it is dropped, as by a network
        that is full."""
        if self._close_datagram is not None:
            self._repeat_close()
            return False
        if not self._packets.take_if_any(now):
            self._host.dropped()
            return False
        self._quic.receive_datagram(datagram, address, now)
        return True

    def transmit(self, now: float, due: Callable[[float], None]) -> None:
        """Sends what may be sent now; `due` is called with the time when the connection wants it next."""
        closing = self._quic.end is not None
        for datagram, address in self._quic.datagrams_to_send(now):
            self._host.send(datagram, address)
            if closing:
                self._close_datagram = (datagram, address)
        self._handle_events_of_sending()
        self._timer.arm(now, due)

    def _handle_events_of_sending(self) -> None:
        # Ids are given out in packets; nothing else happens by sending.
        while (event := self._quic.next_event()) is not None:
            if isinstance(event, events.ConnectionIdIssued):
                self.own(event.connection_id)

    def _repeat_close(self) -> None:
        """The peer goes on: the datagram that said the end is lost, or on its way. Not for every packet."""
        self._unanswered += 1
        if self._unanswered & (self._unanswered - 1) == 0 and self._close_datagram is not None:
            self._host.send(*self._close_datagram)

    def own(self, connection_id: bytes) -> None:
        """Datagrams with this id are the connection's."""
        self._ids.add(connection_id)
        self._host.identified(connection_id, self._connection)

    def retire(self, connection_id: bytes) -> None:
        """The peer uses the id no more."""
        self._ids.discard(connection_id)
        self._host.retired(connection_id)

    def cut(self) -> None:
        """No datagram is the connection's any more, and nothing is to be called."""
        self._timer.cancel()
        for connection_id in self._ids:
            self._host.retired(connection_id)
        self._ids.clear()
