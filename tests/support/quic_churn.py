"""Edge nodes that only come and go over QUIC, in every way in which such a link can begin and end."""

import asyncio
import enum
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from tests.support.churn import ANSWER_SECONDS, Churn
from tests.support.quic_peer import CONTROL, UP, QuicPeer, QuicPeers, framed, keepalive, request

_NEXT_STREAM = UP + 4
# More than the hub allows.
_STREAMS = 100


class QuicWay(enum.Enum):
    """How one connection goes; the first seven are admitted."""

    CLOSED = "closed by the application"
    ENDED = "its stream of messages ended"
    VANISHED = "gone without a word"
    STREAM_RESET = "its stream of messages reset"
    TAKEN_OVER = "taken over by the node's next link"
    ENDED_IN_FRAME = "its stream ended within a frame"
    STREAM_TOO_MANY = "broken by a stream more than allowed"
    REFUSED = "refused, since the node is another one than the certificate's"
    CUT_IN_REQUEST = "closed while the request is decided"
    NO_REQUEST = "closed after the handshake"
    HALF_REQUEST = "gone without a word within the request"
    HALF_HANDSHAKE = "gone without a word in the handshake, when its address is proved"
    NO_HANDSHAKE = "gone after its first datagram"


ADMITTED = frozenset(
    {
        QuicWay.CLOSED,
        QuicWay.ENDED,
        QuicWay.VANISHED,
        QuicWay.STREAM_RESET,
        QuicWay.TAKEN_OVER,
        QuicWay.ENDED_IN_FRAME,
        QuicWay.STREAM_TOO_MANY,
    }
)
# Of 20 connections, so many go each way.
MIX: dict[enum.Enum, int] = {
    QuicWay.CLOSED: 4,
    QuicWay.ENDED: 2,
    QuicWay.VANISHED: 3,
    QuicWay.STREAM_RESET: 1,
    QuicWay.TAKEN_OVER: 1,
    QuicWay.ENDED_IN_FRAME: 1,
    QuicWay.STREAM_TOO_MANY: 1,
    QuicWay.REFUSED: 2,
    QuicWay.CUT_IN_REQUEST: 1,
    QuicWay.NO_REQUEST: 1,
    QuicWay.HALF_REQUEST: 1,
    QuicWay.HALF_HANDSHAKE: 1,
    QuicWay.NO_HANDSHAKE: 1,
}
# What they hear before they are gone.
_DEAF: dict[enum.Enum, int] = {QuicWay.NO_HANDSHAKE: 0, QuicWay.HALF_HANDSHAKE: 1}


class QuicChurn(Churn):
    """Over QUIC; what vanishes here is found by the hub's own clocks."""

    def __init__(self, peers: QuicPeers, node_ids: Iterable[str], at_once: int) -> None:
        nodes = list(node_ids)
        super().__init__(nodes, at_once, MIX)
        self._peers = peers
        for node_id in nodes:
            peers.issued(node_id)

    async def crowd(self) -> None:
        nodes = [node_id for share in self._shares for node_id in share]
        some = asyncio.Semaphore(len(self._shares))
        all_open = asyncio.Barrier(len(nodes))

        async def stay(node_id: str) -> None:
            async with self._dialled(node_id) as peer:
                async with some, asyncio.timeout(ANSWER_SECONDS):
                    await self._open(peer, node_id)
                await all_open.wait()
                _say_bye(peer)

        async with asyncio.TaskGroup() as group:
            for node_id in nodes:
                group.create_task(stay(node_id))

    @property
    def admitted(self) -> int:
        return sum(self.done[way] for way in ADMITTED) + self.done[QuicWay.TAKEN_OVER]

    @property
    def undecided(self) -> int:
        return self.done[QuicWay.CUT_IN_REQUEST]

    @asynccontextmanager
    async def _dialled(self, node_id: str) -> AsyncIterator[QuicPeer]:
        """A connection that is left without a word when the block is."""
        transport, peer = await self._peers.dial(self._peers.issued(node_id))
        try:
            yield peer
        finally:
            peer.vanish()
            transport.close()

    async def _one(self, way: enum.Enum, node_id: str) -> None:
        async with self._dialled(node_id) as peer:
            if way in _DEAF:
                # First it is asked to prove its address.
                peer.hears = _DEAF[way]
                await peer.deaf
                return
            await peer.handshaken
            if way is QuicWay.NO_REQUEST:
                _say_bye(peer)
            elif way is QuicWay.HALF_REQUEST:
                peer.write(CONTROL, framed(request(node_id))[:40])
            elif way is QuicWay.CUT_IN_REQUEST:
                peer.ask(node_id)
                _say_bye(peer)
            elif way is QuicWay.REFUSED:
                peer.ask(f"{node_id}-else")
                assert (await peer.answer()).router.operation == "nack"
                assert (await peer.closed()).error_code == 403
            else:
                await self._open(peer, node_id)
                await self._end(way, peer, node_id)

    async def _open(self, peer: QuicPeer, node_id: str) -> None:
        peer.ask(node_id)
        peer.begin()
        answer = await peer.answer()
        assert answer.router.operation == "ack", answer
        peer.say(keepalive())

    async def _end(self, way: enum.Enum, peer: QuicPeer, node_id: str) -> None:
        if way is QuicWay.CLOSED:
            _say_bye(peer)
        elif way is QuicWay.ENDED:
            peer.write(UP, b"", fin=True)
            assert (await peer.closed()).error_code == 1000
        elif way is QuicWay.STREAM_RESET:
            peer.quic.reset_stream(UP, 0)
            peer.transmit()
            assert (await peer.closed()).error_code == 1002
        elif way is QuicWay.ENDED_IN_FRAME:
            peer.write(UP, framed(keepalive())[:-1], fin=True)
            assert (await peer.closed()).error_code == 1002
        elif way is QuicWay.STREAM_TOO_MANY:
            peer.quic._remote_max_streams_uni = _STREAMS
            peer.write(_NEXT_STREAM, b"msg")
            assert "Too many streams" in (await peer.closed()).reason_phrase
        elif way is QuicWay.TAKEN_OVER:
            async with self._dialled(node_id) as later:
                await self._open(later, node_id)
                assert (await peer.closed()).error_code == 4001
                _say_bye(later)


def _say_bye(peer: QuicPeer) -> None:
    peer.quic.close(error_code=1000, reason_phrase="bye")
    peer.transmit()
