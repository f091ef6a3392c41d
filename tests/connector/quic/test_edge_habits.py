"""What docs/protocol.md tells writers of clients: streams that end, signs of life, unknown fields, bytes."""

import asyncio
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from aioquic.quic.connection import QuicConnection
from aioquic.tls import AlertDescription

from cloudhub.v1.edge_pb2 import EdgeMessage
from cloudhub.v1.message_pb2 import Message
from services.connector.app import ConnectorApp
from services.connector.quic.framing import MESSAGE_PREFIX, FrameReader
from services.connector.quic.messages import parse_message
from services.connector.quic.request import answer_ack, read_request
from tests.connector.conftest import poll
from tests.support.link_dispatcher import LinkDispatcher
from tests.support.quic_peer import CONTROL, DOWN, UP, QuicPeers, framed, keepalive

_PAGE = Path(__file__).resolve().parents[3] / "docs" / "protocol.md"


@pytest.mark.parametrize(
    ("give_up", "code", "text"),
    [
        (lambda quic: quic.reset_stream(UP, 0), 1002, "stream 2 was given up"),
        (lambda quic: quic.stop_stream(DOWN, 0), 1002, "stream 3 was given up"),
        (lambda quic: quic.send_stream_data(UP, b"", True), 1000, "closed by the edge"),
    ],
    ids=["RESET_STREAM", "STOP_SENDING", "FIN"],
)
async def test_a_link_ends_with_a_stream_of_messages(
    quic_peers: QuicPeers, give_up: Callable[[QuicConnection], None], code: int, text: str
) -> None:
    async with quic_peers.link() as peer:
        give_up(peer.quic)
        peer.transmit()
        end = await peer.closed()
    assert (end.error_code, end.reason_phrase) == (code, text)


@pytest.mark.parametrize(
    "give_up",
    [
        lambda quic: quic.reset_stream(CONTROL, 0),
        lambda quic: quic.stop_stream(CONTROL, 0),
        lambda quic: quic.send_stream_data(CONTROL, b"", True),
    ],
    ids=["RESET_STREAM", "STOP_SENDING", "FIN"],
)
async def test_a_link_goes_on_without_its_control_stream(
    quic_peers: QuicPeers, dispatcher: LinkDispatcher, give_up: Callable[[QuicConnection], None]
) -> None:
    """Once the request is answered, nothing else is said on it."""
    async with quic_peers.link() as peer:
        give_up(peer.quic)
        peer.say(keepalive("after"))
        await dispatcher.until(lambda: dispatcher.upstream)
        assert not dispatcher.ended


async def test_a_ping_is_a_sign_of_life(app: ConnectorApp, quic_peers: QuicPeers) -> None:
    """So is each packet that proves to be the edge's."""
    async with quic_peers.link() as peer:
        transport = app.links.admitted()[0].transport
        loop = asyncio.get_running_loop()
        await poll(lambda: transport.idle_seconds(loop.time()) > 0.3)
        peer.quic.send_ping(1)
        peer.transmit()
        await poll(lambda: transport.idle_seconds(loop.time()) < 0.3)


async def test_a_handshake_that_is_done_is_no_acceptance(quic_peers: QuicPeers) -> None:
    """A TLS 1.3 client is ready before its certificate is judged."""
    async with quic_peers.connection(None) as peer:
        await asyncio.wait_for(peer.handshaken, 10)
        end = await peer.closed()
    assert end.error_code == 0x100 + AlertDescription.certificate_required


async def test_fields_that_the_hub_does_not_know_are_passed_over(
    quic_peers: QuicPeers, dispatcher: LinkDispatcher
) -> None:
    """A newer edge may say more than the hub understands."""
    async with quic_peers.link() as peer:
        peer.write(UP, framed(keepalive("newer").SerializeToString() + b"\x78\x01\x82\x01\x03new"))
        await dispatcher.until(lambda: dispatcher.upstream)
        assert dispatcher.upstream[0].message.id == "newer"
        assert not dispatcher.upstream[0].message.extra


def _example() -> list[bytes]:
    """The streams of the example, in its order."""
    page = _PAGE.read_text()
    block = page[page.index("#### An exchange in bytes") :]
    texts = re.findall(r"^```hex\n(.*?)^```", block, re.DOTALL | re.MULTILINE)
    return [bytes.fromhex("".join(line.partition("#")[0] for line in text.splitlines())) for text in texts]


def _payload(stream: bytes, prefix: bytes = b"") -> bytes:
    reader = FrameReader(1024, prefix)
    reader.receive(stream)
    payload = reader.next_payload()
    assert payload is not None
    reader.ended()
    return payload


def test_the_example_says_what_the_page_tells() -> None:
    request, ack, down, up = _example()
    asked = read_request(_payload(request))
    assert (asked.message_id, asked.headers) == (
        "r1",
        (("Node_id", "edge-1"), ("Project_id", "p1"), ("Connectionuse", "msg")),
    )
    assert _payload(ack) == answer_ack("r1")
    published = EdgeMessage.FromString(_payload(down, MESSAGE_PREFIX))
    assert (published.header.id, published.header.resource_version) == ("m1", "7")
    assert (published.router.operation, published.router.resource) == ("update", "shop/configmap/prices")
    assert published.content == b'{"data":{"tea":"3"}}'
    acknowledged = Message()
    parse_message(_payload(up, MESSAGE_PREFIX)).fill(acknowledged)
    assert (acknowledged.operation, acknowledged.parent_id) == ("response", "m1")
    assert acknowledged.content == b'"OK"'
