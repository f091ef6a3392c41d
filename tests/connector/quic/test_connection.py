"""What the hub reaches into aioquic for, held against the installed version: two ends, and no network."""

from pathlib import Path
from typing import Any

import pytest
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import HandshakeCompleted, StreamDataReceived
from aioquic.quic.packet import QuicProtocolVersion

from services.connector.quic.connection import (
    CONTROL_STREAM,
    DOWNSTREAM,
    UPSTREAM,
    HubConnection,
    ResetTokens,
)
from services.connector.quic.setup import PROTOCOL, server_configuration
from services.runtime.errors import StartupError
from tests.support.certs import Issued, TestAuthority

WINDOW = 20_000
TOKENS = ResetTokens(b"key")
_CLIENT, _SERVER = ("127.0.0.1", 1), ("127.0.0.1", 2)


class Pair:
    """A client and the hub's end; what one sends the other receives, unless a test says otherwise."""

    def __init__(
        self, authority: TestAuthority, server: Issued, client: Issued | None, *, idle_timeout: float = 60.0
    ) -> None:
        configuration = QuicConfiguration(
            alpn_protocols=[PROTOCOL],
            server_name="localhost",
            cafile=str(authority.certificate),
            idle_timeout=idle_timeout,
        )
        if client is not None:
            configuration.load_cert_chain(client.certificate, client.key)
        self.client = QuicConnection(configuration=configuration)
        self.hub = HubConnection(
            server_configuration(server.certificate, server.key, idle_timeout=60.0, window_bytes=WINDOW),
            TOKENS,
            original_connection_id=self.client.original_destination_connection_id,
            retry_connection_id=self.client.original_destination_connection_id,
        )
        self.now = 0.0
        # No retry was made here, so none may be claimed.
        self.hub._retry_source_connection_id = None
        self.client.connect(_SERVER, self.now)
        self.events: list[Any] = []
        self.first: bytes = b""
        """The client's first datagram."""
        self.run()

    def run(self, rounds: int = 30) -> None:
        """Lets datagrams pass until nobody has any."""
        for _ in range(rounds):
            self.now += 0.01
            for datagram, _ in self.client.datagrams_to_send(self.now):
                self.first = self.first or datagram
                self.hub.receive_datagram(datagram, _CLIENT, self.now)
            while (event := self.hub.next_event()) is not None:
                self.events.append(event)
            for datagram, _ in self.hub.datagrams_to_send(self.now):
                self.client.receive_datagram(datagram, _SERVER, self.now)
            for end in (self.client, self.hub):
                due = end.get_timer()
                if due is not None and due <= self.now:
                    end.handle_timer(self.now)

    def received(self) -> int:
        """How many bytes of the client's messages came."""
        data = (event for event in self.events if isinstance(event, StreamDataReceived))
        return sum(len(event.data) for event in data if event.stream_id == UPSTREAM)


@pytest.fixture
def pair(authority: TestAuthority, server_certificate: Issued) -> Pair:
    return Pair(authority, server_certificate, authority.node("edge-1"))


@pytest.mark.parametrize(("said", "counts"), [(7.0, 7.0), (600.0, 60.0)])
def test_the_shorter_idle_timeout_counts(
    authority: TestAuthority, server_certificate: Issued, said: float, counts: float
) -> None:
    """RFC 9000, 10.1: of what the edge says and what the hub says."""
    pair = Pair(authority, server_certificate, authority.node("edge-1"), idle_timeout=said)
    silent_since = pair.now
    while pair.hub.end is None:
        due = pair.hub.get_timer()
        assert due is not None
        pair.now = due
        pair.hub.handle_timer(due)
        pair.hub.datagrams_to_send(due)
    assert pair.hub.end.reason_phrase == "Idle timeout"
    assert pair.now - silent_since == pytest.approx(counts, abs=0.5)


def test_a_certificate_is_asked_for_and_told(pair: Pair, authority: TestAuthority) -> None:
    assert any(isinstance(event, HandshakeCompleted) for event in pair.events)
    (shown,) = pair.hub.certificates()
    assert shown.subject.rfc4514_string() == "CN=system:node:edge-1,O=system:nodes"
    assert pair.hub.handshake_bytes == 0


def test_a_client_without_one_is_told_as_that(authority: TestAuthority, server_certificate: Issued) -> None:
    pair = Pair(authority, server_certificate, None)
    assert any(isinstance(event, HandshakeCompleted) for event in pair.events)
    assert pair.hub.certificates() == []


def test_a_released_handshake_leaves_a_connection_that_works(pair: Pair) -> None:
    pair.hub.release_handshake()
    pair.client.send_stream_data(UPSTREAM, b"x" * 1000)
    pair.hub.send_stream_data(DOWNSTREAM, b"y" * 1000)
    pair.run()
    assert pair.received() == 1000
    assert pair.hub.acknowledged_through(DOWNSTREAM) == 1000
    assert pair.hub.certificates() == []


@pytest.mark.parametrize("version", list(QuicProtocolVersion))
def test_a_packet_of_the_handshake_that_comes_late_is_dropped(
    pair: Pair, version: QuicProtocolVersion
) -> None:
    """A network may deliver twice what opened the connection, and anybody can make up the like."""
    pair.hub.release_handshake()
    late = bytearray(pair.first)
    late[1:5] = version.to_bytes(4, "big")
    pair.hub.receive_datagram(bytes(late), _CLIENT, pair.now)
    pair.client.send_stream_data(UPSTREAM, b"x" * 1000)
    pair.run()
    assert pair.received() == 1000


def test_a_peer_sends_what_it_was_let_in_and_not_a_byte_more(pair: Pair) -> None:
    """C33: however much it has sent before."""
    pair.client.send_stream_data(UPSTREAM, b"x" * 10 * WINDOW)
    pair.run(100)
    assert pair.received() == WINDOW
    for through in (WINDOW + 1, 3 * WINDOW, 5 * WINDOW):
        assert pair.hub.let_in(UPSTREAM, through)
        pair.run(100)
        assert pair.received() == through
    assert not pair.hub.let_in(UPSTREAM, WINDOW), "what was let in is not taken back"
    pair.run(100)
    assert pair.received() == 5 * WINDOW


def test_limits_that_are_lost_are_told_again(pair: Pair) -> None:
    pair.client.send_stream_data(UPSTREAM, b"x" * 3 * WINDOW)
    pair.run(100)
    pair.hub.let_in(UPSTREAM, 3 * WINDOW)
    pair.now += 0.01
    assert pair.hub.datagrams_to_send(pair.now), "and lost"
    for _ in range(100):
        pair.now += 0.1
        pair.run(3)
    assert pair.received() == 3 * WINDOW


def test_a_peer_may_open_two_streams(pair: Pair) -> None:
    assert (pair.client._remote_max_streams_bidi, pair.client._remote_max_streams_uni) == (1, 1)
    pair.client.send_stream_data(CONTROL_STREAM, b"a", end_stream=True)
    pair.client.send_stream_data(UPSTREAM, b"b", end_stream=True)
    pair.run()
    pair.hub.send_stream_data(CONTROL_STREAM, b"c", end_stream=True)
    pair.run(50)
    assert (pair.client._remote_max_streams_bidi, pair.client._remote_max_streams_uni) == (1, 1)


def test_what_is_sent_acknowledged_and_written_is_told_apart(pair: Pair) -> None:
    written = 100_000
    pair.hub.send_stream_data(DOWNSTREAM, b"x" * written)
    assert (pair.hub.written_through(DOWNSTREAM), pair.hub.sent_through(DOWNSTREAM)) == (written, 0)
    datagrams = pair.hub.datagrams_to_send(pair.now)
    sent = pair.hub.sent_through(DOWNSTREAM)
    assert 0 < sent < written
    assert pair.hub.acknowledged_through(DOWNSTREAM) == 0
    for datagram, _ in datagrams:
        pair.client.receive_datagram(datagram, _SERVER, pair.now)
    pair.run(200)
    assert pair.hub.sent_through(DOWNSTREAM) == pair.hub.acknowledged_through(DOWNSTREAM) == written


def test_tokens_of_resets_are_the_hubs(pair: Pair) -> None:
    known = [pair.client._peer_cid, *pair.client._peer_cid_available]
    assert len(known) == 8
    assert all(each.stateless_reset_token == TOKENS.token(each.cid) for each in known)


def test_silence_is_measured_by_what_is_authentic(pair: Pair) -> None:
    heard = pair.hub.last_input_at
    assert heard is not None
    pair.now += 5
    pair.hub.receive_datagram(b"\x40" + pair.hub.host_cid + bytes(60), _CLIENT, pair.now)
    assert pair.hub.last_input_at == heard
    pair.client.send_ping(1)
    pair.run(1)
    assert pair.hub.last_input_at == pair.now


def test_who_closed_is_told(pair: Pair) -> None:
    before = pair.hub.end
    assert before is None
    pair.client.close(error_code=1001, reason_phrase="bye")
    pair.run(1)
    assert pair.hub.end
    assert (pair.hub.end.error_code, pair.hub.end.reason_phrase, pair.hub.closed_by_peer) == (
        1001,
        "bye",
        True,
    )


def test_a_key_that_quic_cannot_use_is_told(authority: TestAuthority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    issued = authority.issue("localhost", None, key=ec.generate_private_key(ec.SECP521R1()), file="p521")
    with pytest.raises(StartupError, match="--quic-listen off"):
        server_configuration(issued.certificate, issued.key, idle_timeout=60.0, window_bytes=WINDOW)
