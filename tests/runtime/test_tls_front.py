"""The front that ends TLS, over real sockets, before plain servers: what it carries and what ends it."""

import asyncio
import contextlib
import gc
import shutil
import socket
import ssl
import struct
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.runtime import front_connection, tls_front
from services.runtime.callers import Callers, client_address
from services.runtime.front_connection import FrontConnection
from services.runtime.grpc_metrics import GrpcMetrics
from services.runtime.listening import listening_sockets
from services.runtime.openings import OpeningLimits
from services.runtime.rate_limit import RateLimit
from services.runtime.refusals import Refusals
from services.runtime.roles import Role
from services.runtime.tls_front import REFUSING, SERVED, TlsFront
from tests.support.certs import Issued, TestAuthority
from tests.support.figures import Figures
from tests.support.processes import eventually
from tests.support.strangers import shown as told
from tests.support.strangers import times

MIB = 1024 * 1024
PIECES, PIECE = 1024, 64 * 1024
# The limit, and what was read in one go when it was reached.
MOST_BUFFERED = 2 * front_connection.BUFFER_BYTES + 8192
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until the client has ended; then this side ends too."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def stalled(count: Callable[[], int]) -> None:
    """Returns when something moves no more."""
    async with asyncio.timeout(30):
        before = -1
        while count() != before or not before:
            before = count()
            await asyncio.sleep(0.3)  # so long nothing moves


class Fronted:
    """A front with a server behind it that `serve` says."""

    def __init__(self, authority: TestAuthority) -> None:
        self.authority = authority
        self.callers = Callers()
        self.metrics = GrpcMetrics("x", CollectorRegistry())
        self._security = authority.security(authority.service())
        self.front = TlsFront(
            self._security.server_tls,
            self.callers,
            Refusals(self.metrics.refused),
            self.metrics.failed_handshakes,
        )
        self.serve: Serve = echo
        self.server_writers: list[asyncio.StreamWriter] = []
        self.served = 0
        self.refused = 0
        self.port = 0

    async def start(self, folder: Path, listen: str = "127.0.0.1:0") -> None:
        async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.served += 1
            self.server_writers.append(writer)
            await self.serve(reader, writer)

        async def turned_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.refused += 1
            await echo(reader, writer)

        self._behind = [
            await asyncio.start_unix_server(accepted, folder / SERVED),
            await asyncio.start_unix_server(turned_away, folder / REFUSING),
        ]
        sockets = await listening_sockets(listen)
        self.port = sockets[0].getsockname()[1]
        await self.front.start(sockets, folder)

    async def close(self) -> None:
        for server in self._behind:
            server.close()
        for writer in self.server_writers:
            writer.close()
        await self.front.close()

    def context(self, issued: Issued | None, protocols: tuple[str, ...] = ("h2",)) -> ssl.SSLContext:
        context = self.authority.client_context(issued)
        if protocols:
            context.set_alpn_protocols(list(protocols))
        return context

    async def connect(
        self, issued: Issued | None, host: str = "127.0.0.1"
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(
            host, self.port, ssl=self.context(issued), server_hostname="localhost"
        )

    def failed(self, reason: str) -> float:
        return float(self.metrics.failed_handshakes.labels(reason)._value.get())


@pytest.fixture
def authority(tmp_path: Path) -> TestAuthority:
    return TestAuthority(tmp_path / "ca")


@pytest.fixture
def shown(authority: TestAuthority) -> Issued:
    """A certificate that is good."""
    return authority.program("shop", Role.PUBLISHER)


@pytest.fixture
async def fronted(authority: TestAuthority) -> AsyncIterator[Fronted]:
    """Paths of sockets are short."""
    folder = Path(tempfile.mkdtemp())
    running = Fronted(authority)
    await running.start(folder)
    try:
        yield running
    finally:
        await running.close()
        shutil.rmtree(folder)
    assert (len(running.callers), running.front.connections, running.front.handshakes) == (0, 0, 0)


async def test_bytes_go_both_ways_as_they_are(fronted: Fronted, shown: Issued) -> None:
    """Small pieces and large ones, over several connections at once."""
    pieces = [bytes([number]) * size for number, size in enumerate((1, 16_383, 16_385, 300_000, 5 * MIB))]

    async def one() -> None:
        reader, writer = await fronted.connect(shown)
        for piece in pieces:
            writer.write(piece)
        for piece in pieces:
            assert await reader.readexactly(len(piece)) == piece
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*(one() for _ in range(4)))
    await eventually(lambda: fronted.front.connections == 0, 5)


async def test_a_client_that_does_not_read_stops_the_server_and_then_gets_all(
    fronted: Fronted, shown: Issued
) -> None:
    """What waits is bounded: in the sockets, and in two buffers of the front."""
    sent = 0

    async def pour(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"first")
        for number in range(PIECES):
            writer.write(bytes([number % 251]) * PIECE)
            await writer.drain()
            sent += 1
        writer.close()

    fronted.serve = pour
    reader, writer = await fronted.connect(shown)
    assert await reader.readexactly(5) == b"first"
    transport: Any = writer.transport
    transport.pause_reading()
    await stalled(lambda: sent)
    assert sent < PIECES / 2
    (connection,) = fronted.front._connections
    assert connection._transport.get_write_buffer_size() <= MOST_BUFFERED
    transport.resume_reading()
    for number in range(PIECES):
        assert await reader.readexactly(PIECE) == bytes([number % 251]) * PIECE
    assert await reader.read() == b""
    writer.close()


async def test_a_server_that_does_not_read_stops_the_client(fronted: Fronted, shown: Issued) -> None:
    go_on, got, sent = asyncio.Event(), 0, 0

    async def wait_then_read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal got
        await go_on.wait()
        while data := await reader.read(MIB):
            got += len(data)
        writer.close()

    async def pour(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        for _ in range(PIECES):
            writer.write(bytes(PIECE))
            await writer.drain()
            sent += 1

    fronted.serve = wait_then_read
    _, writer = await fronted.connect(shown)
    pouring = asyncio.create_task(pour(writer))
    await stalled(lambda: sent)
    assert sent < PIECES / 2
    (connection,) = fronted.front._connections
    assert connection._inner is not None
    assert connection._inner.transport.get_write_buffer_size() <= MOST_BUFFERED
    go_on.set()
    await pouring
    await eventually(lambda: got == PIECES * PIECE, 20)
    writer.close()


async def test_when_the_server_ends_the_client_gets_what_it_was_sent(fronted: Fronted, shown: Issued) -> None:
    async def last_word(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"goodbye" * 10_000)
        writer.close()

    fronted.serve = last_word
    reader, writer = await fronted.connect(shown)
    writer.write(b"what nobody reads")
    assert await reader.read() == b"goodbye" * 10_000
    writer.close()
    await eventually(lambda: fronted.front.connections == 0, 5)


async def test_when_the_client_ends_the_server_sees_it_and_its_answer_still_goes_out(
    fronted: Fronted, shown: Issued
) -> None:
    """A client that is half closed, at the level of TCP: `shutdown` by hand, since TLS of Python has none."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"question"
        writer.write(b"answer")
        writer.close()

    fronted.serve = answer

    def client() -> bytes:
        with socket.create_connection(("127.0.0.1", fronted.port)) as raw:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = fronted.context(shown).wrap_bio(incoming, outgoing, server_hostname="localhost")
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    raw.sendall(outgoing.read())
                    incoming.write(raw.recv(65536))
            tls.write(b"question")
            raw.sendall(outgoing.read())
            raw.shutdown(socket.SHUT_WR)
            while data := raw.recv(65536):
                incoming.write(data)
            return tls.read(100)

    assert await asyncio.to_thread(client) == b"answer"
    await eventually(lambda: fronted.front.connections == 0, 5)


@pytest.mark.parametrize("side", ["client", "server"])
async def test_a_side_that_is_cut_cuts_the_other(fronted: Fronted, shown: Issued, side: str) -> None:
    ended = asyncio.Event()

    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"x")
        try:
            await reader.read()
        finally:
            writer.close()
            ended.set()

    fronted.serve = stay
    reader, writer = await fronted.connect(shown)
    assert await reader.read(1) == b"x"
    if side == "client":
        writer.transport.abort()
        await asyncio.wait_for(ended.wait(), 5)
    else:
        fronted.server_writers[0].transport.abort()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    await eventually(lambda: fronted.front.connections == 0, 5)


def _hello(fronted: Fronted, shown: Issued, protocols: tuple[str, ...] = ("h2",)) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = fronted.context(shown, protocols).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


BROKEN: dict[str, tuple[Callable[[Fronted, Issued], bytes], str]] = {
    "HTTP": (lambda *_: b"GET / HTTP/1.1\r\nHost: hub\r\n\r\n", "not_tls"),
    "gRPC without TLS": (lambda *_: b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "not_tls"),
    "nothing that is known": (lambda *_: bytes(range(256)), "not_tls"),
    "another protocol": (lambda fronted, shown: _hello(fronted, shown, ("http/1.1",)), "no_http2"),
    "half a handshake": (lambda fronted, shown: _hello(fronted, shown)[:100], "peer_closed"),
}


@pytest.mark.parametrize("what", BROKEN)
async def test_a_handshake_that_comes_to_nothing_is_told_once(
    fronted: Fronted, shown: Issued, what: str
) -> None:
    """C5: counted each time; one line, and the number of those that followed, so that nobody fills a disk."""
    make, reason = BROKEN[what]
    sent = make(fronted, shown)
    with capture_logs() as logs:
        for count in range(1, 6):
            reader, writer = await asyncio.open_connection("127.0.0.1", fronted.port)
            writer.write(sent)
            if reason == "peer_closed":
                writer.write_eof()
            await asyncio.wait_for(reader.read(), 5)
            writer.close()
            await eventually(lambda count=count: fronted.failed(reason) == count, 5)  # type: ignore[misc]
    (line,) = logs
    assert (line["event"], line["reason"], line["logger"]) == ("handshake.failed", reason, "cloudhub.audit")
    assert line["address"].startswith("ipv4:127.0.0.1:")
    await eventually(lambda: fronted.front.connections == 0, 5)
    with capture_logs() as logs:
        await fronted.front.close()
    assert [line["count"] for line in logs] == [4]
    assert fronted.served == fronted.refused == 0


async def test_a_client_that_offers_no_protocol_is_told_apart(fronted: Fronted, shown: Issued) -> None:
    context = fronted.context(shown, ())
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", fronted.port, ssl=context, server_hostname="localhost"
        )
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    assert [(line["reason"], "ALPN" in line["detail"]) for line in logs] == [("no_http2", True)]
    assert fronted.served == fronted.refused == 0


async def test_a_client_that_does_not_trust_the_server_is_told(
    fronted: Fronted, shown: Issued, tmp_path: Path
) -> None:
    context = TestAuthority(tmp_path / "other", "other").client_context(None)
    context.set_alpn_protocols(["h2"])

    def client() -> None:
        with (
            socket.create_connection(("127.0.0.1", fronted.port)) as raw,
            pytest.raises(ssl.SSLCertVerificationError),
            context.wrap_socket(raw, server_hostname="localhost"),
        ):
            raise AssertionError("it was trusted")

    with capture_logs() as logs:
        await asyncio.to_thread(client)
        await eventually(lambda: logs, 5)
    assert [(line["reason"], line["detail"]) for line in logs] == [("peer_alert", "tlsv1 alert unknown ca")]


async def test_who_only_looks_whether_the_port_is_open_is_counted_and_not_told(fronted: Fronted) -> None:
    with capture_logs() as logs:
        for _ in range(3):
            _, writer = await asyncio.open_connection("127.0.0.1", fronted.port)
            writer.close()
        await eventually(lambda: fronted.failed("peer_closed") == 3, 5)
    assert logs == []


async def test_a_handshake_has_its_time(
    fronted: Fronted, shown: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_front, "_HANDSHAKE_SECONDS", 0.2)
    with capture_logs() as logs:
        reader, writer = await asyncio.open_connection("127.0.0.1", fronted.port)
        writer.write(_hello(fronted, shown)[:50])
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    assert [line["reason"] for line in logs] == ["handshake_timeout"]
    # Who has finished is not hurried.
    reader, writer = await fronted.connect(shown)
    await asyncio.sleep(0.3)  # longer than a handshake may take
    writer.write(b"x")
    assert await reader.readexactly(1) == b"x"
    writer.close()


@pytest.fixture
def few_openings(monkeypatch: pytest.MonkeyPatch) -> OpeningLimits:
    """As if for a small machine; to be asked for before the front."""
    limits = OpeningLimits(max_openings=8, max_waiting=12, patience=0.1, hurried=0.3)
    monkeypatch.setattr(tls_front, "_OPENINGS", limits)
    return limits


def _begun(fronted: Fronted, shown: Issued, address: str, count: int) -> list[socket.socket]:
    """So many connections from an address of this machine that begin a handshake and go on no further."""
    found = _silent(fronted, address, count)
    for one in found:
        one.sendall(_hello(fronted, shown)[:50])
    return found


def _silent(fronted: Fronted, address: str, count: int) -> list[socket.socket]:
    """So many connections from an address of this machine that say nothing."""
    return [
        socket.create_connection(("127.0.0.1", fronted.port), source_address=(address, 0))
        for _ in range(count)
    ]


async def served(fronted: Fronted, shown: Issued, address: str = "127.0.0.1") -> float:
    """A client of an address shakes hands and has an answer; how many seconds that took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(5):
        reader, writer = await asyncio.open_connection(
            "127.0.0.1",
            fronted.port,
            ssl=fronted.context(shown),
            server_hostname="localhost",
            local_addr=(address, 0),
        )
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
    writer.close()
    return loop.time() - began


async def test_handshakes_that_stand_make_room_for_those_of_other_networks(
    few_openings: OpeningLimits, fronted: Fronted, shown: Issued, figures: Figures
) -> None:
    """C47: one network's unfinished handshakes fill all the room there is; the oldest gives way."""

    async def serve(_: int) -> None:
        await served(fronted, shown)

    idle = await times(20, serve)
    standing = _begun(fronted, shown, "127.0.0.9", 8)
    await eventually(lambda: fronted.front.handshakes == 8, 5)
    attacked = await times(1, serve)
    figures(told("connect to gRPC, all handshakes another network's", idle, attacked))
    assert attacked[-1] < few_openings.patience + 1.0
    assert fronted.failed("handshake_timeout") == 1
    for one in standing:
        one.close()


async def test_silent_connections_take_nothing_from_those_who_speak(
    few_openings: OpeningLimits, fronted: Fronted, shown: Issued, figures: Figures
) -> None:
    """C47: not of the room for handshakes, nor of what is let in; at their bound the oldest of them go."""

    async def serve(_: int) -> None:
        await served(fronted, shown)

    idle = await times(20, serve)
    silent = await asyncio.to_thread(_silent, fronted, "127.0.0.9", 40)
    await eventually(lambda: fronted.failed("silent_many") == 28, 5)
    assert (fronted.front.silent, fronted.front.handshakes) == (12, 0)
    figures(told("connect to gRPC, silent connections at their bound", idle, await times(20, serve)))
    # From its own address too.
    await served(fronted, shown, "127.0.0.9")
    assert fronted.failed("handshake_rate_address") == 0
    # The newest are still there, and may speak.
    assert silent[0].recv(1) == b""
    silent[-1].setblocking(False)
    with pytest.raises(BlockingIOError):
        silent[-1].recv(1)
    for one in silent:
        one.close()


@pytest.fixture
def low_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if for a small machine; to be asked for before the front."""
    for name, value in {"NETWORK_PER_SECOND": 0.001, "NETWORK_BURST": 8, "ALL_BURST": 20}.items():
        monkeypatch.setattr(tls_front, f"_{name}", value)
    monkeypatch.setattr(tls_front, "_ALL_PER_SECOND", 0.001)


def _flood(fronted: Fronted, address: str, count: int, said: bytes = b"?") -> None:
    """So many connections from an address of this machine, each for the least moment."""
    for _ in range(count):
        with socket.create_connection(("127.0.0.1", fronted.port), source_address=(address, 0)) as one:
            one.sendall(said)


async def test_connects_alone_use_up_no_budget(low_rates: None, fronted: Fronted, shown: Issued) -> None:
    """C47: it is bytes that cost a handshake; whoever only connects leaves all others theirs."""
    await asyncio.to_thread(_flood, fronted, "127.0.0.9", 100, b"")
    await eventually(lambda: fronted.failed("peer_closed") == 100, 10)
    for _ in range(8):
        await served(fronted, shown, "127.0.0.9")
    assert fronted.failed("handshake_rate_address") == fronted.failed("handshake_rate") == 0


async def test_a_flood_of_handshakes_of_one_address_leaves_the_others_theirs(
    low_rates: None, fronted: Fronted, shown: Issued
) -> None:
    """Invariant 7 for gRPC. Connections that are open stay."""
    kept_reader, kept = await fronted.connect(shown)
    with capture_logs() as logs:
        await asyncio.to_thread(_flood, fronted, "127.0.0.9", 30)
        await eventually(lambda: fronted.failed("handshake_rate_address") == 22, 10)
        with pytest.raises(OSError):
            await served(fronted, shown, "127.0.0.9")
        await served(fronted, shown)
        kept.write(b"x")
        assert await kept_reader.readexactly(1) == b"x"
        kept.close()
    told = [line for line in logs if line.get("reason") == "handshake_rate_address"]
    assert {line["address"] for line in told} == {"127.0.0.9"}
    assert fronted.failed("handshake_rate") == 0


async def test_handshakes_of_all_addresses_together_have_a_rate(low_rates: None, fronted: Fronted) -> None:
    for number in range(2, 7):
        await asyncio.to_thread(_flood, fronted, f"127.0.0.{number}", 8)
    await eventually(lambda: fronted.failed("handshake_rate") == 20, 10)
    assert fronted.failed("handshake_rate_address") == 0


async def test_replicas_that_come_back_at_once_are_all_let_in(fronted: Fronted, shown: Issued) -> None:
    """With the rates of a real front, all from one address."""
    connections = await asyncio.gather(*(fronted.connect(shown) for _ in range(200)))
    await eventually(lambda: fronted.served == 200, 20)
    for _, writer in connections:
        writer.close()


async def test_the_oldest_of_many_refused_connections_makes_room(
    fronted: Fronted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tls_front, "_MOST_REFUSED", 4)
    connections = [await fronted.connect(None) for _ in range(4)]
    await eventually(lambda: fronted.refused == 4, 5)
    connections.append(await fronted.connect(None))
    assert await asyncio.wait_for(connections[0][0].read(), 5) == b""
    assert fronted.front.connections == 4
    assert fronted.served == 0
    for _, writer in connections:
        writer.close()


async def test_first_bytes_beyond_those_of_a_handshake_end_a_connection(
    fronted: Fronted, shown: Issued
) -> None:
    """What a stranger says at once is kept so far and no further; others shake hands meanwhile."""
    reader, writer = await asyncio.open_connection("127.0.0.1", fronted.port)
    writer.write(b"\x16\x03\x01\x40\x00" + bytes(20_000))
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""
    assert fronted.failed("not_tls") == 1
    await served(fronted, shown)
    writer.close()


async def test_a_chain_of_hundreds_of_kilobytes_is_refused_before_it_is_read(
    fronted: Fronted, authority: TestAuthority, shown: Issued
) -> None:
    """By an alert; nobody else's handshake waits for it."""
    huge = authority.program("huge", Role.PUBLISHER, chain=authority.certificate.read_bytes() * 400)
    with pytest.raises(OSError):
        await served(fronted, huge)
    assert fronted.failed("certificate_too_large") == 1
    await served(fronted, shown)


async def test_connections_of_a_network_that_end_in_a_refusal_have_a_rate(
    fronted: Fronted, shown: Issued, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each costs a handshake and an answer. Good connections of the same network come in all the same."""
    monkeypatch.setattr(fronted.front, "_of_refused", RateLimit(0.001, 3))
    connections = [await fronted.connect(None) for _ in range(5)]
    await eventually(lambda: fronted.failed("refused_rate_address") == 2, 5)
    assert fronted.refused == 3
    await served(fronted, shown)
    for _, writer in connections:
        writer.close()


async def test_what_a_client_makes_the_front_say_and_does_not_read_has_a_bound() -> None:
    """Answers of TLS itself, which no pause of the server holds back."""

    class Unread:
        size, is_cut = 0, False

        def write(self, data: bytes) -> None:
            self.size += len(data)

        def get_write_buffer_size(self) -> int:
            return self.size

        def abort(self) -> None:
            self.is_cut = True

    connection = FrontConnection(cast("Any", None), 10.0)
    transport = Unread()
    connection._transport = cast("Any", transport)
    connection.tls = cast("Any", SimpleNamespace(outgoing=lambda: bytes(PIECE)))
    for _ in range(MIB // PIECE):
        connection._flush()
    assert not transport.is_cut
    connection._flush()
    assert transport.is_cut


async def test_a_flood_of_clients_leaves_nothing_behind(fronted: Fronted, shown: Issued) -> None:
    """Invariant 6 for gRPC: good ones, refused ones, plain ones, those that reset and those that vanish."""
    gc.collect()  # what tests before it left
    descriptors, tasks = len(list(Path("/proc/self/fd").iterdir())), len(asyncio.all_tasks())

    async def good(issued: Issued | None) -> None:
        reader, writer = await fronted.connect(issued)
        writer.write(b"x")
        await reader.readexactly(1)
        writer.close()

    async def rude(sent: bytes) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", fronted.port)
        writer.write(sent)
        raw: socket.socket = writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    hello = _hello(fronted, shown)
    for _ in range(20):
        await asyncio.gather(
            *(good(shown) for _ in range(5)),
            *(good(None) for _ in range(5)),
            *(rude(sent) for sent in (b"", b"junk" * 100, hello, hello[:20])),
            return_exceptions=True,
        )
    await eventually(lambda: fronted.front.connections == 0, 10)
    assert len(fronted.callers) == 0
    await eventually(lambda: len(asyncio.all_tasks()) <= tasks, 5)
    await eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= descriptors, 5)


async def test_a_forged_certificate_disturbs_nobody_elses_connection(
    fronted: Fronted, authority: TestAuthority, tmp_path: Path, shown: Issued
) -> None:
    """What OpenSSL notes of a bad signature is not taken for a fault of the connection that is read next."""
    forged = TestAuthority(tmp_path / "forger").program("shop", Role.PUBLISHER, chain=authority.chain())
    reader, writer = await fronted.connect(shown)
    for number in range(20):
        _, other = await fronted.connect(forged)
        await eventually(lambda number=number: fronted.refused == number + 1, 5)  # type: ignore[misc]
        writer.write(b"still here")
        assert await asyncio.wait_for(reader.readexactly(10), 5) == b"still here"
        other.close()
    writer.close()


async def test_clients_of_both_families_are_known_by_their_addresses(
    authority: TestAuthority, shown: Issued
) -> None:
    """An unspecified address is both, as gRPC's own ports have it."""
    folder = Path(tempfile.mkdtemp())
    fronted = Fronted(authority)
    await fronted.start(folder, "0.0.0.0:0")
    for host, family in (("127.0.0.1", "ipv4:127.0.0.1:"), ("::1", "ipv6:[::1]:")):
        _, writer = await fronted.connect(shown, host)
        port = writer.get_extra_info("sockname")[1]
        await eventually(lambda: len(fronted.callers) == 1, 5)
        (name,) = fronted.callers._callers
        assert client_address(f"unix:{folder}/{name}") == f"{family}{port}"
        caller = fronted.callers.at(f"unix:{folder}/{name}")
        assert caller is not None
        assert (caller.address, caller.refusal) == (f"{family}{port}", None)
        writer.close()
        await eventually(lambda: fronted.front.connections == 0, 5)
    await fronted.close()
    shutil.rmtree(folder)
