"""What peers get that the hub does not know yet: another version, another try, an end."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
from aioquic._buffer import Buffer
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode, QuicProtocolVersion, pull_quic_header

from services.connector.app import ConnectorApp
from services.connector.quic import stateless
from services.connector.tokens import TokenBucket
from tests.connector.conftest import StartApp, metric, poll
from tests.support.certs import TestAuthority
from tests.support.quic_peer import HOST, QuicPeers

_OTHER_VERSION = b"\x1a\x2a\x3a\x4a"


@contextmanager
def _socket() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
        stranger.setblocking(False)
        stranger.bind((HOST, 0))
        yield stranger


async def _answer(stranger: socket.socket) -> bytes:
    async with asyncio.timeout(10):
        return await asyncio.get_running_loop().sock_recv(stranger, 2048)


def _long_packet(version: bytes, destination_id: bytes, source_id: bytes, *, first: int = 0xC3) -> bytes:
    head = bytes([first]) + version
    ids = b"".join(bytes([len(each)]) + each for each in (destination_id, source_id))
    return (head + ids).ljust(1200, b"\x00")


class _Opening:
    """A client's way up to its first packet with a token."""

    def __init__(self, stranger: socket.socket, peers: QuicPeers, app: ConnectorApp) -> None:
        self.client = QuicConnection(configuration=peers.configuration(None))
        self._stranger = stranger
        self._hub = (HOST, app.quic_port)
        self._loop = asyncio.get_running_loop()

    def send(self) -> bytes:
        ((datagram, _),) = self.client.datagrams_to_send(self._loop.time())
        self._stranger.sendto(datagram, self._hub)
        return datagram

    async def hear(self) -> bytes:
        datagram = await _answer(self._stranger)
        self.client.receive_datagram(datagram, self._hub, self._loop.time())
        return datagram

    async def begin(self) -> None:
        self.client.connect(self._hub, self._loop.time())
        self.send()
        await self.hear()

    def ended(self) -> ConnectionTerminated | None:
        return self.client._close_event


@pytest.mark.parametrize(
    ("destination_id", "source_id", "first"),
    [
        (b"d" * 8, b"s" * 8, 0xC3),
        (b"d" * 255, b"s" * 255, 0xC3),
        (b"d" * 21, b"", 0xC3),
        (b"d" * 8, b"s", 0x80),
    ],
)
async def test_a_packet_of_another_version_is_answered_whatever_its_ids(
    app: ConnectorApp, destination_id: bytes, source_id: bytes, first: int
) -> None:
    """RFC 8999: no rule of version 1 holds in it; ids have up to 255 bytes, and there is no fixed bit."""
    with _socket() as stranger:
        packet = _long_packet(_OTHER_VERSION, destination_id, source_id, first=first)
        stranger.sendto(packet, (HOST, app.quic_port))
        answer = await _answer(stranger)
    said = stateless.read_long_header(answer)
    assert said == stateless.LongHeader(0, destination_id=source_id, source_id=destination_id)
    versions = answer[7 + len(source_id) + len(destination_id) :]
    assert QuicProtocolVersion.VERSION_1.to_bytes(4, "big") in [
        versions[at : at + 4] for at in range(0, len(versions), 4)
    ]
    assert len(answer) < len(packet)


@pytest.mark.parametrize(
    "packet",
    [
        _long_packet(bytes(4), b"d" * 8, b"s" * 8),
        _long_packet(_OTHER_VERSION, b"d" * 8, b"s" * 8)[:1199],
        _long_packet(QuicProtocolVersion.VERSION_1.to_bytes(4, "big"), b"d" * 21, b"s" * 8),
        (b"\xc3" + _OTHER_VERSION + b"\xff").ljust(200, b"d"),
    ],
)
async def test_no_answer_to_what_may_be_an_answer_or_is_too_short(app: ConnectorApp, packet: bytes) -> None:
    """Neither two hubs nor a forged address make an endless exchange, or a larger one, of it."""
    with _socket() as stranger:
        stranger.sendto(packet, (HOST, app.quic_port))
        # Behind it, what is surely answered.
        stranger.sendto(_long_packet(_OTHER_VERSION, b"second", b"second"), (HOST, app.quic_port))
        said = stateless.read_long_header(await _answer(stranger))
    assert said is not None
    assert said.source_id == b"second"
    assert metric(app, "quic_dropped_total") == 1


def test_a_header_is_read_as_far_as_it_goes() -> None:
    packet = _long_packet(_OTHER_VERSION, b"d" * 9, b"s" * 255)
    whole = 7 + 9 + 255
    assert stateless.read_long_header(packet[:whole]) is not None
    assert [stateless.read_long_header(packet[:size]) for size in range(1, whole)] == [None] * (whole - 1)


async def test_a_token_that_is_no_longer_good_ends_the_opening(
    start_app: StartApp, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RFC 9000, 8.1.2: at once and with INVALID_TOKEN, not by the client's own time-out."""
    async with start_app() as app:
        peers = QuicPeers(authority, app.quic_port)
        assert app.quic
        with _socket() as stranger:
            opening = _Opening(stranger, peers, app)
            await opening.begin()
            monkeypatch.setattr(app.quic._retry, "proof", lambda *_: None)  # as after its 30 s
            sent = opening.send()
            answer = await opening.hear()
            end = opening.ended()
            assert end is not None
            assert end.error_code == QuicErrorCode.INVALID_TOKEN
            assert "token" in end.reason_phrase
            assert len(answer) < len(sent) / 5
            assert metric(app, "quic_dropped_total", reason="token_invalid") == 1
            assert metric(app, "quic_closes_total") == 1
            assert app.quic.connections == 0


async def test_the_token_of_a_hub_before_its_restart_ends_the_opening(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """Its key is gone; the client begins again instead of asking a hub that stays silent."""
    with _socket() as stranger:
        async with start_app() as app:
            opening = _Opening(stranger, QuicPeers(authority, app.quic_port), app)
            await opening.begin()
            port = app.quic_port
        async with start_app(quic_listen=f"{HOST}:{port}") as app:
            opening.send()
            await opening.hear()
            end = opening.ended()
            assert end is not None
            assert end.error_code == QuicErrorCode.INVALID_TOKEN


async def test_a_used_token_ends_the_opening_that_repeats_it(
    start_app: StartApp, authority: TestAuthority
) -> None:
    """C47: the connection that it opened was given up, and its client still asks."""
    async with start_app(opening_seconds=0.3) as app:
        with _socket() as stranger:
            opening = _Opening(stranger, QuicPeers(authority, app.quic_port), app)
            await opening.begin()
            hello = opening.send()
            await poll(lambda: app.quic and metric(app, "handshake_failures_total", transport="quic") == 1)
            await poll(lambda: app.quic and app.quic.connections == 0)
            with suppress(BlockingIOError):  # what the hub said before stays unread
                while True:
                    stranger.recv(2048)
            stranger.sendto(hello, (HOST, app.quic_port))
            await opening.hear()
            end = opening.ended()
            assert end is not None
            assert end.error_code == QuicErrorCode.INVALID_TOKEN
            assert metric(app, "quic_dropped_total", reason="token_used") == 1


async def test_only_what_a_client_made_is_answered_by_a_close(
    app: ConnectorApp, authority: TestAuthority
) -> None:
    """A packet that does not open under the keys of its own connection id gets nothing."""
    with _socket() as stranger:
        opening = _Opening(stranger, QuicPeers(authority, app.quic_port), app)
        opening.client._peer_token = b"made up"
        opening.client.connect((HOST, app.quic_port), 0.0)
        ((hello, _),) = opening.client.datagrams_to_send(0.0)
        last = pull_quic_header(Buffer(data=hello)).packet_length - 1
        broken = hello[:last] + bytes([hello[last] ^ 1]) + hello[last + 1 :]
        stranger.sendto(broken, (HOST, app.quic_port))
        stranger.sendto(hello, (HOST, app.quic_port))
        await opening.hear()
        end = opening.ended()
        assert end is not None
        assert end.error_code == QuicErrorCode.INVALID_TOKEN
        assert metric(app, "quic_dropped_total", reason="token_invalid") == 2
        assert metric(app, "quic_closes_total") == 1


async def test_closes_of_openings_are_bounded_and_links_open(
    start_app: StartApp, authority: TestAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C47: a flood of made-up tokens is answered so often and no more; an edge gets in."""
    async with start_app() as app:
        monkeypatch.setattr(app.quic, "_closes", TokenBucket(0.001, 3.0, asyncio.get_running_loop().time()))
        peers = QuicPeers(authority, app.quic_port)
        with _socket() as stranger:
            opening = _Opening(stranger, peers, app)
            opening.client._peer_token = b"made up"
            opening.client.connect((HOST, app.quic_port), 0.0)
            ((hello, _),) = opening.client.datagrams_to_send(0.0)
            for _ in range(10):
                stranger.sendto(hello, (HOST, app.quic_port))
            await poll(lambda: metric(app, "quic_dropped_total", reason="token_invalid") == 10)
            assert metric(app, "quic_closes_total") == 3
            async with peers.link("edge-1"):
                pass
