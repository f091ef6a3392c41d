"""Addresses of QUIC peers: forged ones, ones that change, and connections that nobody knows any more."""

import asyncio
import datetime as dt

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicNetworkPath
from aioquic.quic.packet import QuicPacketType, pull_quic_header
from aioquic.tls import CipherSuite, SessionTicket

from cloudhub.v1 import link_pb2, message_pb2
from services.connector.app import ConnectorApp
from services.connector.quic.connection import ResetTokens
from services.connector.quic.setup import PROTOCOL
from services.connector.tokens import TokenBucket
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.processes import free_ports
from tests.support.quic_peer import QuicPeer, QuicPeers, keepalive

HOST = "127.0.0.1"


class _Wire(asyncio.DatagramProtocol):
    """Keeps what comes to one address."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []

    def datagram_received(self, data: bytes, addr: object) -> None:
        self.datagrams.append(data)


def _first_flight(**changes: object) -> list[bytes]:
    quic = QuicConnection(
        configuration=QuicConfiguration(alpn_protocols=[PROTOCOL], server_name="localhost", **changes)  # type: ignore[arg-type]
    )
    quic.connect(("127.0.0.1", 1), 0.0)
    return [datagram for datagram, _ in quic.datagrams_to_send(0.0)]


def _kind(datagram: bytes) -> QuicPacketType:
    return pull_quic_header(Buffer(data=datagram), host_cid_length=8).packet_type


async def test_a_forged_address_gets_retry_packets_only(app: ConnectorApp) -> None:
    """Smaller than what was sent, and nothing is kept of it."""
    assert app.quic
    loop = asyncio.get_running_loop()
    transport, victim = await loop.create_datagram_endpoint(_Wire, local_addr=(HOST, 0))
    sent = [datagram for _ in range(50) for datagram in _first_flight()]
    for datagram in sent:
        transport.sendto(datagram, (HOST, app.quic_port))
    await poll(lambda: len(victim.datagrams) == 50)
    assert {_kind(datagram) for datagram in victim.datagrams} == {QuicPacketType.RETRY}
    assert max(map(len, victim.datagrams)) < min(map(len, sent)) / 5
    assert (app.quic.connections, app.quic.connection_ids) == (0, 0)
    assert metric(app, "quic_retries_total") == 50
    transport.close()


async def test_a_token_of_another_address_is_worth_nothing(app: ConnectorApp, quic_peers: QuicPeers) -> None:
    """What one peer proved does not help it to speak as another."""
    assert app.quic
    loop = asyncio.get_running_loop()
    sent: list[bytes] = []
    transport, peer = await quic_peers.dial(quic_peers.issued("edge-1"))
    original = transport.sendto

    def sendto(data: bytes, addr: tuple[str, int]) -> None:
        sent.append(data)
        original(data, addr)

    peer._transport = type("Tap", (), {"sendto": staticmethod(sendto)})()
    await poll(lambda: sent)
    with_token = next(data for data in sent if pull_quic_header(Buffer(data=data), host_cid_length=8).token)
    await poll(lambda: peer.handshaken.done())
    before = app.quic.connections
    thief_transport, thief = await loop.create_datagram_endpoint(_Wire, local_addr=(HOST, 0))
    app.quic._by_id.pop(pull_quic_header(Buffer(data=with_token), host_cid_length=8).destination_cid)
    thief_transport.sendto(with_token, (HOST, app.quic_port))
    await poll(lambda: metric(app, "quic_dropped_total", reason="token_invalid") == 1)
    await poll(lambda: thief.datagrams)
    assert [_kind(datagram) for datagram in thief.datagrams] == [QuicPacketType.INITIAL]  # that says the end
    assert len(thief.datagrams[0]) < len(with_token) / 5
    assert app.quic.connections == before
    for each in (transport, thief_transport):
        each.close()
    if peer._timer:
        peer._timer.cancel()


@pytest.mark.parametrize(
    ("datagram", "answers"),
    [
        (b"", 0),
        (b"\x40" * 8, 0),
        (b"\x40" * 20, 0),
        (b"\xc0" + b"\x00" * 1300, 0),
        (b"\xff" * 1300, 1),
        (b"\xc3" + b"\x00\x00\x00\x01" + b"\x08" + b"a" * 8 + b"\x00" * 20, 0),
        (b"\xc3" + b"\x1a\x2a\x3a\x4a" + b"\x08" + b"a" * 8 + b"\x08" + b"b" * 8 + b"\x00" * 1200, 1),
        (b"\xc3" + b"\x1a\x2a\x3a\x4a" + b"\x08" + b"a" * 8 + b"\x08" + b"b" * 8 + b"\x00" * 200, 0),
        (b"\x40" * 40, 1),
    ],
)
async def test_no_datagram_of_a_stranger_gets_more_than_it_was(
    app: ConnectorApp, datagram: bytes, answers: int
) -> None:
    """Invariant 10: version negotiation for a packet of another version, a reset for a lost connection."""
    assert app.quic
    transport, wire = await asyncio.get_running_loop().create_datagram_endpoint(_Wire, local_addr=(HOST, 0))
    transport.sendto(datagram, (HOST, app.quic_port))
    # Behind it, what is surely answered.
    transport.sendto(_first_flight()[0], (HOST, app.quic_port))
    await poll(lambda: len(wire.datagrams) == answers + 1)
    assert all(len(answer) < max(len(datagram), 21) for answer in wire.datagrams[:answers])
    assert app.quic.connections == 0
    transport.close()


async def test_a_link_stays_when_its_edge_changes_its_address(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """Connection migration: same link, same epoch, both directions, and operators see the new address."""
    async with quic_peers.link() as peer:
        link = app.links.admitted()[0]
        before = link.transport.peer_address
        assert before.startswith("127.0.0.1:")
        moved, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: _Forwarding(peer), local_addr=("127.0.0.2", 0)
        )
        assert peer._transport
        peer._transport.close()
        peer._transport = moved
        peer.say(keepalive("after the move"))
        await dispatcher.until(lambda: dispatcher.upstream)
        await poll(lambda: link.transport.peer_address.startswith("127.0.0.2:"))
        dispatcher.send_messages(1, message_pb2.Message(id="m1", content=b"{}"))
        assert (await peer.message()).header.id == "m1"
        assert not dispatcher.ended
        assert metric(app, "links_opened_total") == 1
        moved.close()


class _WithoutIds(QuicConnection):
    """A client whose packets need no connection id to find it, as quic-go's `DialAddr` makes them."""

    def _replenish_connection_ids(self) -> None:
        """There is none to give out."""

    def probe(self, hub: tuple[str, int]) -> tuple[QuicNetworkPath, bytes]:
        """A path from a new socket to the hub, and the packet that asks whether it carries."""
        path = QuicNetworkPath(hub)
        path.peer_cid = self._peer_cid_available.pop(0)
        self._network_paths.append(path)
        ((datagram, _),) = self._send_probing_frames(path, asyncio.get_running_loop().time())
        return path, datagram


async def test_an_edge_without_connection_ids_may_try_a_path_and_move_to_it(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """RFC 9000, 9.1: its probe is answered, and after the move the link goes on."""
    issued = quic_peers.issued("edge-1")
    configuration = quic_peers.configuration(issued, connection_id_length=0)
    loop = asyncio.get_running_loop()
    quic = _WithoutIds(configuration=configuration)
    hub = (HOST, app.quic_port)
    transport, peer = await loop.create_datagram_endpoint(lambda: QuicPeer(quic), local_addr=(HOST, 0))
    peer.connect(hub)
    peer.ask("edge-1")
    peer.begin()
    assert (await peer.answer()).router.operation == "ack"
    moved, _ = await loop.create_datagram_endpoint(lambda: _Forwarding(peer), local_addr=("127.0.0.2", 0))
    path, probe = quic.probe(hub)
    moved.sendto(probe, hub)
    await poll(lambda: path.is_validated)
    link = app.links.admitted()[0]
    assert link.transport.peer_address.startswith("127.0.0.1:")
    transport.close()
    peer._transport = moved
    peer.say(keepalive("after the move"))
    await dispatcher.until(lambda: dispatcher.upstream)
    await poll(lambda: link.transport.peer_address.startswith("127.0.0.2:"))
    dispatcher.send_messages(1, message_pb2.Message(id="m1", content=b"{}"))
    assert (await peer.message()).header.id == "m1"
    assert not dispatcher.ended
    assert peer.ended is None  # no id of length zero was retired (RFC 9000, 19.16)
    peer.close()
    moved.close()


class _Forwarding(asyncio.DatagramProtocol):
    """The peer's next socket."""

    def __init__(self, peer: QuicPeer) -> None:
        self._peer = peer

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self._peer.datagram_received(data, addr)


async def test_a_connector_that_lost_a_connection_says_so(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """As a TCP reset would: by the token that it gave out before it was killed."""
    [port] = free_ports(1)
    async with start_app(quic_listen=f"{HOST}:{port}") as app:
        peers = QuicPeers(authority, port)
        transport, peer = await peers.dial(peers.issued("edge-1"))
        peer.ask("edge-1")
        await peer.answer()
        tokens = {peer.quic._peer_cid.stateless_reset_token}
        tokens |= {each.stateless_reset_token for each in peer.quic._peer_cid_available}
        assert app.quic
        # It dies: nobody says anything to the peer.
        app.quic.send = lambda *_: None  # type: ignore[method-assign]
    seen: list[bytes | str] = []
    peer.datagram_received = lambda data, addr: seen.append(data)  # type: ignore[method-assign]
    async with start_app(quic_listen=f"{HOST}:{port}") as app:
        peer.begin()
        peer.say(keepalive())
        await poll(lambda: seen)
        assert seen[0][-16:] in tokens
        assert metric(app, "quic_resets_total") >= 1
    transport.close()
    if peer._timer:
        peer._timer.cancel()


def test_a_reset_looks_like_a_packet_and_is_shorter_than_what_it_answers() -> None:
    tokens = ResetTokens(b"key")
    for size in range(1300):
        reset = tokens.reset(b"12345678", size)
        if reset is None:
            assert size <= 21
            continue
        assert 21 <= len(reset) < size
        assert reset[0] & 0xC0 == 0x40
        assert reset[-16:] == ResetTokens(b"key").token(b"12345678")
    assert tokens.token(b"12345678") != tokens.token(b"12345679") != ResetTokens(b"other").token(b"12345679")


async def test_the_end_is_repeated_to_a_peer_that_did_not_hear_it(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    async with quic_peers.link() as peer:
        assert app.quic
        deaf: list[bytes | str] = []
        hear = peer.datagram_received
        peer.datagram_received = lambda data, addr: deaf.append(data)  # type: ignore[method-assign]
        dispatcher.close_link(1, link_pb2.CLOSE_REASON_EVICTED)
        await dispatcher.until(lambda: dispatcher.ended)
        await poll(lambda: deaf)
        peer.datagram_received = hear  # type: ignore[method-assign]
        for number in range(3):
            peer.say(keepalive(f"k{number}"))
        await poll(lambda: peer.ended)
        assert peer.ended
        assert peer.ended.error_code == 4002


async def test_data_before_the_handshake_is_refused(
    app: ConnectorApp, quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """0-RTT is off: no ticket is given out, one that somebody made up is not taken, early data is not looked
    at, and the link opens by a whole handshake with a certificate."""
    tickets: list[SessionTicket] = []
    now = dt.datetime.now(dt.UTC)
    forged = SessionTicket(
        age_add=1,
        cipher_suite=CipherSuite.AES_256_GCM_SHA384,
        not_valid_before=now,
        not_valid_after=now + dt.timedelta(hours=1),
        resumption_secret=b"x" * 48,
        server_name="localhost",
        ticket=b"t" * 64,
        max_early_data_size=0xFFFFFFFF,
    )
    issued = quic_peers.issued("edge-1")
    configuration = quic_peers.configuration(issued, session_ticket=forged)
    transport, peer = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: QuicPeer(QuicConnection(configuration=configuration, session_ticket_handler=tickets.append)),
        local_addr=(HOST, 0),
    )
    peer.connect((HOST, app.quic_port))
    peer.ask("edge-1")
    assert (await peer.answer()).router.operation == "ack"
    done = peer.handshaken.result()
    assert (done.early_data_accepted, done.session_resumed, tickets) == (False, False, [])
    peer.close()
    transport.close()


async def test_another_protocol_is_refused(app: ConnectorApp, quic_peers: QuicPeers) -> None:
    async with quic_peers.connection(quic_peers.issued("edge-1"), alpn_protocols=["h3"]) as peer:
        await poll(lambda: peer.ended)
    assert metric(app, "handshake_failures_total", transport="quic", reason="tls_protocol") == 1


async def test_packets_of_unknown_connections_are_answered_so_often_and_links_go_on(
    start_app: StartApp,
    authority: TestAuthority,
    dispatcher: LinkDispatcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A flood of them makes the hub send no more than its bound, and costs no link anything."""
    async with start_app() as app:
        monkeypatch.setattr(app.quic, "_resets", TokenBucket(0.001, 3.0, asyncio.get_running_loop().time()))
        async with QuicPeers(authority, app.quic_port).link() as peer:
            transport, stranger = await asyncio.get_running_loop().create_datagram_endpoint(
                _Wire, local_addr=(HOST, 0)
            )
            for number in range(50):
                transport.sendto(b"\x40" + number.to_bytes(8, "big") + bytes(100), (HOST, app.quic_port))
            await poll(lambda: metric(app, "quic_dropped_total", reason="unknown_connection") == 47)
            assert metric(app, "quic_resets_total") == 3
            peer.say(keepalive("after"))
            await dispatcher.until(lambda: dispatcher.upstream)
            assert len(stranger.datagrams) == 3
            transport.close()
