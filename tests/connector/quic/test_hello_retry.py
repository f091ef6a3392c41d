"""Clients whose first ClientHello has no key share of the hub's groups (RFC 8446, 4.1.4)."""

import asyncio
from collections.abc import Sequence

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from aioquic.tls import AlertDescription, CipherSuite, Group

from cloudhub.v1 import message_pb2
from services.connector.app import ConnectorApp
from services.connector.quic.hello_retry import NO_GROUP, RANDOM, hello_retry_request, message_hash
from tests.connector.conftest import metric
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.quic_peer import HOST, QuicPeer, QuicPeers

_UNKNOWN_GROUP = 0x11EC  # X25519MLKEM768, what new clients send first
_push_client_hello = tls.push_client_hello


class LateClient(QuicConnection):
    """Shows its key share when it is asked for, as aioquic's client cannot."""

    def __init__(
        self, configuration: QuicConfiguration, groups: Sequence[int], shares: Sequence[int]
    ) -> None:
        super().__init__(configuration=configuration)
        self.groups = list(groups)
        self.shares = list(shares)
        """Of the groups that the second ClientHello has a share of; the one asked for if empty."""
        self.second_suites: list[int] | None = None
        self.asked = 0
        self._first = self._retry = b""

    def _initialize(self, peer_cid: bytes) -> None:
        super()._initialize(peer_cid)
        self._handle_hello = self.tls._client_handle_hello
        self.tls._client_handle_hello = self._server_said  # type: ignore[method-assign]
        self.tls._supported_groups = [Group.SECP256R1, Group.SECP384R1, Group.X25519]

    def push(self, buf: Buffer, hello: tls.ClientHello) -> None:
        start = buf.tell()
        hello.supported_groups = [_UNKNOWN_GROUP, *self.groups]
        if not self._retry:
            hello.key_share = [(_UNKNOWN_GROUP, bytes(1184))]
            _push_client_hello(buf, hello)
            self._first = buf.data_slice(start, buf.tell())
            return
        suite = CipherSuite(int.from_bytes(self._retry[39:41], "big"))
        assert self.tls._key_schedule_proxy
        self.tls._key_schedule_proxy.select(suite).update_hash(message_hash(self._first, suite) + self._retry)
        wanted = self.shares or [self.asked]
        hello.key_share = [share for share in hello.key_share or [] if share[0] in wanted]
        hello.cipher_suites = self.second_suites or hello.cipher_suites
        _push_client_hello(buf, hello)

    def _server_said(self, input_buf: Buffer, output_buf: Buffer) -> None:
        message = input_buf.data_slice(0, input_buf.capacity)
        if message[6:38] != RANDOM:
            self._handle_hello(input_buf, output_buf)
            return
        self._retry, self.asked = message, int.from_bytes(message[-2:], "big")
        input_buf.seek(input_buf.capacity)
        self.tls._client_send_hello(output_buf)


class _Dial:
    """Opens a connection with such a client."""

    def __init__(self, app: ConnectorApp, peers: QuicPeers, monkeypatch: pytest.MonkeyPatch) -> None:
        self._app, self._peers, self._monkeypatch = app, peers, monkeypatch

    async def __call__(
        self, groups: Sequence[int], shares: Sequence[int] = (), suites: list[int] | None = None
    ) -> tuple[asyncio.DatagramTransport, QuicPeer, LateClient]:
        client = LateClient(self._peers.configuration(self._peers.issued("edge-1")), groups, shares)
        client.second_suites = suites
        self._monkeypatch.setattr(tls, "push_client_hello", client.push)
        transport, peer = await asyncio.get_running_loop().create_datagram_endpoint(
            lambda: QuicPeer(client), local_addr=(HOST, 0)
        )
        peer.connect((HOST, self._app.quic_port))
        return transport, peer, client

    async def end(self, *arguments: object) -> ConnectionTerminated:
        transport, peer, _ = await self(*arguments)  # type: ignore[arg-type]
        end = await peer.closed()
        transport.close()
        return end


@pytest.fixture
def dial(app: ConnectorApp, quic_peers: QuicPeers, monkeypatch: pytest.MonkeyPatch) -> _Dial:
    return _Dial(app, quic_peers, monkeypatch)


@pytest.mark.parametrize(
    ("groups", "asked"),
    [
        ([Group.SECP521R1, Group.SECP384R1, Group.SECP256R1], Group.SECP256R1),
        ([Group.X25519], Group.X25519),
        ([Group.SECP384R1], Group.SECP384R1),
    ],
)
async def test_a_link_opens_after_the_hub_has_asked_for_a_key_share(
    dial: _Dial, dispatcher: LinkDispatcher, groups: Sequence[int], asked: int
) -> None:
    """Both know a group, so they speak, and messages flow under the keys of the second ClientHello."""
    transport, peer, client = await dial(groups)
    peer.ask("edge-1")
    peer.begin()
    assert (await peer.answer()).router.operation == "ack"
    assert client.asked == asked
    dispatcher.send_messages(1, message_pb2.Message(id="m1", content=b"{}"))
    assert (await peer.message()).header.id == "m1"
    peer.close()
    transport.close()


async def test_a_client_without_a_group_of_the_hub_is_told_which_there_are(
    dial: _Dial, app: ConnectorApp, capsys: pytest.CaptureFixture[str]
) -> None:
    end = await dial.end([Group.SECP521R1])
    assert (end.error_code, end.reason_phrase) == (0x100 + AlertDescription.handshake_failure, NO_GROUP)
    assert metric(app, "handshake_failures_total", transport="quic", reason="tls_protocol") == 1
    assert NO_GROUP in capsys.readouterr().out


@pytest.mark.parametrize(
    ("shares", "suites", "text"),
    [
        ([Group.SECP384R1], None, "one key share, of SECP256R1"),
        ([Group.SECP256R1, Group.SECP384R1], None, "one key share, of SECP256R1"),
        ([_UNKNOWN_GROUP], None, "one key share, of SECP256R1"),
        ([], [CipherSuite.CHACHA20_POLY1305_SHA256], "other cipher suites than the first"),
    ],
)
async def test_a_second_hello_that_is_not_what_was_asked_for_ends_the_opening(
    dial: _Dial, app: ConnectorApp, shares: list[int], suites: list[int] | None, text: str
) -> None:
    """Invariant 10: asked once, with a clear error, and nobody is asked a third time."""
    end = await dial.end([Group.SECP256R1, Group.SECP384R1], shares, suites)
    assert end.error_code == 0x100 + AlertDescription.illegal_parameter
    assert text in end.reason_phrase
    assert metric(app, "handshake_failures_total", transport="quic", reason="tls_protocol") == 1


def test_the_request_in_bytes() -> None:
    """RFC 8446, 4.1.3 and 4.1.4: a ServerHello with a fixed random, and two extensions."""
    request = hello_retry_request(b"", Group.SECP256R1, CipherSuite.AES_128_GCM_SHA256)
    assert request.hex() == ("020000340303" + RANDOM.hex() + "00130100000c002b00020304003300020017")


def test_the_hash_of_a_message_has_the_length_of_its_suite() -> None:
    """RFC 8446, 4.4.1."""
    assert message_hash(b"hello", CipherSuite.AES_128_GCM_SHA256)[:4].hex() == "fe000020"
    assert message_hash(b"hello", CipherSuite.AES_256_GCM_SHA384)[:4].hex() == "fe000030"
