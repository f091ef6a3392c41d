"""Edges that misbehave over QUIC, played in the test's own process over sockets of a site.

As in `peers`: each breaks one rule and keeps the others.
"""

import asyncio
import contextlib
import itertools
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection, QuicConnectionId
from aioquic.quic.events import ConnectionTerminated

from cloudhub.v1.edge_pb2 import EdgeHeader, EdgeMessage, EdgeRouter
from demo.ports import HubPorts
from services.connector.quic.framing import frame_header
from services.connector.quic.setup import PROTOCOL
from tests.lab.peers import Peer
from tests.support.quic_peer import UP, QuicPeer, keepalive

_KEEPALIVE_SECONDS = 1.0
_SMALL_WINDOW_BYTES = 16 * 1024
_NEXT_STREAM = UP + 4
_STREAM_STEP = 4
_STREAMS_AT_ONCE = 200
_IDS_AT_ONCE = 20
_NEVER_WHOLE_BYTES = 1024 * 1024


@asynccontextmanager
async def quic_connection(peer: Peer, **changes: Any) -> AsyncIterator[QuicPeer]:
    """A connection whose handshake is over; at the end it is gone without a word."""
    nodes = peer.certificates / "nodes"
    configuration = QuicConfiguration(
        alpn_protocols=[PROTOCOL],
        server_name=peer.cloud_address,
        cafile=str(peer.certificates / "ca.crt"),
        idle_timeout=60.0,
        **changes,
    )
    configuration.load_cert_chain(nodes / f"{peer.node_id}.crt", nodes / f"{peer.node_id}.key")
    made = peer.site.socket(socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind(("", 0))
    transport, connection = await asyncio.get_running_loop().create_datagram_endpoint(
        lambda: QuicPeer(QuicConnection(configuration=configuration)), sock=made
    )
    try:
        connection.connect((peer.cloud_address, HubPorts().edges_quic))
        async with asyncio.timeout(10):
            await connection.handshaken
        yield connection
    finally:
        connection.vanish()
        transport.close()


@asynccontextmanager
async def quic_link(peer: Peer, **changes: Any) -> AsyncIterator[QuicPeer]:
    """An admitted link."""
    async with quic_connection(peer, **changes) as connection:
        connection.ask(peer.node_id)
        connection.begin()
        answer = await connection.answer()
        assert answer.router.operation == "ack", answer
        yield connection


async def _broken_off(link: QuicPeer, code: int, text: str) -> None:
    """The hub closes the connection, and says why."""
    end = await link.closed()
    assert (end.error_code == code, text in end.reason_phrase) == (True, True), end


async def says_nothing(peer: Peer) -> None:
    """A connection after its handshake without a request, for as long as the hub bears it."""
    async with quic_connection(peer) as connection:
        peer.count("silent")
        end: ConnectionTerminated = await asyncio.shield(connection.over)
        peer.count(f"cut with {end.error_code}")


async def opens_streams(peer: Peer) -> None:
    """A link, and then two hundred streams more than it may have."""
    async with quic_link(peer) as link:
        link.quic._remote_max_streams_uni = 1 << 20
        for number in range(_STREAMS_AT_ONCE):
            link.quic.send_stream_data(_NEXT_STREAM + number * _STREAM_STEP, b"msg")
        link.transmit()
        await _broken_off(link, 0x4, "Too many streams")
        peer.count("floods of streams")


async def never_finishes(peer: Peer) -> None:
    """A frame of 1 MiB that comes byte by byte, and whose end never comes."""
    async with quic_link(peer) as link:
        link.write(UP, frame_header(_NEVER_WHOLE_BYTES))
        while not link.over.done():
            link.write(UP, b"x")
            peer.count("bytes")
            await asyncio.sleep(0.02)
        raise AssertionError(f"the hub closed it: {link.over.result()}")


async def sends_too_far(peer: Peer) -> None:
    """One byte, a gigabyte past what the hub let in."""
    async with quic_link(peer) as link:
        stream = link.quic._streams[UP]
        link.quic._remote_max_data = stream.max_stream_data_remote = 1 << 40
        sender = stream.sender
        sender._buffer_start = sender._buffer_stop = sender.highest_offset = 1 << 30
        link.write(UP, b"x")
        await _broken_off(link, 0x3, "data limit")
        peer.count("beyond limits")


async def floods_with_ids(peer: Peer) -> None:
    """More connection ids than the hub said that it keeps."""
    async with quic_link(peer) as link:
        first = link.quic._host_cid_seq
        link.quic._host_cids += [
            QuicConnectionId(cid=os.urandom(8), sequence_number=number, stateless_reset_token=os.urandom(16))
            for number in range(first, first + _IDS_AT_ONCE)
        ]
        link.quic._host_cid_seq += _IDS_AT_ONCE
        link.transmit()
        await _broken_off(link, 0x9, "")
        peer.count("floods of ids")


async def changes_ids(peer: Peer) -> None:
    """Each packet under another id of the hub's, which has to make a new one for it."""
    async with quic_link(peer) as link:
        for number in itertools.count():
            before = link.quic._peer_cid.cid
            link.quic.change_connection_id()
            link.say(keepalive(f"k-{number}"))
            if link.quic._peer_cid.cid != before:
                peer.count("ids used up")
            assert not link.over.done(), f"the hub closed it: {link.over.result()}"
            await asyncio.sleep(0.005)


async def reads_nothing_over_quic(peer: Peer, reads: asyncio.Event) -> None:
    """It lets in little and takes back nothing of that; its keepalives go on. When it `reads` at last, it
    acknowledges all, until it is cancelled."""
    async with quic_link(peer, max_data=_SMALL_WINDOW_BYTES, max_stream_data=_SMALL_WINDOW_BYTES) as link:
        quic = link.quic
        limits = quic._write_connection_limits, quic._write_stream_limits
        quic._write_connection_limits = lambda **_: None  # type: ignore[method-assign]
        quic._write_stream_limits = lambda **_: None  # type: ignore[method-assign]
        peer.count("links")
        while not reads.is_set():
            link.say(keepalive())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_KEEPALIVE_SECONDS):
                    await reads.wait()
        quic._write_connection_limits, quic._write_stream_limits = limits  # type: ignore[method-assign]
        beating = asyncio.create_task(_keep_alive(link), name=f"keepalive of {peer.node_id}")
        try:
            while not link.over.done():
                with contextlib.suppress(TimeoutError):
                    message = await link.message()
                    peer.got.append(message.header.id)
                    link.say(_acknowledgement(message.header.id))
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)


async def _keep_alive(link: QuicPeer) -> None:
    for number in itertools.count():
        link.say(keepalive(f"k-{number}"))
        await asyncio.sleep(_KEEPALIVE_SECONDS)


def _acknowledgement(parent_id: str) -> EdgeMessage:
    return EdgeMessage(
        header=EdgeHeader(id=f"ack-{parent_id}", parent_id=parent_id, timestamp_ms=1),
        router=EdgeRouter(source="edged", group="resource", operation="response", resource="x"),
        content=b'"OK"',
    )
