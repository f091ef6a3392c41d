"""Many QUIC openings on one narrow wire, in virtual time: both ends' real connections, no socket."""

import heapq
import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aioquic._buffer import Buffer
from aioquic.quic import events
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.packet import QuicPacketType, encode_quic_retry, pull_quic_header

from edge.quic_link import _Connection as EdgeConnection
from edge.reconnect import LinkEnd
from edge.transport import FirstRoundTrip
from services.connector.quic.connection import CONNECTION_ID_BYTES, HubConnection, ResetTokens
from services.connector.quic.retry_tokens import RetryTokens
from services.connector.quic.setup import PROTOCOL, server_configuration
from tests.support.certs import Issued, TestAuthority

EDGE, HUB = ("192.0.2.1", 4711), ("192.0.2.2", 10001)
EDGES = 20
BYTES_PER_SECOND = 8000
"""64 kbit/s."""
QUEUE_SECONDS = 6.0
OPEN_SECONDS = 15.0
"""The default of the edge agent."""
IP_AND_UDP_BYTES = 28


class Time:
    """What is to happen, and when."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def at(self, when: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._due, (when, next(self._order), call))

    def run(self, until: float, done: Callable[[], bool]) -> None:
        while self._due and not done() and self._due[0][0] <= until:
            when, _, call = heapq.heappop(self._due)
            self.now = max(self.now, when)
            call()


@dataclass
class Wire:
    """One direction: packets go one after the other, and those for which the queue has no room are lost."""

    time: Time
    carried: int = 0
    _free_at: float = 0.0

    def send(self, datagram: bytes, arrives: Callable[[bytes], None]) -> None:
        self._free_at = max(self._free_at, self.time.now)
        if self._free_at > self.time.now + QUEUE_SECONDS:
            return
        size = len(datagram) + IP_AND_UDP_BYTES
        self.carried += size
        self._free_at += size / BYTES_PER_SECOND
        self.time.at(self._free_at, lambda: arrives(datagram))


@dataclass
class End:
    """One end of one connection, with its timer."""

    time: Time
    quic: HubConnection | EdgeConnection
    send: Callable[[bytes], None]
    heard: Callable[[events.QuicEvent], None]
    over: bool = False
    _timer_at: float | None = None

    def receive(self, datagram: bytes, sender: tuple[str, int]) -> None:
        if not self.over:
            self.quic.receive_datagram(datagram, sender, self.time.now)
            self.flush()

    def flush(self) -> None:
        while (event := self.quic.next_event()) is not None:
            self.heard(event)
        for datagram, _ in self.quic.datagrams_to_send(self.time.now):
            self.send(datagram)
        due = self.quic.get_timer()
        if due is not None and (self._timer_at is None or due < self._timer_at):
            self._timer_at = due
            self.time.at(due, lambda: self._fired(due))

    def _fired(self, at: float) -> None:
        if self.over or self._timer_at != at:
            return
        self._timer_at = None
        due = self.quic.get_timer()
        if due is not None and due <= self.time.now:
            self.quic.handle_timer(self.time.now)
        self.flush()


@dataclass
class Hub:
    """Retries, and opens, as the listener does."""

    time: Time
    configuration: QuicConfiguration
    _tokens: RetryTokens = field(default_factory=RetryTokens)
    _by_id: dict[bytes, End] = field(default_factory=dict)

    def receive(self, datagram: bytes, answer: Callable[[bytes], None]) -> None:
        header = pull_quic_header(Buffer(data=datagram), host_cid_length=CONNECTION_ID_BYTES)
        end = self._by_id.get(header.destination_cid)
        if end is None and header.packet_type is QuicPacketType.INITIAL:
            if not header.token:
                retry_id = os.urandom(CONNECTION_ID_BYTES)
                token = self._tokens.token(EDGE, header.destination_cid, retry_id, self.time.now)
                assert header.version is not None
                answer(
                    encode_quic_retry(
                        header.version, retry_id, header.source_cid, header.destination_cid, token
                    )
                )
                return
            end = self._connect(header.destination_cid, header.token, answer)
        if end is not None:
            end.receive(datagram, EDGE)

    def _connect(self, retry_id: bytes, token: bytes, answer: Callable[[bytes], None]) -> End | None:
        proof = self._tokens.proof(EDGE, retry_id, token, self.time.now)
        if proof is None:
            return None
        quic = HubConnection(
            self.configuration,
            ResetTokens(b"secret"),
            original_connection_id=proof.original_id,
            retry_connection_id=retry_id,
            round_trip=proof.round_trip,
        )

        def heard(event: events.QuicEvent) -> None:
            if isinstance(event, events.ConnectionIdIssued):
                self._by_id[event.connection_id] = end
            elif isinstance(event, events.StreamDataReceived):
                quic.send_stream_data(0, b"an answer")

        end = End(self.time, quic, answer, heard)
        self._by_id[retry_id] = self._by_id[quic.host_cid] = end
        return end


class Edge:
    """Dials until it has an answer, as the agent does."""

    def __init__(self, time: Time, wires: tuple[Wire, Wire], hub: Hub, setup: QuicConfiguration) -> None:
        self.opened_at: float | None = None
        self.dials = 0
        self._time, self._hub, self._setup = time, hub, setup
        self._up, self._down = wires
        self._patience = FirstRoundTrip()

    def dial(self) -> None:
        self.dials += 1
        self._setup.initial_rtt = self._patience.seconds
        quic = EdgeConnection(configuration=self._setup)

        def down(datagram: bytes) -> None:
            self._down.send(datagram, lambda arrived: end.receive(arrived, HUB))

        end = End(
            self._time,
            quic,
            lambda datagram: self._up.send(datagram, lambda arrived: self._hub.receive(arrived, down)),
            self._heard,
        )
        quic.connect(HUB, self._time.now)
        quic.send_stream_data(0, bytes(150))
        end.flush()
        self._time.at(self._time.now + OPEN_SECONDS, lambda: self._out_of_time(end))

    def _heard(self, event: events.QuicEvent) -> None:
        if isinstance(event, events.StreamDataReceived) and self.opened_at is None:
            self.opened_at = self._time.now

    def _out_of_time(self, end: End) -> None:
        if self.opened_at is None:
            end.over = True
            self._patience.ended(LinkEnd("failed", "no answer in time"))
            self.dial()


Play = Callable[[int], tuple[list[Edge], Wire, Wire]]


@pytest.fixture
def opened(authority: TestAuthority, server_certificate: Issued) -> Play:
    """Lets so many edges dial in one instant, until all are in or a minute is over."""

    def play(count: int) -> tuple[list[Edge], Wire, Wire]:
        time = Time()
        wires = Wire(time), Wire(time)
        hub = Hub(
            time,
            server_configuration(
                Path(server_certificate.certificate),
                Path(server_certificate.key),
                idle_timeout=60.0,
                window_bytes=65536,
            ),
        )
        edges = []
        for number in range(count):
            issued = authority.node(f"edge-{number}")
            setup = QuicConfiguration(
                alpn_protocols=[PROTOCOL], server_name="localhost", cafile=str(authority.certificate)
            )
            setup.load_cert_chain(issued.certificate, issued.key)
            edges.append(Edge(time, wires, hub, setup))
        for edge in edges:
            time.at(0.0, edge.dial)
        time.run(60.0, lambda: all(edge.opened_at is not None for edge in edges))
        return edges, *wires

    return play


def test_an_opening_is_so_many_bytes(opened: Play) -> None:
    """The figures of docs/weak-networks.md."""
    (edge,), up, down = opened(1)
    assert edge.opened_at is not None
    assert up.carried == 3 * (1200 + IP_AND_UDP_BYTES)
    assert down.carried < 2000


def test_twenty_edges_get_in_over_64_kbit_per_second(
    opened: Play,
) -> None:
    """All their first packets alone wait for three seconds; copies of them must not fill the wire."""
    edges, up, _ = opened(EDGES)
    at = [edge.opened_at for edge in edges]
    assert None not in at
    assert max(each or 0.0 for each in at) < 25.0
    assert sum(edge.dials for edge in edges) <= EDGES + EDGES // 4
    assert up.carried / EDGES < 2 * 3 * (1200 + IP_AND_UDP_BYTES)
