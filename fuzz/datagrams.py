"""Datagrams at a running QUIC listener: of strangers, of peers with a proved address, for others' links."""

import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from aioquic.quic.connection import QuicConnection
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from structlog.testing import capture_logs

from cloudhub.v1 import dispatcher_pb2
from cloudhub.v1.edge_pb2 import EdgeHeader, EdgeMessage, EdgeRouter
from fuzz.hub import IN_TIME_SECONDS, FuzzedHub, fuzzed_hub
from fuzz.target import Check
from services.connector.quic.connection import CONNECTION_ID_BYTES
from services.connector.quic.listener import QuicListener
from services.runtime.failure_log import INTERVAL_SECONDS
from tests.support.hub import request
from tests.support.processes import eventually
from tests.support.quic_peer import HOST, QuicPeer, QuicPeers

GOOD_NODE = "well-behaved-quic"
STRANGER = "edge-1"
OPENING_SECONDS = 1.0
"""Of the listener, so that what half made connections leave over is seen soon."""
# RFC 9000, 8.1. This hub keeps well below: what it sends to an address that proved nothing is smaller than
# what came from there.
MOST_AMPLIFICATION = 1.0
# Reasons of failed handshakes, each with a line per interval and one more when it ends.
MOST_REASONS = 12
_MOST_DATAGRAM_BYTES = 65_507
_BARRIER_VERSION = bytes.fromhex("1a2a3a4a")


@dataclass(frozen=True, slots=True)
class Flaw:
    """What is wrong with a datagram that was right once."""

    flips: tuple[int, ...] = ()
    """Places, modulo its length, at which a bit is the other one."""
    cut: int | None = None
    """It ends there, modulo its length."""
    behind: bytes = b""
    """What follows it in the same datagram."""
    version: bytes | None = None
    times: int = 1
    """How often it is sent."""

    def of(self, datagram: bytes) -> bytes:
        """The datagram with the flaw."""
        data = bytearray(datagram)
        if self.version is not None:
            data[1:5] = self.version
        for place in self.flips:
            data[place % len(data)] ^= 1 << (place % 8)
        if self.cut is not None:
            del data[self.cut % len(data) :]
        return (bytes(data) + self.behind)[:_MOST_DATAGRAM_BYTES]


@dataclass(frozen=True, slots=True)
class Raw:
    """Any bytes."""

    data: bytes


@dataclass(frozen=True, slots=True)
class FirstFlight:
    """The first packet of a real client."""

    flaw: Flaw


@dataclass(frozen=True, slots=True)
class Opening:
    """A real client whose datagram number `place` after the retry has the flaw; `elsewhere`: it, and what
    follows, comes from another address than the token."""

    place: int
    flaw: Flaw
    elsewhere: bool
    certificate: bool


@dataclass(frozen=True, slots=True)
class OthersLink:
    """A packet for the connection of the edge that behaves well: one of its own again, or garbage."""

    own: bool
    flaw: Flaw
    filling: bytes


Step = Raw | FirstFlight | Opening | OthersLink

_SIZES = st.sampled_from([0, 1, 8, 9, 20, 21, 22, 43, 44, 1199, 1200, 1472, 9000, _MOST_DATAGRAM_BYTES])
_IDS = st.integers(0, 21).flatmap(lambda size: st.just(bytes([size]) + bytes(size)))
_VERSIONS = st.sampled_from(
    [bytes(4), b"\x00\x00\x00\x01", _BARRIER_VERSION, b"k3C\xcf", b"\xff" * 4, b"Q050"]
)
_LONG_HEADERS = st.builds(
    lambda first, version, ids, rest, size: bytes([first]) + version + b"".join(ids) + rest + bytes(size),
    st.integers(0xC0, 0xFF),
    _VERSIONS,
    st.tuples(_IDS, _IDS),
    # No token and no content, or anything.
    st.just(bytes(2)) | st.binary(max_size=12),
    st.sampled_from([0, 0, 1200]),
)
_RAW = (
    st.binary(max_size=80)
    | _LONG_HEADERS
    | st.builds(
        lambda first, filling, size: (first + filling * size)[:size],
        st.sampled_from(
            [b"\x40", b"\x7f", b"\xc0\x00\x00\x00\x01", b"\xe3\x00\x00\x00\x01\x08", b"\xff", b"\xf0"]
        ),
        st.binary(min_size=1, max_size=24),
        _SIZES,
    )
)
_FLAWS = st.just(Flaw()) | st.builds(
    Flaw,
    flips=st.lists(st.integers(0, 1199), max_size=3).map(tuple),
    cut=st.none() | st.integers(0, 1199),
    behind=st.just(b"") | st.binary(max_size=200) | st.binary(min_size=20, max_size=40).map(b"\xc0".__add__),
    version=st.none() | _VERSIONS,
    times=st.sampled_from([1, 1, 1, 3]),
)
_STEPS: SearchStrategy[Step] = st.one_of(
    st.builds(Raw, _RAW),
    st.builds(Raw, _LONG_HEADERS),
    st.builds(FirstFlight, _FLAWS),
    st.builds(Opening, st.integers(0, 3), _FLAWS, st.booleans(), st.booleans()),
    st.builds(OthersLink, st.booleans(), _FLAWS, st.binary(min_size=1, max_size=40)),
)


def attacks() -> SearchStrategy[list[Step]]:
    """What one stranger does."""
    return st.lists(_STEPS, min_size=1, max_size=4)


class Stranger:
    """One UDP socket, and what passed over it."""

    def __init__(self, port: int) -> None:
        self._hub = (HOST, port)
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((HOST, 0))
        self.sent = self.received = 0
        self.is_proved = False
        """Whether it sent a token back that was made for its address."""

    def send(self, datagram: bytes) -> None:
        self._socket.sendto(datagram, self._hub)
        self.sent += len(datagram)

    def receive(self, seconds: float) -> bytes | None:
        """The next datagram of the hub; None if there is none in time."""
        self._socket.settimeout(seconds or 1e-6)
        try:
            datagram = self._socket.recv(65_535)
        except (TimeoutError, BlockingIOError):
            return None
        self.received += len(datagram)
        return datagram

    def take_all(self) -> list[bytes]:
        """What came since."""
        return list(iter(lambda: self.receive(0), None))

    def wait_for_turn(self) -> None:
        """Returns when the hub has handled all that was sent before, and has sent what it had to say to it:
        the loopback keeps the order, and a turn of its loop lies between the two answers."""
        for number in range(2):
            mark = number.to_bytes(8, "big")
            self._socket.sendto(
                b"\xc0" + _BARRIER_VERSION + b"\x08" + mark + b"\x08" + mark + bytes(1200), self._hub
            )
            while (answer := self.receive(IN_TIME_SECONDS)) is not None and answer[6:14] != mark:
                pass
            assert answer is not None, "the hub answers nobody any more"

    def close(self) -> None:
        self._socket.close()


class Neighbour:
    """The edge that behaves well, over QUIC."""

    def __init__(self, hub: FuzzedHub, peers: QuicPeers) -> None:
        self._hub = hub
        self._peers = peers
        self._peer: QuicPeer | None = None
        self._transport: Any = None
        self._version = 0
        self.sent: deque[bytes] = deque(maxlen=16)
        """Its last datagrams, as whoever is on the way sees them."""

    async def open(self) -> None:
        """Its link."""
        self._transport, self._peer = await self._peers.dial(self._peers.issued(GOOD_NODE))
        send = self._transport.sendto

        def sendto(data: bytes, address: tuple[str, int]) -> None:
            self.sent.append(data)
            send(data, address)

        self._peer._transport = type("Tap", (), {"sendto": staticmethod(sendto)})()
        self._peer.ask(GOOD_NODE)
        self._peer.begin()
        answer = await self._peer.answer()
        assert answer.router.operation == "ack", answer

    @property
    def connection_id(self) -> bytes:
        """Where the hub expects its packets."""
        assert self._peer is not None
        return bytes(self._peer.quic._peer_cid.cid)

    async def exchange(self) -> None:
        """A message to it and its acknowledgement, over the link that it had at the beginning."""
        assert self._peer is not None
        self._version += 1
        wanted = request(GOOD_NODE, version=self._version, message_id=f"quic-{self._version}")
        await self._hub.hub.accept(wanted)
        message = await self._peer.message()
        assert message.header.id == wanted.message.id, message
        self._peer.say(
            EdgeMessage(
                header=EdgeHeader(id=f"answer-{self._version}", parent_id=message.header.id, timestamp_ms=1),
                router=EdgeRouter(source="edged", group="resource", operation="response", resource="x"),
                content=b'"OK"',
            )
        )
        await self._hub.hub.until_state(
            GOOD_NODE, "uid-cm1", dispatcher_pb2.DELIVERY_STATE_ACKNOWLEDGED, IN_TIME_SECONDS
        )
        assert self._peer.ended is None

    async def close(self) -> None:
        """Ends its link."""
        if self._peer is not None:
            self._peer.close()
            self._transport.close()


class Attacker:
    """Plays attacks against one listener, and looks what became of it."""

    def __init__(
        self, hub: FuzzedHub, listener: QuicListener, peers: QuicPeers, neighbour: Neighbour
    ) -> None:
        self._hub, self._listener, self._peers, self._neighbour = hub, listener, peers, neighbour
        self._openings = 0
        """Times that a token came back in this attack: connections that the hub may have made."""

    def check(self, attack: list[Step]) -> None:
        """Plays one attack. AssertionError if the hub did what it should not."""
        before, self._openings = self._listener.connections, 0
        strangers: list[Stranger] = []
        watch = Stranger(self._peers.port)
        try:
            for step in attack:
                here = Stranger(self._peers.port)
                strangers.append(here)
                match step:
                    case Raw(data):
                        here.send(data)
                    case FirstFlight(flaw):
                        datagram = flaw.of(self._client(certificate=False).datagrams_to_send(0.0)[0][0])
                        for _ in range(flaw.times):
                            here.send(datagram)
                    case OthersLink(own, flaw, filling):
                        taken = self._neighbour.sent[-1] if own else b""
                        garbage = b"\x40" + self._neighbour.connection_id + filling
                        for _ in range(flaw.times):
                            here.send(taken or flaw.of(garbage))
                    case Opening():
                        self._open(step, strangers, watch)
            watch.wait_for_turn()
            for stranger in strangers:
                stranger.take_all()
                assert stranger.is_proved or stranger.received <= MOST_AMPLIFICATION * stranger.sent, (
                    f"{attack}: {stranger.received} bytes to an address that proved nothing, "
                    f"for {stranger.sent} bytes"
                )
            self._hub.nothing_raised()
            made = self._listener.connections - before
            assert made <= self._openings, f"{attack}: a connection without a token"
        finally:
            for stranger in (*strangers, watch):
                stranger.close()

    def _client(self, *, certificate: bool) -> QuicConnection:
        issued = self._peers.issued(STRANGER) if certificate else None
        quic = QuicConnection(configuration=self._peers.configuration(issued))
        quic.connect((HOST, self._peers.port), 0.0)
        return quic

    def _open(self, opening: Opening, strangers: list[Stranger], watch: Stranger) -> None:
        """As far as the hub answers; a client that is silent or gets no answer is left alone."""
        stranger = dialler = strangers[-1]
        began = time.monotonic()
        quic = self._client(certificate=opening.certificate)
        sent = 0
        while sent < 6:
            for datagram, _ in quic.datagrams_to_send(time.monotonic() - began):
                if sent == 1 + opening.place:
                    if opening.elsewhere:
                        stranger = Stranger(self._peers.port)
                        strangers.append(stranger)
                    for _ in range(opening.flaw.times):
                        stranger.send(opening.flaw.of(datagram))
                else:
                    stranger.send(datagram)
                if sent == 1 and stranger is dialler:
                    self._openings += 1
                    stranger.is_proved = True
                sent += 1
            watch.wait_for_turn()
            answers = stranger.take_all()
            if not answers:
                return
            for answer in answers:
                quic.receive_datagram(answer, (HOST, self._peers.port), time.monotonic() - began)


@contextmanager
def datagrams_checked() -> Iterator[Check[list[Step]]]:
    """The check of one attack; an edge that behaves well keeps its link, of the others nothing stays, and
    nobody can fill the log."""
    with capture_logs() as lines, fuzzed_hub(connector={"opening_seconds": OPENING_SECONDS}) as hub:
        began = time.monotonic()
        listener = hub.hub.connector.app.quic
        assert listener is not None
        peers = QuicPeers(hub.hub.authority, listener.port)
        neighbour = Neighbour(hub, peers)
        hub.wait(neighbour.open())
        attacker = Attacker(hub, listener, peers, neighbour)
        count = 0

        def check(attack: list[Step]) -> None:
            nonlocal count
            attacker.check(attack)
            count += 1
            if count % 20 == 0:
                hub.wait(neighbour.exchange())

        try:
            hub.wait(neighbour.exchange())
            yield check
            hub.wait(neighbour.exchange())
            hub.wait(eventually(lambda: listener.connections == 1, what="the end of half made connections"))
            assert listener.openings == 0
            assert listener.connection_ids <= CONNECTION_ID_BYTES + 2
            told = [line for line in lines if line["event"] == "handshake.failed"]
            most = MOST_REASONS * (2 + (time.monotonic() - began) / INTERVAL_SECONDS)
            assert len(told) <= most, f"{len(told)} lines about failed handshakes"
            assert any(line["event"] == "link.opened" for line in lines), "the log was not seen"
        finally:
            hub.wait(neighbour.close())
