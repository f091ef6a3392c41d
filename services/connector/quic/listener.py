"""Receives the datagrams of edges on one UDP socket and gives each to its connection.

A peer's address is proved by a retry before anything is kept of it (RFC 9000, 8.1.2): whoever forges an
address makes the hub send a packet smaller than its own there, and no more.
"""

import array
import asyncio
import fcntl
import logging
import os
import socket
import termios
from typing import cast

from aioquic._buffer import Buffer
from aioquic.quic.configuration import SMALLEST_MAX_DATAGRAM_SIZE, QuicConfiguration
from aioquic.quic.packet import (
    QuicHeader,
    QuicPacketType,
    QuicProtocolVersion,
    encode_quic_retry,
    pull_quic_header,
)
from OpenSSL import crypto

from services.connector.connection_owner import ConnectionOwner, Gate
from services.connector.connections import ConnectionLimits
from services.connector.metrics import ConnectorMetrics
from services.connector.quic.connection import CONNECTION_ID_BYTES, HubConnection, ResetTokens
from services.connector.quic.host import Address
from services.connector.quic.retry_tokens import RetryTokens, UsedTokens
from services.connector.quic.stateless import (
    invalid_token_close,
    is_long,
    read_long_header,
    version_negotiation,
)
from services.connector.quic.transport import QuicEdgeConnection
from services.connector.tokens import TokenBucket
from services.runtime.listening import udp_socket
from services.runtime.logs import get_log
from services.runtime.rate_limit import network_of

# The library logs every connection; the hub has lines of its own.
logging.getLogger("quic").setLevel(logging.CRITICAL)
_log = get_log("connector.quic")

# All edges share one socket: what comes while the loop is busy waits here, or is lost.
_RECEIVE_BUFFER_BYTES = 8 * 1024 * 1024
_SEND_BUFFER_BYTES = 4 * 1024 * 1024
# Answers to packets of unknown connections: enough after a restart, too few to be of use to others.
_RESETS_PER_SECOND = 1000.0
# The same of openings whose token is no good.
_CLOSES_PER_SECOND = 100.0


class QuicListener(ConnectionOwner, asyncio.DatagramProtocol):
    """Implements `transport.QuicHost`. What connections have to send goes out once per turn of the loop."""

    def __init__(
        self,
        listen: str,
        configuration: QuicConfiguration,
        authorities: crypto.X509Store,
        tokens: ResetTokens,
        limits: ConnectionLimits,
        openings_most: int,
        packet_rate: tuple[float, float],
        gate: Gate,
        metrics: ConnectorMetrics,
    ) -> None:
        # No descriptor is a connection's: as many as may be in their opening may be at their end.
        super().__init__("quic", limits, openings_most, openings_most, gate, metrics)
        # New connections take these; they may be replaced while the listener runs.
        self.configuration = configuration
        self.authorities = authorities
        self.window_bytes = configuration.max_stream_data
        self._tokens = tokens
        # Datagrams per second and at once of one connection.
        self._packet_rate = packet_rate
        self._loop = asyncio.get_running_loop()
        self._retry = RetryTokens()
        self._used = UsedTokens()
        self._resets = TokenBucket(_RESETS_PER_SECOND, _RESETS_PER_SECOND, self._loop.time())
        self._closes = TokenBucket(_CLOSES_PER_SECOND, _CLOSES_PER_SECOND, self._loop.time())
        self._by_id: dict[bytes, QuicEdgeConnection] = {}
        self._touched: dict[QuicEdgeConnection, None] = {}
        self._flush_due = False
        self._full = False
        self._unread = array.array("i", [0])
        self._udp: asyncio.DatagramTransport | None = None
        self._socket = udp_socket(
            listen,
            "edges",
            receive_buffer_bytes=_RECEIVE_BUFFER_BYTES,
            send_buffer_bytes=_SEND_BUFFER_BYTES,
        )

    @property
    def port(self) -> int:
        """The port in use (of interest when 0 was asked for)."""
        port: int = self._socket.getsockname()[1]
        return port

    @property
    def connection_ids(self) -> int:
        """How many ids lead to a connection."""
        return len(self._by_id)

    async def start(self) -> None:
        """Receives from here on, until `close`."""
        granted = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        if granted < _RECEIVE_BUFFER_BYTES:
            # Linux counts its bookkeeping too and grants at most net.core.rmem_max.
            _log.info("receive_buffer.small", bytes=granted, wanted=_RECEIVE_BUFFER_BYTES)
        await self._loop.create_datagram_endpoint(lambda: self, sock=self._socket)

    async def close(self) -> None:
        """Cuts what is left and receives nothing more."""
        self.abort_all()
        if self._udp is not None:
            self._udp.close()
        else:
            self._socket.close()
        await self.finish()

    def room_found(self) -> None:
        """Nobody waits here: who was not taken sends again."""

    # What the event loop says.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are no subclasses of asyncio's.
        self._udp = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Address) -> None:
        if len(data) <= CONNECTION_ID_BYTES:
            return
        if is_long(data):
            self._long_header(data, addr)
            return
        connection_id = data[1 : 1 + CONNECTION_ID_BYTES]
        connection = self._by_id.get(connection_id)
        if connection is not None:
            connection.receive(data, addr, self._loop.time())
        else:
            self._reset(connection_id, len(data), addr)

    def error_received(self, exc: Exception) -> None:
        self._metrics.quic_dropped.labels("send_error").inc()

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._flush_soon()

    # Datagrams of no known connection.

    def _long_header(self, data: bytes, address: Address) -> None:
        # By what all versions have in common: in another one nothing else need be as we know it.
        common = read_long_header(data)
        if common is None:
            self._metrics.quic_dropped.labels("malformed").inc()
            return
        connection = self._by_id.get(common.destination_id)
        if connection is not None:
            connection.receive(data, address, self._loop.time())
            return
        if len(data) < SMALLEST_MAX_DATAGRAM_SIZE or common.version == QuicProtocolVersion.NEGOTIATION:
            self._metrics.quic_dropped.labels("unknown_connection").inc()
            return
        versions = self.configuration.supported_versions
        if common.version in versions:
            self._opening(data, address)
        else:
            self.send(version_negotiation(common, versions), address)

    def _opening(self, data: bytes, address: Address) -> None:
        read = Buffer(data=data)
        try:
            header = pull_quic_header(read, host_cid_length=CONNECTION_ID_BYTES)
        except ValueError:
            self._metrics.quic_dropped.labels("malformed").inc()
            return
        if header.packet_type is not QuicPacketType.INITIAL:
            self._metrics.quic_dropped.labels("unknown_connection").inc()
        elif not header.token:
            self._ask_to_retry(header, address)
        elif (fault := self._connect(header, data, address)) is not None:
            self._metrics.quic_dropped.labels(fault).inc()
            self._end_opening(data, header, read.tell(), address)

    def _ask_to_retry(self, header: QuicHeader, address: Address) -> None:
        assert header.version is not None
        source_id = os.urandom(CONNECTION_ID_BYTES)
        self.send(
            encode_quic_retry(
                version=header.version,
                source_cid=source_id,
                destination_cid=header.source_cid,
                original_destination_cid=header.destination_cid,
                retry_token=self._retry.token(address, header.destination_cid, source_id, self._loop.time()),
            ),
            address,
        )
        self._metrics.quic_retries.inc()

    def _connect(self, header: QuicHeader, data: bytes, address: Address) -> str | None:
        """What is wrong with the token, if it is no good: the metric label."""
        now = self._loop.time()
        proof = self._retry.proof(address, header.destination_cid, header.token, now)
        if proof is None:
            return "token_invalid"
        if self._used.knows(header.destination_cid, now):
            return "token_used"
        network = network_of(address[0])
        if not self._make_room(network, now):
            # As a connection in a full backlog: the peer sends again.
            self._metrics.accept_waits.inc()
            return None
        quic = HubConnection(
            self.configuration,
            self._tokens,
            original_connection_id=proof.original_id,
            retry_connection_id=header.destination_cid,
            round_trip=proof.round_trip,
        )
        connection = QuicEdgeConnection(self, quic, self._loop, TokenBucket(*self._packet_rate, now))
        connection.own(header.destination_cid)
        connection.own(quic.host_cid)
        self._used.add(header.destination_cid, now)
        self.adopt(connection, network)
        self._openings.begin(connection, network, now)
        connection.receive(data, address, now)
        return None

    def _end_opening(self, data: bytes, header: QuicHeader, packet_number_at: int, address: Address) -> None:
        """To an address that proved nothing: a small part of what came from there, and so many in all."""
        if not self._closes.take_if_any(self._loop.time()):
            return
        close = invalid_token_close(data, header, packet_number_at)
        if close is not None:
            self._metrics.quic_closes.inc()
            self.send(close, address)

    def _make_room(self, network: str, now: float) -> bool:
        """Whether one more opening, of that network, may begin."""
        if self._openings.waiting >= self._max_waiting and (spared := self._openings.spare()) is not None:
            spared.crowded_out()
        if self._openings.has_room:
            return True
        gone = self._openings.give_way(network, now)
        if gone is None:
            return False
        gone.crowded_out()
        return True

    def _reset(self, connection_id: bytes, packet_bytes: int, address: Address) -> None:
        datagram = self._tokens.reset(connection_id, packet_bytes)
        if datagram is None or not self._resets.take_if_any(self._loop.time()):
            self._metrics.quic_dropped.labels("unknown_connection").inc()
            return
        self._metrics.quic_resets.inc()
        self.send(datagram, address)

    # What connections say: transport.QuicHost.

    def send(self, datagram: bytes, address: Address) -> None:
        if self._udp is not None and not self._udp.is_closing():
            self._udp.sendto(datagram, address)

    def behind(self) -> bool:
        # It tells the size of the next datagram (udp(7)).
        fcntl.ioctl(self._socket, termios.FIONREAD, self._unread)
        return self._unread[0] > 0

    def dropped(self) -> None:
        self._metrics.quic_dropped.labels("rate").inc()

    def touched(self, connection: QuicEdgeConnection) -> None:
        self._touched[connection] = None
        self._flush_soon()

    def identified(self, connection_id: bytes, connection: QuicEdgeConnection) -> None:
        self._by_id[connection_id] = connection

    def retired(self, connection_id: bytes) -> None:
        self._by_id.pop(connection_id, None)

    def _flush_soon(self) -> None:
        if not self._flush_due and not self._full and self._touched:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        touched, self._touched = self._touched, {}
        now = self._loop.time()
        for connection in touched:
            connection.flush(now)
