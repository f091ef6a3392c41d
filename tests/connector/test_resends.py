"""A message that is sent again over a link whose wire still has it."""

import asyncio
import socket
import ssl

from hypothesis import given
from hypothesis import strategies as st

from cloudhub.v1.message_pb2 import Message
from services.connector.app import ConnectorApp
from services.connector.outbound import OutboundLanes
from services.connector.under_way import MAX_MARKS, UnderWay
from tests.connector.conftest import metric
from tests.support.edge_peer import EdgePeers, frame_bytes, keepalive, request_bytes
from tests.support.link_dispatcher import LinkDispatcher

LARGE = b'"' + b"x" * 60_000 + b'"'
"""More than an edge takes that does not read, and less than the hub's kernel does."""


def _message(message_id: str, content: bytes = b'""') -> Message:
    return Message(id=message_id, resource="ns/configmap/c", operation="update", content=content)


def _upgraded(peers: EdgePeers) -> ssl.SSLSocket:
    """An admitted link that reads only when it is asked to, unlike asyncio's streams. Blocks."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    made.settimeout(10)
    made.connect(("127.0.0.1", peers.port))
    edge = peers.context("edge-1").wrap_socket(made, server_hostname="localhost")
    edge.sendall(request_bytes())
    _read_until(edge, b"\r\n\r\n")
    return edge


def _read_until(edge: ssl.SSLSocket, last: bytes) -> bytes:
    """Blocks. Raises TimeoutError."""
    came = b""
    while last not in came:
        came += edge.recv(65536)
    return came


async def test_a_message_that_waits_in_the_kernel_is_not_sent_again(
    app: ConnectorApp, peers: EdgePeers, dispatcher: LinkDispatcher
) -> None:
    """The edge gets it once, and what follows right behind it. When the edge's host has it, it is sent again:
    then it is the edge that did not take it."""
    edge = await asyncio.to_thread(_upgraded, peers)
    first = await dispatcher.send_and_wait(_message("large", LARGE))
    again = await dispatcher.send_and_wait(_message("large", LARGE), repeats=first)
    third = await dispatcher.send_and_wait(_message("large", LARGE), repeats=again)
    assert metric(app, "resends_withheld_total") == 2
    await dispatcher.send_and_wait(_message("next"))
    assert (await asyncio.to_thread(_read_until, edge, b'"next"')).count(b'"large"') == 1
    # The host acknowledges with what the edge says, at the latest.
    edge.sendall(frame_bytes(keepalive("heard")))
    await dispatcher.until(lambda: dispatcher.upstream)
    await dispatcher.send_and_wait(_message("large", b'"small"'), repeats=third)
    assert b'"large"' in await asyncio.to_thread(_read_until, edge, b'"small"')
    assert metric(app, "resends_withheld_total") == 2
    edge.close()


def test_another_dispatcher_numbers_anew() -> None:
    """What the former one had under way says nothing of the numbers of the next."""
    lanes: OutboundLanes[str] = OutboundLanes(10, 1000)
    lanes.queue(1, b"a", direct=False)
    lanes.take(100)
    lanes.given(50)
    assert lanes.is_under_way(1, 49)
    lanes.restart()
    assert not lanes.is_under_way(1, 0)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1000)), min_size=1, max_size=60),
    st.integers(0, 30_000),
)
def test_nothing_that_may_be_missing_counts_as_there(steps: list[tuple[int, int]], confirmed: int) -> None:
    """Marks become fewer, never wrong: a frame is under way as long as its own bytes are, and not when all
    are there."""
    under_way = UnderWay()
    number = given_bytes = 0
    exact: dict[int, int] = {}
    for frames, size in steps:
        given_bytes += size
        exact |= dict.fromkeys(range(number + 1, number + frames + 1), given_bytes)
        number += frames
        under_way.mark(number, given_bytes)
        assert len(under_way._marks) <= MAX_MARKS
    for one, position in exact.items():
        if position > confirmed:
            assert under_way.includes(one, confirmed)
        assert not under_way.includes(one, given_bytes)
    assert not under_way.includes(number + 1, 0), "it was given to nobody"
