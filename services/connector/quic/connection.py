"""The server's side of one QUIC connection: aioquic's, with what a hub needs besides. No I/O.

aioquic (1.7) asks no client for a certificate, lets a peer send ever more without anybody having read it,
and makes its reset tokens by chance; it has no public way to change that. What is reached into for it stands
in this module alone, and tests/connector/quic/test_connection.py holds it against the installed version.

- *Certificates.* One is asked for; who calls `certificates` after the handshake judges it.
- *Groups.* A client that has sent no key share of use is asked for one (`HelloRetry`).
- *Paths.* A client without connection ids has one id for all its paths, so all of them are answered.
- *Flow control.* A peer may send what `let_in` said and no more, however much it has sent before: memory is
  bounded by what was read, not by what came (C33).
- *Streams.* Two of the peer's: one in both directions for control, one for its messages.
- *First round trip.* The retry has measured one: what is assumed until there is an acknowledgement is no
  less, so on a wire with a long queue nothing is sent twice that only waits (RFC 9002, 6.2.2).
- *Silence.* How many probes a peer left unanswered is told, so that nothing else is sent to one that is gone.
- *Resets.* Tokens are a function of the connection id and the server's key, so a connector that has lost a
  connection can still tell its peer (RFC 9000, 10.3).
"""

import hashlib
import hmac
import os
from dataclasses import replace

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import (
    NetworkAddress,
    QuicConnection,
    QuicConnectionId,
    QuicConnectionState,
)
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicFrameType
from aioquic.quic.packet_builder import QuicPacketBuilder
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import Epoch, State
from cryptography import x509

from services.connector.quic.hello_retry import HelloRetry

CONNECTION_ID_BYTES = 8
# The peer's first stream in both directions, its first one-way stream, and ours.
CONTROL_STREAM = 0
UPSTREAM = 2
DOWNSTREAM = 3
# OpenSSL's bound for the chain of a TLS peer.
MOST_HANDSHAKE_BYTES = 100 * 1024
# A retry's round trip is longer by as much as the peer's own copies took, where packets are lost.
_MOST_INITIAL_RTT = 4.0
# Probes in a row left unanswered, each waited for twice as long as the one before (RFC 9002, 6.2.1). Where a
# fifth of the packets is lost in each direction, that many are lost by chance once in sixty times.
_UNHEARD_PROBES = 4
_MOST_FRAME_BYTES = 1 + 8 + 8
_RESET_TOKEN_BYTES = 16
# A reset looks like any packet: RFC 9000, 10.3 asks for at least 21 bytes, fewer than what it answers.
_LEAST_RESET_BYTES = 21
_MOST_RESET_BYTES = 43


class ResetTokens:
    """Tokens of connection ids, under a key that outlives the process."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"cloudhub quic stateless reset" + secret).digest()

    def token(self, connection_id: bytes) -> bytes:
        """What only this hub and the peer that was given the id can know."""
        return hmac.digest(self._key, connection_id, "sha256")[:_RESET_TOKEN_BYTES]

    def reset(self, connection_id: bytes, packet_bytes: int) -> bytes | None:
        """The answer to a packet of a connection that nobody knows; None if it is too short for one."""
        size = min(packet_bytes - 1, _MOST_RESET_BYTES)
        if size < _LEAST_RESET_BYTES:
            return None
        filling = bytearray(os.urandom(size - _RESET_TOKEN_BYTES))
        filling[0] = 0x40 | (filling[0] & 0x3F)
        return bytes(filling) + self.token(connection_id)


class HubConnection(QuicConnection):
    """Give it datagrams and times, ask it for events and datagrams, as aioquic says."""

    def __init__(
        self,
        configuration: QuicConfiguration,
        tokens: ResetTokens,
        *,
        original_connection_id: bytes,
        retry_connection_id: bytes,
        round_trip: float = 0.0,
    ) -> None:
        super().__init__(
            configuration=replace(
                configuration, initial_rtt=min(max(configuration.initial_rtt, round_trip), _MOST_INITIAL_RTT)
            ),
            original_destination_connection_id=original_connection_id,
            retry_source_connection_id=retry_connection_id,
        )
        self._tokens = tokens
        self._host_cids[0].stateless_reset_token = tokens.token(self.host_cid)
        for limit in (self._local_max_streams_bidi, self._local_max_streams_uni):
            limit.value = limit.sent = 1

    # Who the peer is.

    @property
    def handshake_bytes(self) -> int:
        """How much of a TLS message that is not whole is kept."""
        tls = getattr(self, "tls", None)
        return len(tls._receive_buffer) if tls is not None else 0

    def certificates(self) -> list[x509.Certificate]:
        """What the peer showed, first the one whose key it proved to have; empty if it showed none."""
        own = self.tls._peer_certificate
        if own is None or self.tls.state is not State.SERVER_POST_HANDSHAKE:
            return []
        return [own, *self.tls._peer_certificate_chain]

    def release_handshake(self) -> None:
        """Frees what only a handshake needs, of which most is buffers."""
        self._crypto_buffers = {}
        # The keys of one version stand for all: none opens a packet any more, and late ones still come.
        self._cryptos_initial = dict.fromkeys(self._cryptos_initial, self._cryptos[Epoch.INITIAL])
        vars(self.tls).pop("_server_handle_hello", None)
        self.tls._peer_certificate = None
        self.tls._peer_certificate_chain = []

    @property
    def last_input_at(self) -> float | None:
        """When the last authentic packet with data of the application's epoch came, on the caller's clock."""
        space = self._spaces.get(Epoch.ONE_RTT)
        return space.largest_received_time if space is not None else None

    # What the peer may send.

    def unordered_bytes(self, stream_id: int) -> int:
        """What came of a stream that cannot be given out yet."""
        stream = self._streams.get(stream_id)
        return len(stream.receiver._buffer) if stream is not None else 0

    def let_in(self, stream_id: int, through: int) -> bool:
        """The peer may send that stream's bytes up to an offset; False if it was told so much already.

        Both the limit of the stream and that of the connection, which is the control stream's allowance more.
        """
        stream = self._streams.get(stream_id)
        if stream is None or through <= stream.max_stream_data_local:
            return False
        stream.max_stream_data_local = through
        limit = self._local_max_data
        limit.value = max(limit.value, through + self.configuration.max_stream_data)
        return True

    def _write_connection_limits(self, builder: QuicPacketBuilder, space: QuicPacketSpace) -> None:
        limit = self._local_max_data
        if limit.value != limit.sent:
            frame = builder.start_frame(
                limit.frame_type,
                capacity=_MOST_FRAME_BYTES,
                handler=self._on_connection_limit_delivery,
                handler_args=(limit,),
            )
            frame.push_uint_var(limit.value)
            limit.sent = limit.value

    def _write_stream_limits(
        self, builder: QuicPacketBuilder, space: QuicPacketSpace, stream: QuicStream
    ) -> None:
        if stream.max_stream_data_local_sent == stream.max_stream_data_local or stream.receiver.is_finished:
            return
        frame = builder.start_frame(
            QuicFrameType.MAX_STREAM_DATA,
            capacity=_MOST_FRAME_BYTES,
            handler=self._on_max_stream_data_delivery,
            handler_args=(stream,),
        )
        assert stream.stream_id is not None
        frame.push_uint_var(stream.stream_id)
        frame.push_uint_var(stream.max_stream_data_local)
        stream.max_stream_data_local_sent = stream.max_stream_data_local

    @property
    def lets_messages_through(self) -> bool:
        """Whether the peer lets us open a one-way stream, and say anything on it."""
        return self._remote_max_streams_uni >= 1 and self._remote_max_stream_data_uni > 0

    # What became of what was sent, and of the connection.

    @property
    def unheard(self) -> bool:
        """Whether the peer has answered no probe for long: what is sent beside probes is likely lost."""
        return self._loss._pto_count >= _UNHEARD_PROBES

    @property
    def end(self) -> ConnectionTerminated | None:
        """Why the connection is over, once either side has closed it or it has timed out."""
        return self._close_event

    @property
    def closed_by_peer(self) -> bool:
        """Whether it was the peer who closed it."""
        return self._state is QuicConnectionState.DRAINING

    def can_send(self, stream_id: int) -> bool:
        """False once the peer wants to hear no more on that stream of its own."""
        stream = self._streams.get(stream_id)
        return (
            stream is not None and stream.sender._reset_error_code is None and not stream.sender.is_finished
        )

    def sent_through(self, stream_id: int) -> int:
        """The offset up to which a stream's bytes were put into datagrams, and are not to be again."""
        stream = self._streams.get(stream_id)
        return stream.sender.next_offset if stream is not None else 0

    def written_through(self, stream_id: int) -> int:
        """The offset up to which bytes were given to a stream."""
        stream = self._streams.get(stream_id)
        return stream.sender._buffer_stop if stream is not None else 0

    def acknowledged_through(self, stream_id: int) -> int:
        """The offset up to which the peer has a stream's bytes."""
        stream = self._streams.get(stream_id)
        return stream.sender._buffer_start if stream is not None else 0

    # What aioquic calls.

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self.tls._request_client_certificate = True
        self.tls._server_handle_hello = HelloRetry(self.tls)  # type: ignore[method-assign]

    def datagrams_to_send(self, now: float) -> list[tuple[bytes, NetworkAddress]]:
        """aioquic's; an id of length zero leads to the peer from anywhere, so all paths have it."""
        if len(self._network_paths) > 1 and not self._peer_cid.cid:
            for path in self._network_paths[1:]:
                path.peer_cid = self._peer_cid
        return super().datagrams_to_send(now)

    def _retire_peer_cid(self, connection_id: QuicConnectionId) -> None:
        # One of length zero was never given out (RFC 9000, 19.16).
        if connection_id.cid:
            super()._retire_peer_cid(connection_id)

    def _replenish_connection_ids(self) -> None:
        super()._replenish_connection_ids()
        for connection_id in self._host_cids:
            if not connection_id.was_sent:
                connection_id.stateless_reset_token = self._tokens.token(connection_id.cid)
